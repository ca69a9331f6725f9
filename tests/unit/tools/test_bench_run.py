"""The benchmark's order of sampling, its options and what it shows."""

from __future__ import annotations

import io
from types import TracebackType
from typing import Self

import pytest
from rich.console import Console

from tools import bench
from tools.lab.argv import GuestSpec
from tools.lab.bench.plan import Group
from tools.lab.bench.results import BenchResult, GroupResult, Verdict
from tools.lab.bench.rounds import sample_in_turn
from tools.lab.bench.subjects import Sample
from tools.lab.bench.suite import update_row
from tools.lab.bench.view import BenchView, figure_text
from tools.lab.errors import CheckFailedError
from tools.lab.stats import Summary
from tools.lab.timeline import Phase, Side

MS = 1_000_000


class FakeSubject:
    """Notes what is done with it; its hand-overs fail from number `fails_at` on."""

    def __init__(self, name: str, log: list[str], fails_at: int | None = None) -> None:
        self.name = name
        self._log = log
        self._fails_at = fails_at

    async def __aenter__(self) -> Self:
        self._log.append(f"+{self.name}")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._log.append(f"-{self.name}")

    async def sample(self) -> Sample:
        self._log.append(self.name)
        if self._fails_at is not None and self._log.count(self.name) > self._fails_at:
            raise CheckFailedError("the guest is lost")
        return Sample(blackout_ns=MS)


async def test_subjects_live_together_and_each_round_begins_with_another() -> None:
    log: list[str] = []
    told: list[str] = []
    subjects = [FakeSubject(name, log) for name in "ab"]
    samples = await sample_in_turn(subjects, 3, told.append)
    assert log == ["+a", "+b", "a", "b", "b", "a", "a", "b", "-b", "-a"]
    assert {name: len(own) for name, own in samples.items()} == {"a": 3, "b": 3}
    assert told[0] == "starting a"
    assert told[-1] == "round 3/3: b"


async def test_failed_hand_over_ends_everything_and_is_not_hidden() -> None:
    log: list[str] = []
    subjects = [FakeSubject("a", log), FakeSubject("b", log, fails_at=1)]
    with pytest.raises(CheckFailedError, match="the guest is lost"):
        await sample_in_turn(subjects, 5, lambda _what: None)
    assert log[-2:] == ["-b", "-a"]


def test_row_gives_milliseconds_phases_and_the_conditions() -> None:
    phase = Phase("save", Side.OLD, 0, MS // 4)
    samples = {
        "x": [
            Sample(2 * MS, 1 * MS, 3 * MS, (phase,)),
            Sample(4 * MS, None, 5 * MS, (phase,)),
        ]
    }
    row = update_row(Group.RAM, "x", samples, "kvm", GuestSpec(1 << 30, pages=7, prealloc=True))
    assert row.figures["blackout_ms"] == Summary(2, 2.0, 4.0, 4.0)
    assert row.figures["switch_ms"] == Summary(1, 1.0, 1.0, 1.0)  # the other one was hidden
    assert row.figures["downtime_ms"].p50 == 3.0
    assert row.phases_ms == {"save": 0.25}
    assert row.conditions["RAM"] == "1G memfd, every page allocated and mapped"
    assert row.conditions["guest"] == "built-in, stamping 7 pages"


def test_floor_has_no_downtime_because_it_has_no_events() -> None:
    row = update_row(Group.HEADLINE, "f", {"f": [Sample(MS)]}, "kvm", GuestSpec(1 << 28))
    assert set(row.figures) == {"blackout_ms"}


@pytest.mark.parametrize(
    ("p50", "text"), [(0.512, "3: 0.51 / 1.02 / 1.54"), (33787.4, "3: 33787 / 67575 / 101362")]
)
def test_figure_has_as_many_decimals_as_make_sense(p50: float, text: str) -> None:
    assert figure_text(Summary(3, p50, p50 * 2, p50 * 3)) == text


def test_end_shows_each_target_with_its_figure_and_what_was_left_out() -> None:
    out = io.StringIO()
    view = BenchView(Console(file=out, width=160))
    group = GroupResult(
        (), (Verdict("slope", "at most 0.05", "+0.07", met=False),), ("touched RAM of 8G: no room",)
    )
    view.show_group(group)
    view.show_end(BenchResult({"clock": "CLOCK_MONOTONIC"}, (group,)))
    text = out.getvalue()
    assert "left out: touched RAM of 8G: no room" in text
    assert "NOT met  slope: +0.07; target: at most 0.05" in text
    assert "clock: CLOCK_MONOTONIC" in text


@pytest.mark.parametrize(
    ("met", "check", "status"), [(False, True, 1), (False, False, 0), (True, True, 0)]
)
def test_missed_target_fails_the_run_only_with_check(
    monkeypatch: pytest.MonkeyPatch, met: bool, check: bool, status: int
) -> None:
    async def measure(*_arguments: object) -> GroupResult:
        return GroupResult((), (Verdict("x", "y", "z", met=met),))

    monkeypatch.setattr(bench, "available_accels", lambda _vcpus: ("unicorn",))
    monkeypatch.setattr(bench, "GROUPS", {Group.RAM: measure})
    words = ["--only", "ram", *(["--check"] if check else [])]
    assert bench.main(words) == status


def test_accelerator_that_is_not_here_is_a_wrong_option(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "available_accels", lambda _vcpus: ("unicorn",))
    assert bench.main(["--accel", "kvm"]) == 2
    assert "usable: unicorn" in capsys.readouterr().err


def test_failed_measurement_is_status_1_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def measure(*_arguments: object) -> GroupResult:
        raise CheckFailedError("the guest is lost")

    monkeypatch.setattr(bench, "available_accels", lambda _vcpus: ("unicorn",))
    monkeypatch.setattr(bench, "GROUPS", {Group.RAM: measure})
    assert bench.main(["--only", "ram"]) == 1
    assert "measuring failed: the guest is lost" in capsys.readouterr().err
