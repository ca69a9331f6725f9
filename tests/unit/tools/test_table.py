"""The terminal's view of a drill, as plain text."""

from __future__ import annotations

import pytest

from tests.unit.tools.samples import make_chain
from tools.lab.results import DrillResult
from tools.lab.table import Screen


def shown(result: DrillResult, capsys: pytest.CaptureFixture[str]) -> str:
    Screen().show(result)
    return capsys.readouterr().out


def test_passing_drill_shows_figures_phases_and_the_verdict(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = shown(DrillResult((make_chain([1.0, 2.0, 3.0, 4.0]),), 0), capsys)
    assert "2.00 / 4.00 / 4.00" in text
    assert "4/4" in text
    assert "kvm phases p50 (ms): stop vCPUs 0.250" in text
    assert "PASS 4 live updates" in text
    assert "\x1b" not in text


def test_failing_drill_says_why_and_how_to_replay(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(DrillResult((make_chain([1.0], failure="RAM: [page 3] wrong"),), 0), capsys)
    assert "FAIL kvm: RAM: [page 3] wrong" in text
    assert "replay: cpr-drill --seed 1" in text
    assert "PASS" not in text


def test_processes_left_behind_are_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(DrillResult((make_chain([1.0]),), 2), capsys)
    assert "FAIL 2 process(es) left behind" in text
