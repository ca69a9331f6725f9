"""Every interleaving of two processes, with every crash, cut, delay, cancel and failed step.

The whole state space is walked (about 16,000 worlds with four faults). A failed property prints
the shortest story that leads to it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from cpr.handshake import TRANSITIONS, Action, Event, Phase, Role, Transition
from cpr.phases import TERMINAL_PHASES
from tests.protocol.model import (
    Kind,
    ModelError,
    Step,
    Table,
    World,
    feed,
    inbox,
    initial,
    owners,
    side_of,
    steps,
)

FAULTS = 4


@dataclass(frozen=True)
class Space:
    """All reachable worlds, and how each was first reached."""

    came_from: dict[World, tuple[World, str] | None]
    table: Table

    def story(self, world: World) -> str:
        """The shortest sequence of steps to `world`."""
        labels: list[str] = []
        here = world
        while (before := self.came_from[here]) is not None:
            here, label = before
            labels.append(label)
        return "\n".join([*reversed(labels), str(world)])

    def going_on(self, world: World) -> list[Step]:
        """What happens if nothing more goes wrong: work first, deadlines only when all wait."""
        following = list(steps(world, self.table))
        working = [step for step in following if step.kind is Kind.PROGRESS]
        return working or [step for step in following if step.kind is Kind.DEADLINE]

    def ends(self) -> Iterator[World]:
        """Worlds in which nothing more happens by itself."""
        return (world for world in self.came_from if not self.going_on(world))


def explore(start: World, table: Table = TRANSITIONS) -> Space:
    """Breadth first; a ModelError gets the story that led to it."""
    space = Space({start: None}, table)
    waiting = deque([start])
    while waiting:
        world = waiting.popleft()
        try:
            for step in steps(world, table):
                if step.world not in space.came_from:
                    space.came_from[step.world] = (world, step.label)
                    waiting.append(step.world)
        except ModelError as error:
            raise ModelError(f"{error}\n{space.story(world)}") from None
    return space


def check_somebody_has_the_guest(space: Space) -> None:
    """While a process lives that could have it, the guest ends with exactly one of them."""
    for world in space.ends():
        alive = world.source.alive or world.target.alive
        if alive and not world.excused and len(owners(world)) != 1:
            raise ModelError(f"nobody has the guest\n{space.story(world)}")


@pytest.fixture(scope="module", params=[False, True], ids=["running guest", "paused guest"])
def space(request: pytest.FixtureRequest) -> Space:
    # Exploring is itself the test of P2: a second runner, or old CPU state, is a ModelError.
    return explore(initial(faults=FAULTS, paused=request.param))


def test_never_two_owners(space: Space) -> None:
    for world in space.came_from:
        assert len(owners(world)) <= 1, space.story(world)


def test_somebody_has_the_guest_in_the_end(space: Space) -> None:
    check_somebody_has_the_guest(space)


def test_without_faults_the_target_can_get_it_and_nothing_is_left_over() -> None:
    calm = explore(initial(faults=0))
    ends = list(calm.ends())
    assert {(end.source.phase, end.target.phase) for end in ends} == {
        (Phase.DONE, Phase.DONE),
        (Phase.ABORTED, Phase.ABORTED),  # deadlines may pass at any time
    }
    assert all(not inbox(end, role) for end in ends for role in Role)


def test_both_sides_agree_in_the_end(space: Space) -> None:
    for world in space.ends():
        if world.source.alive and world.target.alive:
            source, target = world.source.phase, world.target.phase
            agree = source is target and source in TERMINAL_PHASES
            # Only a cut link leaves one side undecided: the other lives and does not say anything.
            doubt = Phase.UNDECIDED in {source, target} and world.cut
            assert agree or doubt, space.story(world)


def test_asking_again_settles_an_undecided_side_once_the_guest_ran() -> None:
    space = explore(initial(faults=1))
    asked = 0
    for world in space.ends():
        for role in Role:
            if side_of(world, role).alive and side_of(world, role).phase is Phase.UNDECIDED:
                ends = _ends_after(space, feed(world, role, Event.RETRY, TRANSITIONS))
                settled = {side_of(end, role).phase for end in ends} <= TERMINAL_PHASES
                assert settled, space.story(world)
                assert all(len(owners(end)) == 1 for end in ends), space.story(world)
                asked += 1
    assert asked


def test_a_process_in_done_as_target_had_the_lease(space: Space) -> None:
    for world in space.came_from:
        if world.target.phase is Phase.DONE and world.target.alive:
            assert world.lease is Role.TARGET, space.story(world)


def test_a_source_that_is_done_never_runs_again(space: Space) -> None:
    for world in space.came_from:
        if world.source.phase is Phase.DONE:
            assert not world.source.running, space.story(world)


# ---- the checker itself: it must find what we know to be wrong -----------------------------------


def _with(role: Role, phase: Phase, event: Event, step: Transition) -> Table:
    table = {
        role_: {phase_: dict(row) for phase_, row in rows.items()}
        for role_, rows in TRANSITIONS.items()
    }
    table[role][phase][event] = step
    return table


_RESUME_LAST = Transition(Phase.ABORTED, (Action.SEND_ABORT, Action.RESUME_GUEST, Action.REPORT))
_RESUME_UNASKED = Transition(Phase.ABORTED, (Action.RESUME_GUEST, Action.REPORT))
_GIVE_UP = Transition(Phase.ABORTED, (Action.REPORT,))
_RUN_UNASKED = Transition(Phase.DONE, (Action.RUN_GUEST, Action.COMPLETE))


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        (_with(Role.SOURCE, Phase.STATE_SENT, Event.DEADLINE, _RESUME_LAST), "nobody has"),
        (_with(Role.SOURCE, Phase.RECLAIMING, Event.RECLAIMED, _RESUME_LAST), "nobody has"),
        (_with(Role.SOURCE, Phase.COMMITTED, Event.LOST, _RESUME_UNASKED), "without the lease"),
        (_with(Role.SOURCE, Phase.COMMITTED, Event.LOST, Transition(Phase.DONE)), "nobody has"),
        (_with(Role.TARGET, Phase.LOADED, Event.LOST, _RUN_UNASKED), "without the lease"),
        (_with(Role.TARGET, Phase.LOADED, Event.PEER_DIED, _GIVE_UP), "nobody has"),
        (_with(Role.TARGET, Phase.TAKING, Event.LEASE_BUSY, _GIVE_UP), "nobody has"),
        (_with(Role.TARGET, Phase.ORPHAN_LAST, Event.LEASE_BUSY, _GIVE_UP), "nobody has"),
        (_with(Role.TARGET, Phase.ORPHANED, Event.EPOCH_MOVED, _RUN_UNASKED), "lease|older"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_table_is_found(table: Table, complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint):
        check_somebody_has_the_guest(explore(initial(faults=2), table))


def test_a_message_that_the_peer_does_not_expect_is_found() -> None:
    silly = _with(
        Role.SOURCE,
        Phase.HELLO_SENT,
        Event.ACCEPT,
        Transition(Phase.FDS_SENT, (Action.SEND_STATE,)),
    )
    with pytest.raises(ModelError, match="STATE violates the protocol in phase ACCEPTED"):
        explore(initial(faults=0), silly)


def _ends_after(space: Space, world: World) -> list[World]:
    ends: list[World] = []
    waiting: list[World] = [world]
    seen: set[World] = set()
    following: Callable[[World], list[Step]] = space.going_on
    while waiting:
        here = waiting.pop()
        if here in seen:
            continue
        seen.add(here)
        further = following(here)
        waiting += [step.world for step in further]
        if not further:
            ends.append(here)
    return ends
