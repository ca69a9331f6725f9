"""Mutants: the table, the deadlines and the lease with one thing wrong; the checker must find each.

A mutant of one row differs from the real table only where that row is used. So the search starts
at worlds of the real space in which the row is about to be used for the first time, and goes on
under the mutant: the same verdict as a walk from the start, hundreds of times faster.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from cpr.handshake import DEADLINES, TRANSITIONS, Event, Phase, Transition
from cpr.phases import Role
from tools.lab.model.explore import (
    ALL_SETUPS,
    Space,
    check_calm,
    check_end,
    check_onward,
    explore,
    going_on,
)
from tools.lab.model.steps import Walker
from tools.lab.model.world import (
    ALL_GUARDS,
    Guard,
    ModelError,
    Setup,
    Step,
    Subject,
    Table,
    World,
)

RowKey = tuple[Role, Phase, Event]


class Change(Enum):
    """What is wrong with a row."""

    DELETED = "deleted"
    STAYS = "stays where it is"
    ABORTS = "goes to ABORTED"
    ENDS = "goes to DONE"
    DROPS = "leaves an action out"
    SWAPS = "does two actions in the other order"


@dataclass(frozen=True)
class Mutant:
    """One thing wrong. `row` is where it shows; None for the checks of the lease."""

    name: str
    subject: Subject
    row: RowKey | None = None
    phase: tuple[Role, Phase] | None = None  # of a missing deadline


def table_mutants() -> Iterator[Mutant]:
    """Each row of the table, wrong in every way that `Change` knows."""
    for role, rows in TRANSITIONS.items():
        for phase, row in rows.items():
            for event, transition in row.items():
                for what, wrong in _wrong(phase, transition):
                    name = f"{role.value} {phase.name} {event.name} {what}"
                    yield Mutant(
                        name, Subject(table=_with(role, phase, event, wrong)), (role, phase, event)
                    )


def deadline_mutants() -> Iterator[Mutant]:
    """Each wait without its deadline."""
    for role, phase in DEADLINES:
        rest = {key: name for key, name in DEADLINES.items() if key != (role, phase)}
        name = f"{role.value} {phase.name} has no deadline"
        yield Mutant(name, Subject(deadlines=rest), phase=(role, phase))


def guard_mutants() -> Iterator[Mutant]:
    """Each check of the lease and the epoch, left out."""
    for guard in Guard:
        yield Mutant(f"not true: {guard.value}", Subject(guards=ALL_GUARDS - {guard}))


def _wrong(phase: Phase, right: Transition) -> Iterator[tuple[str, Transition | None]]:
    yield Change.DELETED.value, None
    for change, to in (
        (Change.STAYS, phase),
        (Change.ABORTS, Phase.ABORTED),
        (Change.ENDS, Phase.DONE),
    ):
        if right.next is not to:
            yield change.value, Transition(to, right.actions)
    actions = right.actions
    for index, action in enumerate(actions):
        rest = (*actions[:index], *actions[index + 1 :])
        yield f"{Change.DROPS.value}: {action.name}", Transition(right.next, rest)
        if index:
            swapped = (*actions[: index - 1], action, actions[index - 1], *actions[index + 1 :])
            yield f"{Change.SWAPS.value}: {action.name} first", Transition(right.next, swapped)


def _with(role: Role, phase: Phase, event: Event, wrong: Transition | None) -> Table:
    rows = dict(TRANSITIONS[role])
    row = dict(rows[phase])
    if wrong is None:
        del row[event]
    else:
        row[event] = wrong
    rows[phase] = row
    return {**TRANSITIONS, role: rows}


def all_mutants() -> Iterator[Mutant]:
    """Everything that can be left out or turned round, one at a time."""
    yield from guard_mutants()
    yield from deadline_mutants()
    yield from table_mutants()


# Mutants that cannot be found because nothing changes, and why. One that is found fails the test.
_ASKED = "no row enters the guest without having asked for the lease: a second lock on one door"
_HARMLESS = "no local work outlasts DONE; the row keeps Driver.fail() harmless after either end"
_READ_OUT = "the loss and the death of the source are told after its last byte; a row must exist"
_LATER = "a source that does not hear of it gives up at its deadline"
EQUIVALENT = {
    f"not true: {Guard.ENTER_NEEDS_LEASE.value}": _ASKED,
    "source DONE FAILURE deleted": _HARMLESS,
    "source DONE FAILURE goes to ABORTED": _HARMLESS,
    "target DONE FAILURE deleted": _HARMLESS,
    "target DONE FAILURE goes to ABORTED": _HARMLESS,
    "target LOADED VIOLATION leaves an action out: SEND_FAILED": _LATER,
    "target LOADING_ORPHAN VIOLATION deleted": _READ_OUT,
    "target LOADING_ORPHAN VIOLATION goes to ABORTED": _READ_OUT,
    "target LOADING_ORPHAN VIOLATION goes to DONE": _READ_OUT,
}
# The worlds in which mutants are looked for, the one with a third process last: it is the largest.
HUNTING_GROUNDS = (
    *(setup for setup in ALL_SETUPS if not setup.third),
    *(setup for setup in ALL_SETUPS if setup.third and not setup.paused),
)


class Hunter:
    """Finds counterexamples for mutants; walks the real spaces once."""

    def __init__(self, setups: Sequence[Setup] = HUNTING_GROUNDS) -> None:
        self._setups = setups
        self._spaces: dict[Setup, Space] = {}

    def _space(self, setup: Setup) -> Space:
        if setup not in self._spaces:
            self._spaces[setup] = explore(setup)
        return self._spaces[setup]

    def counterexample(self, mutant: Mutant) -> str | None:
        """The complaint that kills the mutant, or None: it survived."""
        try:
            check_calm(Setup("calm", faults=frozenset(), subject=mutant.subject))
            for ground in self._setups:
                setup = replace(ground, subject=mutant.subject)
                if mutant.row is None and mutant.phase is None:
                    explore(setup)
                else:
                    self._search(self._space(ground), setup, mutant)
        except ModelError as error:
            return str(error).partition("\n")[0]
        return None

    def _search(self, space: Space, setup: Setup, mutant: Mutant) -> None:
        """Walk on from every first use of the row. Raises ModelError."""
        walker = Walker(setup)
        waiting: deque[World] = deque()
        seen: set[World] = set()
        for world in space.uses(mutant.row) if mutant.row else space.waits(mutant.phase):
            if world not in seen and not (mutant.row and _used(space, world, mutant.row)):
                seen.add(world)
                waiting.append(world)
                self._walk(walker, waiting, seen)

    @staticmethod
    def _walk(walker: Walker, waiting: deque[World], seen: set[World]) -> None:
        while waiting:
            world = waiting.popleft()
            walker.check(world)
            following = list(walker.steps(world))
            for step in following:
                if step.world not in seen:
                    seen.add(step.world)
                    waiting.append(step.world)
            further = going_on(following)
            check_onward(walker, world, further)
            if not further:
                check_end(walker, world, following)


def _used(space: Space, world: World, row: RowKey) -> bool:
    """Whether the shortest story to `world` uses the row before."""
    while (origin := space.came_from[world]) is not None:
        world, step = origin
        if row_of(world, step) == row:
            return True
    return False


def row_of(world: World, step: Step) -> RowKey | None:
    """The row of the table that `step`, taken in `world`, uses."""
    if step.told is None or step.who is None:
        return None
    return step.who.role, world.procs[step.who].phase, step.told
