"""Results of updates that never happened, for tests of what is shown."""

from __future__ import annotations

from tools.lab.argv import GuestSpec
from tools.lab.gaps import GapSpan, UpdateGaps
from tools.lab.procfs import ProcessCounters
from tools.lab.results import ChainResult, UpdateRecord
from tools.lab.timeline import Mark

MS = 1_000_000


def make_record(
    number: int, blackout_ms: float, *, accel: str = "kvm", fds: int = 9
) -> UpdateRecord:
    start_ns = number * 1000 * MS
    stop_ns = start_ns + 20 * MS
    span = GapSpan(stop_ns, stop_ns + int(blackout_ms * MS))
    return UpdateRecord(
        number=number,
        old_accel=accel,
        new_accel=accel,
        started_ns=start_ns,
        completed_ns=start_ns + 40 * MS,
        gaps=UpdateGaps(span, span, MS // 10),
        downtime_ns=MS,
        sequence_before=number,
        sequence_after=number + 1,
        old_marks=(
            Mark(stop_ns, "kick"),
            Mark(stop_ns + MS // 4, "vcpus-stopped"),
            Mark(stop_ns + MS // 2, "saved"),
        ),
        new_marks=(Mark(stop_ns + MS, "loaded"),),
        counters=ProcessCounters({"socket": fds}, 3, 100 + 2 * number, 50 << 20, 0),
    )


def make_chain(
    blackouts_ms: list[float], *, name: str = "kvm", failure: str | None = None, fd_growth: int = 0
) -> ChainResult:
    records = tuple(
        make_record(number, blackout_ms, accel=name, fds=9 + fd_growth * number)
        for number, blackout_ms in enumerate(blackouts_ms, start=1)
    )
    return ChainResult(
        name=name,
        planned=len(blackouts_ms) + (failure is not None),
        records=records,
        guest=GuestSpec(256 << 20),
        seed=1,
        ram_verifications=1,
        heartbeats=77,
        replay="cpr-drill --seed 1",
        failure=failure,
    )
