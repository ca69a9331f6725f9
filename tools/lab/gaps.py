"""What the guest felt: three gaps in its own progress around one update; pure.

* **blackout**: the longest gap anywhere between the `migrate` command and the last event. This is
  the project's measure; it includes what the preparation costs the guest.
* **switchover**: the gap over the stop itself, in which the state goes from process to process.
* **background**: the longest gap in a time as long as the update, just before it. On a busy machine
  the host takes the vCPU away without any update, and this says how much.

The guest notes the longest gap of each 33.5 ms. If a longer one hides the switchover, the blackout
is reported for it: never less than what was felt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tools.lab.errors import CheckFailedError
from tools.lab.timeline import RUN_PHASE, STOP_PHASE, Mark, Side, blackout_phases
from tools.lab.update import UpdateResult
from vmm.boot.guest.report import GAP_BUCKET_SHIFT, Gap, GuestReport


@dataclass(frozen=True, slots=True)
class GapSpan:
    """A time without progress, CLOCK_MONOTONIC ns."""

    start_ns: int
    end_ns: int

    @property
    def length_ns(self) -> int:
        """How long."""
        return self.end_ns - self.start_ns


@dataclass(frozen=True, slots=True)
class UpdateGaps:
    """The three gaps of one update."""

    blackout: GapSpan
    switchover: GapSpan
    background_ns: int


def find_gaps(before: GuestReport, after: GuestReport, result: UpdateResult) -> UpdateGaps:
    """Read the gaps from the guest's reports before `migrate` and after the update.

    Raises CheckFailedError when the guest noted none, which a running guest cannot do.
    """
    window = switchover_window({Side.OLD: result.old_marks, Side.NEW: result.new_marks})
    stopped_ns = 0 if window is None else window[1] - window[0]
    longest = after.longest_gap(result.started_ns, result.completed_ns)
    if longest is None or longest.length_ns < stopped_ns:
        longest = after.longest_gap(*whole_buckets(result.started_ns, result.completed_ns))
    if longest is None or longest.length_ns < stopped_ns:
        raise CheckFailedError(
            f"the guest was stopped for {stopped_ns} ns but noted no such gap; it did not run by "
            "this clock, or its report is damaged"
        )
    at_stop = longest if window is None else after.longest_gap(*window)
    if at_stop is None or at_stop.length_ns < stopped_ns:
        at_stop = longest
    background = before.longest_gap(result.started_ns - result.total_ns, result.started_ns)
    return UpdateGaps(
        blackout=_span(longest),
        switchover=_span(at_stop),
        background_ns=0 if background is None else background.length_ns,
    )


def switchover_window(marks: Mapping[Side, Sequence[Mark]]) -> tuple[int, int] | None:
    """From all vCPUs stopped to the successor running; None without marks of both."""
    phases = {phase.name: phase for phase in blackout_phases(marks)}
    stop, run = phases.get(STOP_PHASE), phases.get(RUN_PHASE)
    return None if stop is None or run is None else (stop.end_ns, run.start_ns)


def whole_buckets(since_ns: int, until_ns: int) -> tuple[int, int]:
    """Widen a window to all the times whose gaps share an entry with it."""
    bucket_ns = 1 << GAP_BUCKET_SHIFT
    return since_ns // bucket_ns * bucket_ns, (until_ns // bucket_ns + 1) * bucket_ns


def _span(gap: Gap) -> GapSpan:
    return GapSpan(gap.start_ns, gap.end_ns)
