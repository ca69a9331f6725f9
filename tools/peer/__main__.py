"""`python -m tools.peer --qemu CMD`: our guest-felt gap beside QEMU's, as a ratio."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tools.lab.errors import LabError
from tools.lab.options import own_vmm, parse_command, parse_count, parse_size
from tools.peer.argv import PeerBuild, our_build, qemu_build
from tools.peer.compare import QUIET_NOISE_MS, Comparison, Side, alternate
from tools.peer.session import GapSample

MIB = 1 << 20
# Our accelerator beside QEMU's: hardware by hardware, software by software.
PAIRS = {"kvm": ("kvm", "kvm"), "software": ("unicorn", "tcg")}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a line for each update and the ratio; exit status 1 on any failure."""
    options = _parse(argv)
    try:
        comparison = asyncio.run(_compare(options))
    except LabError as error:
        print(f"peer: {error}", file=sys.stderr)
        return 1
    _report(comparison)
    if options.json is not None:
        options.json.write_text(json.dumps(_as_dict(comparison), indent=1) + "\n")
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools.peer", description=__doc__)
    parser.add_argument("--qemu", type=parse_command, required=True, help="command of a QEMU >= 10")
    parser.add_argument("--vmm", type=parse_command, default=own_vmm(), help="our command")
    parser.add_argument("--accel", choices=sorted(PAIRS), default="software")
    parser.add_argument("--mem", type=parse_size, default=64 * MIB)
    parser.add_argument("--updates", type=parse_count, default=7, help="of each side")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(argv)


async def _compare(options: argparse.Namespace) -> Comparison:
    our_accel, their_accel = PAIRS[options.accel]
    builds = (our_build(options.vmm, our_accel), qemu_build(options.qemu, their_accel))
    samples: dict[str, list[GapSample]] = {build.name: [] for build in builds}
    with tempfile.TemporaryDirectory(prefix="cpr-peer-") as run_dir:
        async for build, sample in alternate(
            builds, ram_bytes=options.mem, run_dir=Path(run_dir), updates=options.updates
        ):
            samples[build.name].append(sample)
            _say(build, sample)
    ours, theirs = (Side(build.name, tuple(samples[build.name])) for build in builds)
    return Comparison(ours, theirs, options.mem)


def _say(build: PeerBuild, sample: GapSample) -> None:
    events = "-" if sample.stop_resume_ms is None else f"{sample.stop_resume_ms:.2f}"
    begin = "-" if sample.gap_after_stop_ms is None else f"{sample.gap_after_stop_ms:+.1f}"
    switch = "-" if sample.switch_ms is None else f"{sample.switch_ms:.2f}"
    noisy = "" if sample.noise_ms < QUIET_NOISE_MS else "  (not quiet)"
    print(
        f"{build.name:12} gap {sample.gap_ms:6.2f} ms +-{sample.resolution_ms:.2f} "
        f"(STOP {begin} ms)  at the switch {switch} ms  STOP->RESUME {events} ms  "
        f"before {sample.noise_ms:.2f} ms{noisy}",
        flush=True,
    )


def _report(comparison: Comparison) -> None:
    for side in (comparison.ours, comparison.theirs):
        gap, switch = side.gap_ms, side.switch_ms
        print(
            f"{side.name:12} gap p50 {gap.p50:.2f} max {gap.max:.2f} ms  "
            f"at the switch p50 {switch.p50:.2f} max {switch.max:.2f} ms  "
            f"n {gap.n} quiet of {len(side.samples)}"
        )
    print(
        f"p50, ours / theirs: gap {comparison.ratio:.2f}, at the switch "
        f"{comparison.switch_ratio:.2f}"
    )


def _as_dict(comparison: Comparison) -> dict[str, object]:
    return {
        "measure": "guest-felt gap, ms: longest stall of a counter in guest RAM, sampled outside",
        "guest": "512-byte real-mode boot sector",
        "ram_bytes": comparison.ram_bytes,
        "ratio_p50": comparison.ratio,
        "switch_ratio_p50": comparison.switch_ratio,
        "ours": asdict(comparison.ours),
        "theirs": asdict(comparison.theirs),
    }


if __name__ == "__main__":
    sys.exit(main())
