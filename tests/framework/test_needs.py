"""A skip in CI is a failure unless a marked need is absent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import needs
from tests.needs import Need, skip_verdict

SKIPPING_TESTS = """
import pytest

@pytest.mark.needs_here
def test_needs_what_is_here():
    pytest.skip("pretext")

@pytest.mark.needs_absent
def test_needs_what_is_absent():
    raise AssertionError("must not run")

def test_skips_for_a_reason_of_its_own():
    pytest.skip("no such program")
"""


@pytest.fixture
def two_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    here, absent = Need(lambda: True, "here"), Need(lambda: False, "absent")
    monkeypatch.setattr(needs, "NEEDS", {"here": here, "absent": absent})


@pytest.mark.usefixtures("two_needs")
def test_skip_of_a_test_whose_need_is_present_is_a_failure() -> None:
    assert "here" in (skip_verdict(frozenset({"here"}), "why") or "")


@pytest.mark.usefixtures("two_needs")
def test_skip_of_a_test_that_declares_no_need_is_a_failure() -> None:
    assert "why" in (skip_verdict(frozenset(), "why") or "")


@pytest.mark.usefixtures("two_needs")
def test_skip_of_a_test_with_an_absent_need_is_honest() -> None:
    assert skip_verdict(frozenset({"here", "absent"}), "why") is None


@pytest.mark.parametrize(
    ("ci", "counts"), [("true", "2 failed, 1 skipped"), ("", "3 skipped")], ids=["ci", "by hand"]
)
def test_a_whole_run_counts_dishonest_skips_as_failures_in_ci_only(
    tmp_path: Path, ci: str, counts: str
) -> None:
    root = Path(__file__).parents[2]
    (tmp_path / "test_skips.py").write_text(SKIPPING_TESTS)
    (tmp_path / "conftest.py").write_text(
        "import tests.needs as n\n"
        "n.NEEDS['needs_here'] = n.Need(lambda: True, 'here')\n"
        "n.NEEDS['needs_absent'] = n.Need(lambda: False, 'absent')\n"
        "from tests.conftest import *\n"
    )
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nmarkers =\n  needs_here: a\n  needs_absent: b\n"
    )
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "CI": ci, "PYTHONPATH": str(root), "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert counts in run.stdout.splitlines()[-1], run.stdout + run.stderr
