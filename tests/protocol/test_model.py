"""Every interleaving of the processes, with every crash, cut, delay, cancel and failed step.

A failed property prints the shortest story that leads to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from cpr.handshake import TRANSITIONS, Action, Event, Phase, Role, Transition
from cpr.phases import TERMINAL_PHASES
from tools import model
from tools.lab.model.explore import (
    ALL_SETUPS,
    check_calm,
    check_everything,
    check_it_ends,
    explore,
)
from tools.lab.model.mutants import row_of
from tools.lab.model.world import Fault, ModelError, Setup, Subject, Table, Who, World, owners

RUNNING, PAUSED, *_THIRD, CHAOS = ALL_SETUPS
ONE_DEATH = Setup("one may die", faults=frozenset({Fault.DEATH}))


# The smallest that has everything in it; `cpr-model` looks at all of them, in .ci/run too.
USUAL = PAUSED


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "setup",
    [
        pytest.param(setup, id=setup.name, marks=() if setup is USUAL else pytest.mark.long)
        for setup in ALL_SETUPS
    ],
)
def test_every_property_holds_in_every_state(
    setup: Setup, record_property: Callable[[str, object], None]
) -> None:
    space = check_everything(setup)
    record_property("states", len(space.came_from))
    record_property("longest_trace", space.depth)
    assert space.ends
    assert space.depth > 50  # the calm story alone has more steps


def test_an_undisturbed_update_always_ends_with_the_target_running() -> None:
    check_calm(Setup("calm", faults=frozenset()))


@pytest.mark.long
def test_every_row_of_the_table_is_used() -> None:
    spaces = [explore(setup) for setup in (RUNNING, CHAOS)]
    used = {row for space in spaces for row, worlds in space.used.items() if any(worlds)}
    rows = {
        (role, phase, event)
        for role, table in TRANSITIONS.items()
        for phase, row in table.items()
        for event in row
    }
    assert {name_of(row) for row in rows - used} == set(NEVER_USED)


# Rows that no course of an update uses, and why they stand in the table.
NEVER_USED = {
    "source DONE FAILURE": "Driver.fail() is harmless after the end, whichever end",
    "target LOADING_ORPHAN VIOLATION": "everything was read before the way into this phase",
    "target DONE FAILURE": "Driver.fail() is harmless after the end, whichever end",
}


def name_of(row: tuple[Role, Phase, Event]) -> str:
    return f"{row[0].value} {row[1].name} {row[2].name}"


def test_a_source_that_is_done_never_runs_again() -> None:
    for world in explore(ONE_DEATH).came_from:
        source = world.procs[Who.SOURCE]
        assert not (source.phase is Phase.DONE and source.running)


def test_the_story_of_a_state_can_be_walked_again() -> None:
    space = explore(ONE_DEATH)
    last: World = list(space.came_from)[-1]
    story = space.story(last)
    assert len(story) == space.depth
    assert story[-1].world == last
    assert row_of(space.setup.start(), story[0]) == (Role.SOURCE, Phase.IDLE, Event.START)


def test_the_command_prints_how_much_was_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    assert model.main(["--only", CHAOS.name]) == 0
    out = capsys.readouterr().out
    assert "states" in out
    assert "longest trace" in out


# ---- the checker itself: it must find what we know to be wrong -----------------------------------


def wrong(role: Role, phase: Phase, event: Event, step: Transition) -> Setup:
    rows = {
        role_: {at: dict(row) for at, row in table.items()} for role_, table in TRANSITIONS.items()
    }
    rows[role][phase][event] = step
    table: Table = rows
    faults = frozenset({Fault.DEATH, Fault.CUT})
    return Setup("wrong", faults=faults, subject=Subject(table=table))


_RESUME_LAST = Transition(Phase.ABORTED, (Action.SEND_ABORT, Action.RESUME_GUEST, Action.REPORT))
_RESUME_UNASKED = Transition(Phase.ABORTED, (Action.RESUME_GUEST, Action.REPORT))
_GIVE_UP = Transition(Phase.ABORTED, (Action.REPORT,))
_RUN_UNASKED = Transition(Phase.DONE, (Action.RUN_GUEST, Action.COMPLETE))


@pytest.mark.parametrize(
    ("setup", "complaint"),
    [
        (wrong(Role.SOURCE, Phase.STATE_SENT, Event.DEADLINE, _RESUME_LAST), "before it is true"),
        (wrong(Role.SOURCE, Phase.COMMITTED, Event.LOST, _RESUME_UNASKED), "without the lease"),
        (wrong(Role.SOURCE, Phase.COMMITTED, Event.LOST, Transition(Phase.DONE)), "DONE"),
        (wrong(Role.TARGET, Phase.LOADED, Event.LOST, _RUN_UNASKED), "without the lease"),
        (wrong(Role.TARGET, Phase.LOADED, Event.PEER_DIED, _GIVE_UP), "nobody has"),
        (wrong(Role.TARGET, Phase.ORPHAN_LAST, Event.LEASE_BUSY, _GIVE_UP), "nobody has"),
        (wrong(Role.TARGET, Phase.ORPHANED, Event.EPOCH_MOVED, _RUN_UNASKED), "lease|older"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_table_is_found(setup: Setup, complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint):
        explore(setup)


def test_an_update_that_never_ends_is_found() -> None:
    again = Transition(Phase.REHEARSING, (Action.REHEARSE,))
    setup = replace(wrong(Role.SOURCE, Phase.REHEARSING, Event.PREPARED, again), faults=frozenset())
    with pytest.raises(ModelError, match="never ends"):
        check_it_ends(explore(setup))


def test_a_message_that_the_peer_does_not_expect_is_found() -> None:
    silly = Transition(Phase.FDS_SENT, (Action.SEND_COMMIT,))
    with pytest.raises(ModelError, match="COMMIT before it is true"):
        explore(wrong(Role.SOURCE, Phase.HELLO_SENT, Event.ACCEPT, silly))


def test_somebody_has_the_guest_at_every_end_that_is_settled() -> None:
    space = explore(ONE_DEATH)
    for world, further in space.onward.items():
        settled = all(proc.phase in TERMINAL_PHASES for proc in world.procs if proc.alive)
        alive = any(proc.alive for proc in world.procs)
        if not further and settled and alive and not world.excused:
            assert len(owners(world, paused=False)) == 1
