"""A model of two processes, the kernel between them, and everything that can happen to them.

The handshake is the real table. The rest is the smallest honest model: two FIFO channels that can
be cut, a run lease that the kernel frees on death, an epoch, and one guest. An action is performed
in steps that other things can come between: taking the lease and reading the epoch are two steps,
raising the epoch and entering the guest are two. So a crash can be anywhere.

Time is not modelled: a deadline may pass whenever one is armed, which includes every slow and every
hanging process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum, auto
from typing import NamedTuple

from cpr.handshake import DEADLINES, TRANSITIONS, Action, Event, Phase, Role, Transition
from cpr.phases import MESSAGE_EVENTS, TERMINAL_PHASES

Table = Mapping[Role, Mapping[Phase, Mapping[Event, Transition]]]


class Micro(Enum):
    """Second halves of actions."""

    CHECK_EPOCH = auto()
    ENTER_GUEST = auto()


class Kind(Enum):
    """What a step is: work that goes on by itself, time, the user, or something going wrong."""

    PROGRESS = auto()
    USER = auto()
    DEADLINE = auto()
    FAULT = auto()


class Side(NamedTuple):
    """One process."""

    phase: Phase = Phase.IDLE
    todo: tuple[Action | Micro, ...] = ()
    results: tuple[Event, ...] = ()  # fed while performing, handled next
    pending: tuple[Event, ...] = ()  # asynchronous work that will end with this event
    alive: bool = True
    running: bool = False
    state_epoch: int = 0  # the epoch that our CPU state belongs to; 0 = none
    told_lost: bool = False
    told_died: bool = False


class World(NamedTuple):
    """Everything."""

    source: Side
    target: Side
    to_source: tuple[Event, ...] = ()
    to_target: tuple[Event, ...] = ()
    lease: Role | None = Role.SOURCE
    epoch: int = 1
    main_sent: bool = False
    sent_epoch: int = 0  # State.epoch
    cut: bool = False
    excused: bool = False  # the only process that had the guest died: nobody can run it
    faults_left: int = 0
    paused: bool = False  # the guest is paused: it has an owner, but is never entered


class Step(NamedTuple):
    """One thing that can happen next."""

    label: str
    kind: Kind
    world: World
    told: tuple[Role, Event] | None = None  # the event that a side is told in this step


class ModelError(AssertionError):
    """The table let something happen that must not."""


def initial(*, faults: int, paused: bool = False) -> World:
    """A source that has the guest, and a target that waits."""
    source = Side(running=not paused, state_epoch=1, pending=(Event.START,))
    return World(source, Side(), faults_left=faults, paused=paused)


def other(role: Role) -> Role:
    return Role.TARGET if role is Role.SOURCE else Role.SOURCE


def side_of(world: World, role: Role) -> Side:
    return world.source if role is Role.SOURCE else world.target


def put(world: World, role: Role, **changes: object) -> World:
    side = side_of(world, role)._replace(**changes)  # type: ignore[arg-type]
    return world._replace(source=side) if role is Role.SOURCE else world._replace(target=side)


def inbox(world: World, role: Role) -> tuple[Event, ...]:
    return world.to_source if role is Role.SOURCE else world.to_target


def _with_inbox(world: World, role: Role, messages: tuple[Event, ...]) -> World:
    if role is Role.SOURCE:
        return world._replace(to_source=messages)
    return world._replace(to_target=messages)


def owners(world: World) -> list[Role]:
    """Who has the guest: runs it, or (a paused guest) holds the lease with a current state."""
    if not world.paused:
        return [role for role in Role if side_of(world, role).running]
    return [role for role in Role if world.lease is role and _viable(world, role)]


def steps(world: World, table: Table = TRANSITIONS) -> Iterator[Step]:
    """Everything that can happen next under `table`."""
    for role in Role:
        if side_of(world, role).alive:
            yield from _steps_of(world, role, table)
            if world.faults_left:
                yield Step(f"{role.value} dies", Kind.FAULT, _crash(world, role))
    if world.faults_left and not world.cut:
        broken = world._replace(cut=True, faults_left=world.faults_left - 1)
        yield Step("link cut, all arrives", Kind.FAULT, broken)
        nothing = broken._replace(to_source=(), to_target=())
        yield Step("link cut, nothing arrives", Kind.FAULT, nothing)


def _steps_of(world: World, role: Role, table: Table) -> Iterator[Step]:
    side = side_of(world, role)
    name = role.value
    if side.todo:
        first = side.todo[0]
        for outcome, after in _perform(put(world, role, todo=side.todo[1:]), role, first):
            kind = Kind.FAULT if outcome == "fails" else Kind.PROGRESS
            yield Step(f"{name} {first.name} {outcome}".rstrip(), kind, after)
        return
    told: list[tuple[Event, Kind, World]] = []
    if side.results:
        rest = put(world, role, results=side.results[1:])
        told.append((side.results[0], Kind.PROGRESS, rest))
    else:
        told.extend(_arrivals(world, role, table))
    for event, kind, before in told:
        after = feed(before, role, event, table)
        yield Step(f"{name} < {event.name}", kind, after, (role, event))


def _arrivals(world: World, role: Role, table: Table) -> Iterator[tuple[Event, Kind, World]]:
    """Events that an idle process can be told now, and the world without them."""
    side = side_of(world, role)
    messages = inbox(world, role)
    peer_alive = side_of(world, other(role)).alive
    if messages:
        yield messages[0], Kind.PROGRESS, _with_inbox(world, role, messages[1:])
    elif (world.cut or not peer_alive) and not side.told_lost:
        yield Event.LOST, Kind.PROGRESS, put(world, role, told_lost=True)
    if not peer_alive and not side.told_died:
        yield Event.PEER_DIED, Kind.PROGRESS, put(world, role, told_died=True)
    row = table[role][side.phase]
    yield from _results_of_work(world, role, row)
    if (role, side.phase) in DEADLINES:
        yield Event.DEADLINE, Kind.DEADLINE, world
    if Event.RETRY in row:
        yield Event.RETRY, Kind.USER, world
    if world.faults_left and side.phase not in TERMINAL_PHASES:
        yield Event.CANCEL, Kind.FAULT, world._replace(faults_left=world.faults_left - 1)


def _results_of_work(
    world: World, role: Role, row: Mapping[Event, Transition]
) -> Iterator[tuple[Event, Kind, World]]:
    """What work in the background can end with; dropped when the update ended meanwhile."""
    side = side_of(world, role)
    for event in side.pending:
        if event not in row or (event is Event.MAIN_CHECKED and not world.main_sent):
            continue
        rest = put(world, role, pending=tuple(one for one in side.pending if one is not event))
        yield event, Kind.PROGRESS, rest
        if world.faults_left and Event.FAILURE in row and event is not Event.START:
            yield Event.FAILURE, Kind.FAULT, rest._replace(faults_left=world.faults_left - 1)


def feed(world: World, role: Role, event: Event, table: Table) -> World:
    """What `cpr.handshake.Handshake.receive` and `cpr.driver.Driver` do with `event`.

    Two correct processes never violate the protocol, so that is an error here.
    """
    side = side_of(world, role)
    row = table[role][side.phase]
    transition = row.get(event)
    if transition is None:
        why = "violates the protocol" if event in MESSAGE_EVENTS else "is not possible"
        raise ModelError(f"{role.value}: {event.name} {why} in phase {side.phase.name}")
    if event is Event.MAIN_SENT:
        world = world._replace(main_sent=True)
    return put(world, role, phase=transition.next, todo=side.todo + transition.actions)


def _perform(world: World, role: Role, action: Action | Micro) -> Iterator[tuple[str, World]]:
    """The possible outcomes of one step of an action."""
    side = side_of(world, role)
    if action in _SENDS:
        yield "", _send(world, role, _SENDS[action])
    elif action in _STARTS:
        yield "", put(world, role, pending=(*side.pending, _STARTS[action]))
    elif action in _RESULTS:
        good, bad = _RESULTS[action]
        state_epoch = world.sent_epoch if action is Action.LOAD_STATE else side.state_epoch
        yield "", put(world, role, results=(*side.results, good), state_epoch=state_epoch)
        if world.faults_left:
            spent = world._replace(faults_left=world.faults_left - 1)
            yield "fails", put(spent, role, results=(*side.results, bad))
    elif action in {Action.TAKE_LEASE, Action.RECLAIM_LEASE}:
        yield _take_lease(world, role)
    elif action is Micro.CHECK_EPOCH:
        yield _check_epoch(world, role)
    else:
        yield "", _with_guest(world, role, action)


def _with_guest(world: World, role: Role, action: Action | Micro) -> World:
    if action in {Action.RESUME_GUEST, Action.RUN_GUEST}:
        return _raise_epoch(world, role)
    if action is Micro.ENTER_GUEST:
        return _enter_guest(world, role)
    if action is Action.STOP_GUEST:
        return put(world, role, running=False, pending=(*world.source.pending, Event.SAVED))
    if action is Action.RELEASE_LEASE:
        return world._replace(lease=None)
    assert action in {Action.COMPLETE, Action.REPORT}, action
    return world


_SENDS: dict[Action | Micro, Event] = {
    Action.SEND_HELLO: Event.HELLO,
    Action.SEND_FDS: Event.FDS,
    Action.REHEARSE: Event.REHEARSAL,
    Action.SEND_STATE: Event.STATE,
    Action.SEND_COMMIT: Event.COMMIT,
    Action.SEND_ABORT: Event.ABORT,
    Action.SEND_ACCEPT: Event.ACCEPT,
    Action.SEND_REFUSE: Event.REFUSE,
    Action.SEND_LISTENING: Event.LISTENING,
    Action.SEND_CONNECTED: Event.CONNECTED,
    Action.SEND_PREPARED: Event.PREPARED,
    Action.SEND_LOADED: Event.LOADED,
    Action.SEND_RUNNING: Event.RUNNING,
    Action.SEND_FAILED: Event.FAILED,
}
# Begun by the action, ended later on the loop.
_STARTS: dict[Action | Micro, Event] = {
    Action.CONNECT_MAIN: Event.MAIN_SENT,
    Action.BUILD: Event.BUILT,
}
# Done within the action: what it says when it succeeds, and when it fails.
_RESULTS: dict[Action | Micro, tuple[Event, Event]] = {
    Action.CHECK_HELLO: (Event.ACCEPTABLE, Event.UNACCEPTABLE),
    Action.LOAD_REHEARSAL: (Event.REHEARSED, Event.FAILURE),
    Action.LOAD_STATE: (Event.STATE_LOADED, Event.FAILURE),
}


def _send(world: World, role: Role, message: Event) -> World:
    if message is Event.LISTENING:
        world = put(world, role, pending=(*world.target.pending, Event.MAIN_CHECKED))
    if message is Event.STATE:
        world = world._replace(sent_epoch=world.source.state_epoch)
    if world.cut or not side_of(world, other(role)).alive:
        return world
    return _with_inbox(world, other(role), (*inbox(world, other(role)), message))


def _take_lease(world: World, role: Role) -> tuple[str, World]:
    side = side_of(world, role)
    if world.lease is not other(role):
        locked = world._replace(lease=role)
        return "locks", put(locked, role, todo=(Micro.CHECK_EPOCH, *side.todo))
    moved = world.epoch != side.state_epoch
    event = Event.EPOCH_MOVED if moved else Event.LEASE_BUSY
    return f"says {event.name}", put(world, role, results=(*side.results, event))


def _check_epoch(world: World, role: Role) -> tuple[str, World]:
    side = side_of(world, role)
    if world.epoch != side.state_epoch:
        free = world._replace(lease=None)
        return "moved", put(free, role, results=(*side.results, Event.EPOCH_MOVED))
    taken = Event.RECLAIMED if role is Role.SOURCE else Event.LEASE_TAKEN
    return "current", put(world, role, results=(*side.results, taken))


def _raise_epoch(world: World, role: Role) -> World:
    if world.paused:
        return world
    side = side_of(world, role)
    if world.lease is not role:
        raise ModelError(f"{role.value} raises the epoch without the lease")
    if world.epoch != side.state_epoch:
        raise ModelError(f"{role.value} would run a CPU state that is older than the RAM")
    raised = world._replace(epoch=world.epoch + 1)
    return put(raised, role, state_epoch=world.epoch + 1, todo=(Micro.ENTER_GUEST, *side.todo))


def _enter_guest(world: World, role: Role) -> World:
    if world.lease is not role or side_of(world, other(role)).running:
        raise ModelError(f"{role.value} enters the guest, but it is not the only one to run it")
    return put(world, role, running=True)


def _crash(world: World, role: Role) -> World:
    if not _viable(world, other(role)):
        world = world._replace(excused=True)
    if world.lease is role:
        world = world._replace(lease=None)
    world = world._replace(faults_left=world.faults_left - 1)
    if role is Role.SOURCE:
        return world._replace(source=Side(phase=world.source.phase, alive=False), to_source=())
    return world._replace(target=Side(phase=world.target.phase, alive=False), to_target=())


def _viable(world: World, role: Role) -> bool:
    """Whether this process has a CPU state that may still be run, and has not given it up."""
    side = side_of(world, role)
    given_up, last_word = _GIVES_UP[role]
    if side.phase is given_up or (world.paused and last_word in inbox(world, role)):
        return False
    return side.alive and side.state_epoch == world.epoch


# The phase in which a side has given the guest up, and the peer's message that will make it so. (Of
# a running guest the moved epoch says it before the message does; a paused one moves no epoch.)
_GIVES_UP = {
    Role.SOURCE: (Phase.DONE, Event.RUNNING),
    Role.TARGET: (Phase.ABORTED, Event.ABORT),
}
