"""Which traces are replayed: some that use every row of the table, and random ones of its heart."""

from __future__ import annotations

import random

from cpr.handshake import Event, Phase
from tools.lab.model.explore import Space, going_on
from tools.lab.model.mutants import RowKey, row_of
from tools.lab.model.steps import Walker
from tools.lab.model.world import Kind, Setup, Step, Who, World, owners

# Of a hundred random steps this many go wrong, if anything can.
_WRONG_PERCENT = 25


def covering(space: Space) -> list[list[Step]]:
    """Traces, each played out to its end, that use every row that the space uses."""
    walker = Walker(space.setup)
    left: dict[RowKey, World] = {row: worlds[0] for row, worlds in space.used.items()}
    traces: list[list[Step]] = []
    while left:
        row, world = left.popitem()
        first = next(step for step in walker.steps(world) if row_of(world, step) == row)
        trace = [*space.story(world), first]
        trace += _to_the_end(walker, first.world)
        at = space.setup.start()
        for step in trace:
            used = row_of(at, step)
            if used is not None:
                left.pop(used, None)
            at = step.world
        traces.append(trace)
    return traces


def _to_the_end(walker: Walker, world: World) -> list[Step]:
    """What happens if nothing more goes wrong."""
    steps: list[Step] = []
    while further := going_on(list(walker.steps(world))):
        steps.append(further[0])
        world = further[0].world
    return steps


def last_word(setup: Setup, seed: int) -> list[Step]:
    """A random trace of the last acknowledgement: COMMIT, RUNNING, and all that can happen to them.

    Calm until LOADED is on its way; then anything, except the death of the one process that could
    run the guest; in the end users ask (RETRY) until one process runs it.
    """
    rng = random.Random(seed)
    walker = Walker(setup)
    world = setup.start()
    steps: list[Step] = []
    while not _begun(world):
        step = next(step for step in walker.steps(world) if step.kind is Kind.PROGRESS)
        steps.append(step)
        world = step.world
    while following := [step for step in walker.steps(world) if not step.world.excused]:
        onward = going_on(following)
        wrong = [step for step in following if step.kind in {Kind.FAULT, Kind.DEADLINE}]
        asks = [step for step in following if step.kind is Kind.USER]
        if wrong and onward and rng.randrange(100) < _WRONG_PERCENT:
            step = rng.choice(wrong)
        elif onward:
            step = rng.choice(onward)
        elif asks and not owners(world, paused=setup.paused):
            step = rng.choice(asks)
        else:
            break
        steps.append(step)
        world = step.world
    return steps


def _begun(world: World) -> bool:
    return world.procs[Who.TARGET].phase is Phase.LOADED and Event.LOADED in world.to[Who.SOURCE]
