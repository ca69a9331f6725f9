"""A few cases of the fault matrix; `cpr-drill --faults all` runs them all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools import drill
from tools.lab.faults.cases import chosen_cases

# Both sides, at steps before, in and after the blackout: ended, hung, lying, without means.
SELECTION = (
    "target/after/SEND_PREPARED/kill", "source/before/SEND_COMMIT/kill",
    "source/after/RELEASE_LEASE/pause", "source/before/REHEARSE/flip",
    "source/before/SEND_FDS/fd-wrong", "target/before/BUILD/no-memory",
)  # fmt: skip


def test_selected_faults_end_with_one_owner(tmp_path: Path) -> None:
    report = tmp_path / "faults.json"
    words = ["--faults", ",".join(SELECTION), "--accel", "unicorn", "--json", str(report)]
    assert drill.main(words) == drill.EXIT_PASS
    cases = json.loads(report.read_text())["cases"]
    assert {case["name"] for case in cases} == set(SELECTION)
    assert all(case["reason"] for case in cases if case["ending"] == "rolled back")


def test_list_names_every_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert drill.main(["--faults", "list"]) == drill.EXIT_PASS
    names = capsys.readouterr().out.split()
    assert [case.name for case in chosen_cases("all")] == names


def test_case_that_does_not_exist_is_a_wrong_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert drill.main(["--faults", "target/before/DANCE/kill"]) == drill.EXIT_USAGE
    assert "no such case" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.needs_tun
def test_not_a_frame_is_lost_when_either_side_fails_around_the_blackout() -> None:
    cases = "source/after/SEND_STATE/*,target/before/SEND_LOADED/*,source/before/SEND_COMMIT/*"
    assert drill.main(["--faults", cases, "--load", "udp=20,tcp=1"]) == drill.EXIT_PASS
