"""The whole state space, breadth first, and what must hold in it.

A failed property raises ModelError with the shortest story that leads to it.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

from cpr.handshake import Event, Phase
from cpr.phases import TERMINAL_PHASES, Role
from tools.lab.model.steps import Walker
from tools.lab.model.world import Fault, Kind, ModelError, Setup, Step, Who, World, owners

Origin = tuple[World, Step] | None


@dataclass(frozen=True)
class Space:
    """All reachable worlds, and how each was first reached."""

    setup: Setup
    came_from: dict[World, Origin]
    depth: int  # steps of the longest shortest story
    steps: int  # how many steps there are between the worlds
    ends: int
    seconds: float
    used: dict[tuple[Role, Phase, Event], list[World]]  # row of the table -> worlds that may use it

    onward: dict[World, tuple[World, ...]]  # where it goes when nothing more goes wrong

    def uses(self, row: tuple[Role, Phase, Event]) -> list[World]:
        """Worlds in which the row can be used next, the nearest first."""
        return self.used.get(row, [])

    def waits(self, place: tuple[Role, Phase] | None) -> list[World]:
        """Worlds in which a process is in that phase, the nearest first."""
        return [
            world
            for world in self.came_from
            if any((Who(who).role, proc.phase) == place for who, proc in enumerate(world.procs))
        ]

    def story(self, world: World) -> list[Step]:
        """The shortest sequence of steps to `world`."""
        return story_of(self.came_from, world)


def story_of(came_from: dict[World, Origin], world: World) -> list[Step]:
    """The steps from the start to `world`."""
    steps: list[Step] = []
    while (origin := came_from[world]) is not None:
        world, step = origin
        steps.append(step)
    return steps[::-1]


def explore(setup: Setup) -> Space:
    """Walk everything; raises ModelError, with its story, for the first thing that must not be."""
    walker = Walker(setup)
    began = time.perf_counter()
    start = setup.start()
    came_from: dict[World, Origin] = {start: None}
    depths = {start: 0}
    waiting = deque([start])
    used: dict[tuple[Role, Phase, Event], list[World]] = {}
    onward: dict[World, tuple[World, ...]] = {}
    depth = steps = ends = 0
    while waiting:
        world = waiting.popleft()
        depth = depths.pop(world)
        try:
            walker.check(world)
            following = list(walker.steps(world))
            steps += len(following)
            for step in following:
                if step.told is not None and step.who is not None:
                    row = (step.who.role, world.procs[step.who].phase, step.told)
                    used.setdefault(row, []).append(world)
                if step.world not in came_from:
                    came_from[step.world] = (world, step)
                    depths[step.world] = depth + 1
                    waiting.append(step.world)
            further = going_on(following)
            onward[world] = tuple(step.world for step in further)
            check_onward(walker, world, further)
            if not further:
                ends += 1
                check_end(walker, world, following)
        except ModelError as error:
            raise ModelError(f"{error}\n{tell(setup, story_of(came_from, world), world)}") from None
    return Space(setup, came_from, depth, steps, ends, time.perf_counter() - began, used, onward)


def tell(setup: Setup, story: list[Step], world: World) -> str:
    """A story for a person."""
    lines = [f"in '{setup.name}' after {len(story)} steps:"]
    lines += [f"  {label_of(step)}" for step in story]
    return "\n".join([*lines, f"  {world}"])


def label_of(step: Step) -> str:
    """`TARGET < HELLO`."""
    return f"{step.who.name} {step.label}" if step.who is not None else step.label


def going_on(following: list[Step]) -> list[Step]:
    """What happens if nothing more goes wrong: work first, deadlines only when all wait."""
    working = [step for step in following if step.kind is Kind.PROGRESS]
    return working or [step for step in following if step.kind is Kind.DEADLINE]


def check_onward(walker: Walker, world: World, further: list[Step]) -> None:
    """A guest waits for a deadline only where something is broken or a third process interferes."""
    setup = walker.setup
    if not further or further[0].kind is not Kind.DEADLINE or setup.lies or setup.third:
        return
    if not world.broken and not any(proc.deaf for proc in world.procs):
        raise ModelError("only a deadline gets the update on, though everything can be told")


def check_end(walker: Walker, world: World, following: list[Step]) -> None:
    """Nothing more happens by itself here: somebody has the guest, or a user can settle it."""
    if walker.setup.lies:
        return
    pair = world.procs[:2]
    if any(proc.alive for proc in pair) and not world.excused:
        _check_owner(walker, world, following)
    if all(proc.alive for proc in pair) and not world.disturbed:
        phases = {proc.phase for proc in pair}
        if len(phases) == 2 and Phase.UNDECIDED not in phases:
            raise ModelError("the two sides do not agree how it ended")
        if not walker.setup.third and Phase.UNDECIDED in phases:
            raise ModelError("a side is undecided though nothing was lost")
    for who, proc in enumerate(pair):
        through = proc.phase in TERMINAL_PHASES | {Phase.UNDECIDED}
        if proc.alive and not through:
            _check_waits_for_somebody(world, Who(who))


def _check_owner(walker: Walker, world: World, following: list[Step]) -> None:
    have = owners(world, paused=walker.setup.paused)
    asks = [step for step in following if step.kind is Kind.USER]
    if have:
        for step in asks:
            _check_answer(walker, step)
    elif not asks:
        raise ModelError("nobody has the guest, and nothing that a user can do changes that")
    elif not any(_brings_the_guest_back(walker, step) for step in asks):
        raise ModelError("nobody has the guest, whichever side the user asks")


def _check_waits_for_somebody(world: World, who: Who) -> None:
    """Who waits without a deadline waits for a living peer whose end it will hear of."""
    peer = world.procs[1 - who]
    if not peer.alive and world.procs[who].knows_death:
        raise ModelError(f"{who.name} waits for a dead peer")


def _check_answer(walker: Walker, ask: Step) -> None:
    """RETRY settles what is settled: who asked knows it then, and nothing else changes."""
    assert ask.who is not None
    for world in _ends_after(walker, ask.world):
        if len(owners(world, paused=walker.setup.paused)) != 1:
            raise ModelError(f"nobody has the guest after {label_of(ask)}")
        phase = world.procs[ask.who].phase
        if not walker.setup.paused and phase not in TERMINAL_PHASES:
            raise ModelError(f"{label_of(ask)} does not settle what is settled")


def _brings_the_guest_back(walker: Walker, ask: Step) -> bool:
    ends = _ends_after(walker, ask.world)
    return all(len(owners(world, paused=walker.setup.paused)) == 1 for world in ends)


def _ends_after(walker: Walker, start: World) -> list[World]:
    """Where it ends when nothing more goes wrong."""
    ends: list[World] = []
    waiting, seen = [start], {start}
    while waiting:
        world = waiting.pop()
        further = going_on(list(walker.steps(world)))
        if not further:
            ends.append(world)
        for step in further:
            if step.world not in seen:
                seen.add(step.world)
                waiting.append(step.world)
    return ends


def check_calm(setup: Setup) -> None:
    """With nothing going wrong and time enough, the target gets the guest, in every order."""
    walker = Walker(setup)
    waiting, seen, ended = [setup.start()], {setup.start()}, False
    while waiting:
        world = waiting.pop()
        walker.check(world)
        working = [step for step in walker.steps(world) if step.kind is Kind.PROGRESS]
        done = all(proc.phase is Phase.DONE for proc in world.procs)
        ended |= done
        if not working and not done:
            raise ModelError(f"an undisturbed update ends otherwise than in DONE: {world}")
        for step in working:
            if step.world not in seen:
                seen.add(step.world)
                waiting.append(step.world)
    if not ended:
        raise ModelError("an undisturbed update never ends")


def check_it_ends(space: Space) -> None:
    """No livelock: work and deadlines, taken as often as they come, lead to an end."""
    before: dict[World, list[World]] = {}
    left = {world: len(further) for world, further in space.onward.items()}
    for world, further in space.onward.items():
        for after in further:
            before.setdefault(after, []).append(world)
    ended = [world for world, count in left.items() if not count]
    while ended:
        world = ended.pop()
        del left[world]
        for earlier in before.get(world, ()):
            left[earlier] -= 1
            if not left[earlier]:
                ended.append(earlier)
    for world in left:
        raise ModelError(f"it never ends\n{tell(space.setup, space.story(world), world)}")


def check_everything(setup: Setup) -> Space:
    """Every property of the setup's whole space. Raises ModelError."""
    space = explore(setup)
    check_it_ends(space)
    return space


ALL_SETUPS = (
    Setup("running guest"),
    Setup("paused guest", paused=True, prompt=True),
    Setup("a third process", third=True, faults=frozenset({Fault.DEATH, Fault.CUT})),
    Setup(
        "a third process, paused guest",
        paused=True, prompt=True, third=True, faults=frozenset({Fault.DEATH, Fault.CUT}),
    ),
    Setup("anybody says anything", lies=True, prompt=True, faults=frozenset({Fault.DEATH})),
)  # fmt: skip
