"""What one process can do next: be told an event, perform one step of an action, or fail in it.

`moves` mirrors `cpr.driver.Driver`, `cpr.channel.Channel` and `guestram.lease.RunLease`, and is as
free as it can be where they are not bound to an order: local results may come late, so that the
table does not rest on work being done within one turn of the loop.
"""

from __future__ import annotations

from collections.abc import Iterator

from cpr.handshake import Action, Event, Phase
from cpr.phases import MESSAGE_EVENTS, TERMINAL_PHASES
from tools.lab.model.world import (
    ENDS_DUTY,
    Fault,
    Guard,
    Kind,
    Micro,
    ModelError,
    Move,
    Proc,
    Setup,
    View,
    Who,
)

SENDS: dict[Action | Micro, Event] = {
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
# What an action begins, and the event with which that ends when it succeeds.
BEGINS: dict[Action | Micro, Event] = {
    Action.CONNECT_MAIN: Event.MAIN_SENT,
    Action.STOP_GUEST: Event.SAVED,
    Action.CHECK_HELLO: Event.ACCEPTABLE,
    Action.BUILD: Event.BUILT,
    Action.LOAD_REHEARSAL: Event.REHEARSED,
    Action.LOAD_STATE: Event.STATE_LOADED,
}
# Results that cannot fail any more, because they are the news of something that was done.
_CERTAIN = {Event.START, Event.LEASE_TAKEN, Event.RECLAIMED, Event.EPOCH_MOVED, Event.LEASE_BUSY}
# Phases that wait for the peer without a deadline, on purpose: cpr.handshake says why.
WAITS_FOREVER = frozenset({Phase.LOADED, Phase.UNDECIDED})


def moves(setup: Setup, who: Who, view: View) -> Iterator[Move]:
    """Everything that the process can do next."""
    me = view.me
    if me.todo:
        yield from _perform(setup, who, view)
        return
    if me.queue:
        yield _told(setup, who, _with(view, queue=me.queue[1:]), me.queue[0])
        return
    yield from _arrivals(setup, who, view)
    yield from _results(setup, who, view)
    row = setup.subject.table[who.role][me.phase]
    if (who.role, me.phase) in setup.subject.deadlines:
        yield _told(setup, who, view, Event.DEADLINE, Kind.DEADLINE)
    if Event.RETRY in row:
        yield _told(setup, who, view, Event.RETRY, Kind.USER)
    if Fault.CANCEL in setup.faults and who is not Who.THIRD:
        yield _told(setup, who, view, Event.CANCEL, Kind.FAULT)
    if me.phase in TERMINAL_PHASES and not me.closed:
        yield Move("closes", Kind.PROGRESS, _with(view, closed=True, lost=True, knows_death=True))


def _arrivals(setup: Setup, who: Who, view: View) -> Iterator[Move]:
    """What the channel and the pidfd say."""
    me = view.me
    if not (me.lost or me.deaf):
        if view.inbox:
            rest = view._replace(inbox=view.inbox[1:])
            yield _told(setup, who, rest, view.inbox[0])
        elif view.hung_up:
            yield _told(setup, who, _with(view, lost=True), Event.LOST)
        if (
            Fault.DAMAGE in setup.faults
            and who is not Who.THIRD
            and view.peer_alive
            and not view.hung_up
        ):
            garbage = _told(setup, who, _with(view, deaf=True), Event.VIOLATION, Kind.FAULT)
            yield garbage._replace(disturbs=True)
        if setup.lies and who is not Who.THIRD:
            for lie in sorted(MESSAGE_EVENTS, key=lambda event: event.value):
                yield _told(setup, who, view, lie, Kind.FAULT)._replace(
                    label=f"is lied to: {lie.name}"
                )
    # The channel is emptied before a death is told.
    heard_all = me.lost or me.deaf or not view.inbox
    if heard_all and not view.peer_alive and not me.knows_death:
        yield _told(setup, who, _with(view, knows_death=True), Event.PEER_DIED)


def _results(setup: Setup, who: Who, view: View) -> Iterator[Move]:
    """What work in the background ends with; a success is dropped when it comes too late."""
    me = view.me
    row = setup.subject.table[who.role][me.phase]
    for event in me.pending:
        rest = _with(view, pending=tuple(one for one in me.pending if one is not event))
        if Fault.FAILURE in setup.faults and event not in _CERTAIN:
            yield _told(setup, who, rest, Event.FAILURE, Kind.FAULT)
            if event is Event.ACCEPTABLE and event in row:
                yield _told(setup, who, rest, Event.UNACCEPTABLE, Kind.FAULT)
        if event is Event.MAIN_CHECKED and not view.main_sent:
            continue
        if event in row:
            yield _told(setup, who, rest, event)
        elif me.phase in TERMINAL_PHASES or event in _CERTAIN or view.me.deaf:
            yield Move(f"drops {event.name}", Kind.PROGRESS, rest)


def _told(setup: Setup, who: Who, view: View, event: Event, kind: Kind = Kind.PROGRESS) -> Move:
    """What `cpr.handshake.Handshake.receive` and `cpr.driver.Driver` do with `event`."""
    me = view.me
    row = setup.subject.table[who.role][me.phase]
    transition = row.get(event)
    if transition is None and event in MESSAGE_EVENTS:
        if not setup.lies and me.phase not in TERMINAL_PHASES:
            # Two correct processes never violate the protocol.
            raise ModelError(f"{who.name}: {event.name} violates the protocol in {me.phase.name}")
        transition = row.get(Event.VIOLATION)
    if transition is None:
        raise ModelError(f"{who.name}: {event.name} is not possible in phase {me.phase.name}")
    changes: dict[str, object] = {"phase": transition.next, "todo": transition.actions}
    if event in ENDS_DUTY[who.role]:
        changes["duty"] = False
    elif event is Event.STATE_LOADED:
        changes |= {"duty": True, "state_epoch": view.sent[0], "state_age": view.sent[1]}
    view = view._replace(me=me._replace(**changes))  # type: ignore[arg-type]
    if event is Event.MAIN_SENT:
        view = view._replace(main_sent=True)
    return Move(f"< {event.name}", kind, view, told=event)


def _perform(setup: Setup, who: Who, view: View) -> Iterator[Move]:
    """The possible outcomes of one step of an action."""
    me = view.me
    action = me.todo[0]
    rest = _with(view, todo=me.todo[1:])
    if Fault.FAILURE in setup.faults and who is not Who.THIRD and _can_fail(me, action):
        # The driver drops what else the row would do and asks the table.
        failed = _with(view, todo=(), queue=(Event.FAILURE, *me.queue))
        lease = action in {Action.RELEASE_LEASE, Action.TAKE_LEASE, Action.RECLAIM_LEASE}
        yield Move(f"{action.name} fails", Kind.FAULT, failed, disturbs=lease)
    if action in SENDS:
        said = _send(who, rest, SENDS[action], setup)
        yield said
        if action is Action.SEND_LOADED and Fault.FAILURE in setup.faults:
            # The registers are set while the word travels.
            then = _with(said.after, queue=(Event.FAILURE, *said.after.me.queue))
            yield said._replace(label=f"{said.label}, then fails", kind=Kind.FAULT, after=then)
    elif action in {Action.TAKE_LEASE, Action.RECLAIM_LEASE, Micro.LOCK, Micro.CHECK_EPOCH}:
        yield _claim(setup, who, rest, action)
    else:
        yield Move(action.name, Kind.PROGRESS, _do(setup, who, rest, action))


def _can_fail(me: Proc, action: Action | Micro) -> bool:
    """Last words and the end of an update are done as far as they can be, and never fail."""
    return (
        isinstance(action, Action)
        and action is not Action.SEND_FAILED
        and me.phase not in TERMINAL_PHASES
    )


def _do(setup: Setup, who: Who, view: View, action: Action | Micro) -> View:
    me = view.me
    if action is Action.STOP_GUEST:
        view = _with(view, running=False, state_epoch=view.epoch, state_age=view.ran)
    if action in BEGINS:
        return _with(view, pending=(*me.pending, BEGINS[action]))
    if action is Action.RELEASE_LEASE:
        return view._replace(lease=None)
    if action is Action.REPORT or action is Action.COMPLETE:
        return _tell_user(setup, who, view, action)
    return _enter(setup, who, view, action)


def _tell_user(setup: Setup, who: Who, view: View, action: Action) -> View:
    me = view.me
    if me.said is not None:
        raise ModelError(f"{who.name}: tells the user twice how it ended")
    claims = Action.REPORT if who is Who.SOURCE else Action.COMPLETE
    if action is claims and not (me.running or (setup.paused and view.lease is who)):
        raise ModelError(f"{who.name}: says that it has the guest before it is true")
    return _with(view, said=action)


def _enter(setup: Setup, who: Who, view: View, action: Action | Micro) -> View:
    """`vmm.machine.Machine.start`: raise the epoch under the lease, then enter the guest."""
    me, guards = view.me, setup.subject.guards
    if action in {Action.RESUME_GUEST, Action.RUN_GUEST}:
        if Guard.ENTER_NEEDS_LEASE in guards and view.lease is not who:
            raise ModelError(f"{who.name}: enters the guest without the lease")
        order = (Micro.RAISE_EPOCH, Micro.ENTER_GUEST)
        steps = order if Guard.RAISE_FIRST in guards else order[::-1]
        return view if setup.paused else _with(view, todo=(*steps, *me.todo))
    if action is Micro.RAISE_EPOCH:
        raised = view.epoch + (1 if Guard.RAISE_EPOCH in guards else 0)
        return _with(view, state_epoch=raised)._replace(epoch=raised)
    assert action is Micro.ENTER_GUEST, action
    if me.state_age != view.ran:
        raise ModelError(f"{who.name}: runs a CPU state that is older than the RAM")
    return _with(view, running=True, state_age=view.ran + 1)._replace(ran=view.ran + 1)


def _send(who: Who, view: View, message: Event, setup: Setup) -> Move:
    me = view.me
    _check_word(setup, who, view, message)
    label = f"sends {message.name}"
    if message is Event.LISTENING:
        view = _with(view, pending=(*me.pending, Event.MAIN_CHECKED))
    if message is Event.STATE:
        view = view._replace(sent=(me.state_epoch, me.state_age))
    if me.lost or who is Who.THIRD or setup.lies:
        return Move(f"{label} in vain", Kind.PROGRESS, view)
    if view.deaf_peer:
        # The channel delivers what the peer had said before it went, and then its loss.
        heard = () if me.deaf else view.inbox
        queue = (*me.queue, *heard, Event.LOST)
        gone = _with(view, queue=queue, lost=True)._replace(inbox=())
        return Move(f"{label} in vain", Kind.PROGRESS, gone)
    return Move(label, Kind.PROGRESS, view, (message,))


def _check_word(setup: Setup, who: Who, view: View, message: Event) -> None:
    """No word before its deed."""
    me = view.me
    true = {
        Event.STATE: not me.running,
        Event.COMMIT: view.lease is not who,
        Event.LOADED: me.duty,
        Event.RUNNING: me.running or (setup.paused and view.lease is who),
        Event.ABORT: not me.duty or me.running or setup.paused,
    }
    if not true.get(message, True):
        raise ModelError(f"{who.name}: says {message.name} before it is true")
    if me.said is not None:
        raise ModelError(f"{who.name}: sends {message.name} after its update is over")


def _claim(setup: Setup, who: Who, view: View, step: Action | Micro) -> Move:
    """`guestram.lease.RunLease.claim`: take the lock, then compare the epoch; one step each."""
    current = view.epoch == view.me.state_epoch
    taken = Event.RECLAIMED if who is Who.SOURCE else Event.LEASE_TAKEN
    if step is Micro.CHECK_EPOCH:
        if current:
            return _answer(setup, view, "finds its state current", taken)
        kept = view.lease if Guard.RELEASE_STALE not in setup.subject.guards else None
        free = view._replace(lease=kept)
        return _answer(setup, free, "finds its state overtaken", Event.EPOCH_MOVED)
    if step is not Micro.LOCK and Guard.CHECK_UNDER_LOCK not in setup.subject.guards:
        if current:
            locks = _with(view, todo=(Micro.LOCK, *view.me.todo))
            return Move(f"{step.name} looks first", Kind.PROGRESS, locks)
        return _answer(setup, view, "finds its state overtaken", Event.EPOCH_MOVED)
    return _lock(setup, who, view, step)


def _lock(setup: Setup, who: Who, view: View, step: Action | Micro) -> Move:
    guards = setup.subject.guards
    taken = Event.RECLAIMED if who is Who.SOURCE else Event.LEASE_TAKEN
    if view.lease in {None, who} or Guard.LOCK_EXCLUDES not in guards:
        locked = view._replace(lease=who)
        if step is Micro.LOCK or Guard.CHECK_EPOCH not in guards:
            return _answer(setup, locked, f"{step.name} locks", taken)
        checks = _with(locked, todo=(Micro.CHECK_EPOCH, *view.me.todo))
        return Move(f"{step.name} locks", Kind.PROGRESS, checks)
    if view.epoch != view.me.state_epoch and Guard.LOOK_WHEN_BUSY in guards:
        return _answer(setup, view, f"{step.name} finds it overtaken", Event.EPOCH_MOVED)
    return _answer(setup, view, f"{step.name} finds it busy", Event.LEASE_BUSY)


def _answer(setup: Setup, view: View, label: str, event: Event) -> Move:
    """What the kernel says of the lease."""
    if setup.prompt:
        return Move(label, Kind.PROGRESS, _with(view, queue=(event, *view.me.queue)))
    return Move(label, Kind.PROGRESS, _with(view, pending=(*view.me.pending, event)))


def _with(view: View, **changes: object) -> View:
    return view._replace(me=view.me._replace(**changes))  # type: ignore[arg-type]


def check_wait(setup: Setup, who: Who, proc: Proc) -> None:
    """A process with nothing to do has a deadline, or work under way, or a documented reason."""
    if not proc.alive or proc.todo or proc.queue or proc.phase in TERMINAL_PHASES:
        return
    if proc.phase is Phase.LOADED and (proc.lost or proc.knows_death or proc.deaf):
        raise ModelError(f"{who.name}: waits in LOADED for a source that it will not hear")
    if (
        _OWN_WORK.isdisjoint(proc.pending)
        and proc.phase not in WAITS_FOREVER
        and Event.START not in proc.pending
        and (who.role, proc.phase) not in setup.subject.deadlines
    ):
        raise ModelError(f"{who.name}: waits in {proc.phase.name} without a deadline")


# Ends without anybody's help, or (BUILT) is ended by the source's deadline.
_OWN_WORK = frozenset(BEGINS.values()) - {Event.MAIN_SENT, Event.SAVED} | _CERTAIN - {Event.START}
