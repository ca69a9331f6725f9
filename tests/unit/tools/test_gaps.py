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
    old_marks=(Mark(1200, "kick"), Mark(1210, "saved")),
    new_marks=(Mark(1290, "LEASE_TAKEN->DONE"),),
)


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


def test_update_hidden_between_two_longer_pauses_is_reported_as_the_longer_of_them() -> None:
    gaps = find_gaps(report(), report((100, 900), (1600, 2100)), RESULT)
    assert gaps.blackout == GapSpan(100, 900)


def test_guest_that_noted_no_gap_has_a_damaged_report() -> None:
    long_ago_ns = RESULT.started_ns - (2 << GAP_BUCKET_SHIFT)
    with pytest.raises(CheckFailedError, match="no gap"):
        find_gaps(report(), report((long_ago_ns - 100, long_ago_ns)), RESULT)
