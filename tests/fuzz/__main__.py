"""`python -m tests.fuzz TARGET… [--seconds N]`: coverage-guided fuzzing (atheris).

Starts from the seeds and the kept corpus, ends after N seconds for each target, and keeps what led
to new code in corpus/TARGET/ (small: only inputs that reach something new). A finding ends it with
the input and the error; it belongs into the corpus, with the repair.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
INPUT_MAX_BYTES = 4096
SECONDS_DEFAULT = 600


def main() -> int:
    """Fuzz each target in a process of its own, because the engine never returns."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("target", nargs="+", choices=[*TARGETS, "all"])
    parser.add_argument("--seconds", type=int, default=SECONDS_DEFAULT, metavar="N")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        return _fuzz(options.target[0], options.seconds)
    names = list(TARGETS) if "all" in options.target else options.target
    words = ["--here", "--seconds", str(options.seconds)]
    failed = [
        name
        for name in names
        if subprocess.run(
            [sys.executable, "-m", "tests.fuzz", name, *words], check=False
        ).returncode
    ]
    sys.stdout.write(f"fuzz: {len(names)} target(s), {len(failed)} with a finding {failed}\n")
    return 1 if failed else 0


def _fuzz(name: str, seconds: int) -> int:
    try:
        import atheris  # noqa: PLC0415 - an optional extra; the corpus runs without it
    except ImportError:
        sys.exit("python -m tests.fuzz needs atheris: pip install -e '.[fuzz]'")
    target = TARGETS[name]
    corpus = CORPUS / name
    corpus.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"fuzz-{name}-") as seeds:
        for number, seed in enumerate(target.seeds):
            (Path(seeds) / str(number)).write_bytes(seed)
        atheris.instrument_all()
        atheris.Setup(
            [
                sys.argv[0],
                f"-max_total_time={seconds}",
                f"-max_len={INPUT_MAX_BYTES}",
                "-reduce_inputs=1",
                f"-artifact_prefix={corpus}/finding-",
                "-print_final_stats=1",
                str(corpus),  # the first directory gets what is new
                seeds,
            ],
            target.run,
        )
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
