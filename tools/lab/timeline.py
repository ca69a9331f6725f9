"""The phases of a blackout, from the marks that both processes set; pure.

`x-query-cpr-timeline` gives each side's marks on CLOCK_MONOTONIC, which is one clock for the whole
host, so the two lists merge into one story. A phase is the time from the mark before to its own.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


class Side(enum.Enum):
    """Whose mark it is."""

    OLD = "old"
    NEW = "new"


@dataclass(frozen=True, slots=True)
class Mark:
    """Something happened at `t_ns` (CLOCK_MONOTONIC)."""

    t_ns: int
    what: str


@dataclass(frozen=True, slots=True)
class PhaseDefinition:
    """A phase ends with a mark of one side; it begins where the phase before it ended."""

    name: str
    side: Side
    mark: str


@dataclass(frozen=True, slots=True)
class Phase:
    """One measured phase."""

    name: str
    side: Side
    start_ns: int
    end_ns: int

    @property
    def length_ns(self) -> int:
        """How long it took."""
        return self.end_ns - self.start_ns


STOP_PHASE = "stop vCPUs"
RUN_PHASE = "take lease, run"
BLACKOUT_START = PhaseDefinition("", Side.OLD, "kick")
# In the order of a successful update. A build that sets fewer marks shows fewer, longer phases.
BLACKOUT_PHASES = (
    PhaseDefinition(STOP_PHASE, Side.OLD, "vcpus-stopped"),
    PhaseDefinition("save", Side.OLD, "saved"),
    PhaseDefinition("send", Side.OLD, "state-sent"),
    PhaseDefinition("receive", Side.NEW, "state-received"),
    PhaseDefinition("load", Side.NEW, "loaded"),
    PhaseDefinition("acknowledge", Side.OLD, "LOADED->COMMITTED"),
    PhaseDefinition("commit", Side.NEW, "COMMIT->TAKING"),
    PhaseDefinition(RUN_PHASE, Side.NEW, "LEASE_TAKEN->DONE"),
)


def parse_marks(reply: object) -> tuple[Mark, ...]:
    """Read the marks of a `x-query-cpr-timeline` reply; ValueError when it has another shape."""
    if not isinstance(reply, list):
        raise ValueError(f"x-query-cpr-timeline: expected a list, got {type(reply).__name__}")
    marks = []
    for entry in reply:
        match entry:
            case {"t-ns": int(t_ns), "what": str(what)}:
                marks.append(Mark(t_ns, what))
            case _:
                raise ValueError(f"x-query-cpr-timeline: entry {entry!r} has no t-ns and what")
    return tuple(marks)


def blackout_phases(marks: Mapping[Side, Sequence[Mark]]) -> tuple[Phase, ...]:
    """Return the phases of one blackout; () when the old side did not mark its start."""
    times = {side: {mark.what: mark.t_ns for mark in marks[side]} for side in Side}
    start_ns = times[BLACKOUT_START.side].get(BLACKOUT_START.mark)
    if start_ns is None:
        return ()
    phases = []
    for definition in BLACKOUT_PHASES:
        end_ns = times[definition.side].get(definition.mark)
        if end_ns is None:
            continue
        phases.append(Phase(definition.name, definition.side, start_ns, max(start_ns, end_ns)))
        start_ns = max(start_ns, end_ns)
    return tuple(phases)
