"""Marks of two processes become the phases of one blackout."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tools.lab.timeline import Mark, Side, blackout_phases, parse_marks


def marks(*pairs: tuple[int, str]) -> list[Mark]:
    return [Mark(t_ns, what) for t_ns, what in pairs]


OLD = marks((5, "PREPARED->STOPPING"), (10, "kick"), (14, "vcpus-stopped"), (20, "saved"))


def test_phases_of_both_sides_follow_one_another_without_a_hole() -> None:
    old = [*OLD, *marks((22, "state-sent"), (40, "LOADED->COMMITTED"))]
    new = marks((25, "state-received"), (33, "loaded"), (45, "LEASE_TAKEN->DONE"))
    phases = blackout_phases({Side.OLD: old, Side.NEW: new})
    assert [(phase.name, phase.side, phase.length_ns) for phase in phases] == [
        ("stop vCPUs", Side.OLD, 4),
        ("save", Side.OLD, 6),
        ("send", Side.OLD, 2),
        ("receive", Side.NEW, 3),
        ("load", Side.NEW, 8),
        ("acknowledge", Side.OLD, 7),
        ("take lease, run", Side.NEW, 5),
    ]
    assert all(a.end_ns == b.start_ns for a, b in itertools.pairwise(phases))


def test_a_mark_set_late_by_a_busy_process_makes_no_negative_phase() -> None:
    phases = blackout_phases(
        {Side.OLD: [*OLD, Mark(50, "state-sent")], Side.NEW: marks((30, "state-received"))}
    )
    assert [phase.length_ns for phase in phases] == [4, 6, 30, 0]


def test_without_marks_there_are_no_phases() -> None:
    assert blackout_phases({Side.OLD: [], Side.NEW: []}) == ()


def test_reply_of_the_query_command_is_read() -> None:
    assert parse_marks([{"t-ns": 5, "what": "kick"}]) == (Mark(5, "kick"),)


@pytest.mark.parametrize("reply", [{}, "x", [1], [{"t-ns": "5", "what": "kick"}], [{"t-ns": 5}]])
def test_reply_of_another_shape_is_refused(reply: Any) -> None:
    with pytest.raises(ValueError, match="x-query-cpr-timeline"):
        parse_marks(reply)
