"""Which of the guest's gaps is reported as what."""

from __future__ import annotations

import pytest

from tools.lab.errors import CheckFailedError
from tools.lab.gaps import GapSpan, find_gaps
from tools.lab.timeline import Mark
from tools.lab.update import UpdateResult
from vmm.boot.guest.report import GAP_BUCKET_SHIFT, Gap, GuestReport, VcpuReport

RESULT = UpdateResult(
    started_ns=1000,
    completed_ns=1500,
    downtime_ns=90,
    old_marks=(Mark(1200, "kick"), Mark(1203, "vcpus-stopped")),
    new_marks=(Mark(1280, "loaded"), Mark(1290, "LEASE_TAKEN->DONE")),
)
STOPPED_NS = 77  # from vcpus-stopped to loaded: the guest certainly did nothing


def report(*gaps: tuple[int, int]) -> GuestReport:
    numbers = dict.fromkeys(VcpuReport.__dataclass_fields__, 0)
    noted = tuple(Gap(start_ns, end_ns, 1) for start_ns, end_ns in gaps)
    return GuestReport((VcpuReport(**(numbers | {"gaps": noted})),))  # type: ignore[arg-type]


def test_gap_over_the_stop_and_longer_gap_elsewhere_are_told_apart() -> None:
    before = report((700, 720), (100, 300))
    gaps = find_gaps(before, report((1020, 1180), (1195, 1300)), RESULT)
    assert gaps.blackout == GapSpan(1020, 1180)
    assert gaps.switchover == GapSpan(1195, 1300)
    assert gaps.background_ns == 20


def test_switchover_hidden_by_a_longer_gap_is_reported_as_the_blackout() -> None:
    gaps = find_gaps(report(), report((1310, 1480), (1285, 1292)), RESULT)
    assert gaps.switchover == gaps.blackout == GapSpan(1310, 1480)
    assert gaps.background_ns == 0


def test_longer_gap_just_outside_the_update_that_hides_all_of_it_is_reported_instead() -> None:
    assert find_gaps(report(), report((700, 990)), RESULT).blackout == GapSpan(700, 990)


@pytest.mark.parametrize(
    "gap",
    [
        (1200, 1200 + STOPPED_NS - 1),
        (2 << GAP_BUCKET_SHIFT, 3 << GAP_BUCKET_SHIFT),
    ],
    ids=["shorter than the stop", "long after"],
)
def test_guest_that_noted_no_gap_as_long_as_its_stop_has_a_damaged_report(
    gap: tuple[int, int],
) -> None:
    with pytest.raises(CheckFailedError, match="noted no such gap"):
        find_gaps(report(), report(gap), RESULT)
