"""The live-update handshake: who may do what, when, and what follows. The heart of the project.

Rule 1: everything that moves the machine is in this file. Rule 2: this file does nothing. It has no
socket, no clock and no fd; it is told events and answers with actions. `cpr.driver` performs them,
the README's table and diagram are printed from `TRANSITIONS`, and the model checker walks it.

Theory of operation
-------------------
One process (the *source*) runs a guest and wants another (the *target*) to run it instead. Each has
a phase. An *event* is a message of the peer, the loss of the channel, the death of the peer, a
deadline, or a local result: something that an action began is done, or has failed.

Two facts outside this table keep the guest from running twice, both held by the kernel or by shared
memory and not by good manners:

* the **run lease**: an exclusive lock that one process at a time can hold, freed by the kernel when
  its holder dies. Only its holder enters the guest;
* the **epoch**: a number in shared memory that is raised, under the lease, before the guest is
  entered. A saved CPU state belongs to the epoch at which the guest was stopped. LEASE_TAKEN and
  RECLAIMED are said only when the lock is held *and* the epoch is still that one. So a process that
  was overtaken finds EPOCH_MOVED, and its state, which is older than the RAM, is never run.

The table can therefore be generous: whoever doubts asks the kernel. What it must get right is that
somebody runs the guest:

* Until the target has verified STATE, everything that goes wrong ends with the source running.
* From LOADED on either process can die. The target in LOADED waits without a deadline, on purpose:
  if it gave up on a source that only hangs, and the source then died, the guest would be lost. It
  is ended by COMMIT, by ABORT, or by the loss of the source.
* A source that changes its mind first runs the guest (the epoch moves) and then says so. In the
  other order its death between the two would lose the guest: the target would have given it up.
* The source in COMMITTED has released the lease. It may come back only through RECLAIMING. When the
  target holds the lease but was not heard of, the source is UNDECIDED; that also has no deadline,
  because both answers would be guesses. It is ended by RUNNING, by the target's death, or by the
  user, who may have the lease asked for again (RETRY).
* A target that fails in its own work from LOADED on says so, and the source takes the guest back.
  But the target does not give the guest up before it hears ABORT or finds the epoch moved: should
  the source be dead or die, nobody else has it, and asking again may succeed. Nor does it when
  bytes that it cannot read come in LOADED; it reads no ABORT after that, and asks the kernel.
* A target without a source (ORPHANED) takes the lease. If it is busy, the source lives, or is just
  dying (the kernel closes its socket before it frees its locks), so the target waits for its death,
  for ABORT, or for the deadline, and asks again (ORPHAN_LAST). Whoever finds the lease busy looks
  at the epoch too: if it has moved, that is the answer (EPOCH_MOVED). If not, the source holds a
  guest that it does not run, and the target is UNDECIDED for the same reason as above: it waits
  for the source's death or loss, or for the user.

Unexpected events
-----------------
A message that a phase does not list is a protocol violation and follows the phase's VIOLATION row.
A local event that a phase does not list is a bug of ours: LocalProtocolError, phase unchanged.
Terminal phases ignore whatever can still arrive late.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from cpr.deadlines import DeadlineName, Deadlines
from cpr.errors import LocalProtocolError
from cpr.phases import LATE_EVENTS, MESSAGE_EVENTS, TERMINAL_PHASES, Action, Event, Phase, Role

__all__ = [
    "DEADLINES",
    "TRANSITIONS",
    "Action",
    "DeadlineName",
    "Deadlines",
    "Event",
    "Handshake",
    "Phase",
    "Role",
    "Transition",
]


@dataclass(frozen=True, slots=True)
class Transition:
    """The next phase, and what to do on the way."""

    next: Phase
    actions: tuple[Action, ...] = ()


Row = Mapping[Event, Transition]


def _go(next_phase: Phase, *actions: Action) -> Transition:
    return Transition(next_phase, actions)


def _each(events: tuple[Event, ...], transition: Transition) -> dict[Event, Transition]:
    return dict.fromkeys(events, transition)


def _stay(phase: Phase, *events: Event) -> dict[Event, Transition]:
    return _each(events, _go(phase))


def _without(event: Event, row: Row) -> Row:
    """`row` for a phase in which nothing is done that could end with `event`."""
    return {key: transition for key, transition in row.items() if key is not event}


# ---- the source ----------------------------------------------------------------------------------

_GONE = (Event.LOST, Event.PEER_DIED)
_GIVE_UP = (Event.CANCEL, Event.VIOLATION, Event.FAILURE)
_OVER_THERE = (Event.FAILED, *_GONE)  # the target has ended it: there is nobody to tell

# The guest runs (a rehearsal pauses and resumes it by itself): nothing to undo.
_SOURCE_RUNS: Row = {
    **_each(_OVER_THERE, _go(Phase.ABORTED, Action.REPORT)),
    **_each(_GIVE_UP, _go(Phase.ABORTED, Action.SEND_ABORT, Action.REPORT)),
}
_SOURCE_RUNS_DEADLINE: Row = {
    **_SOURCE_RUNS,
    Event.DEADLINE: _go(Phase.ABORTED, Action.SEND_ABORT, Action.REPORT),
}
# The guest is stopped and the lease is ours. Run first, tell second: see the theory of operation.
_SOURCE_STOPPED: Row = {
    **_each(_OVER_THERE, _go(Phase.ABORTED, Action.RESUME_GUEST, Action.REPORT)),
    **_each(
        (*_GIVE_UP, Event.DEADLINE),
        _go(Phase.ABORTED, Action.RESUME_GUEST, Action.SEND_ABORT, Action.REPORT),
    ),
}

_SOURCE: Mapping[Phase, Row] = {
    Phase.IDLE: {
        Event.START: _go(Phase.HELLO_SENT, Action.SEND_HELLO),
        **_without(Event.FAILURE, _SOURCE_RUNS),
    },
    Phase.HELLO_SENT: {
        Event.ACCEPT: _go(Phase.FDS_SENT, Action.SEND_FDS),
        Event.REFUSE: _go(Phase.ABORTED, Action.REPORT),
        **_SOURCE_RUNS_DEADLINE,
    },
    Phase.FDS_SENT: {
        Event.LISTENING: _go(Phase.CONNECTING, Action.CONNECT_MAIN),
        **_SOURCE_RUNS_DEADLINE,
    },
    Phase.CONNECTING: {
        Event.MAIN_SENT: _go(Phase.MAIN_WAIT),
        **_SOURCE_RUNS_DEADLINE,
    },
    Phase.MAIN_WAIT: {
        Event.CONNECTED: _go(Phase.REHEARSING, Action.REHEARSE),
        **_without(Event.FAILURE, _SOURCE_RUNS_DEADLINE),
    },
    # Twice: the first finds what cannot be loaded and makes all code run once, the second, straight
    # before the stop, finds processor caches as the blackout will find them.
    Phase.REHEARSING: {
        Event.PREPARED: _go(Phase.REHEARSING_AGAIN, Action.REHEARSE),
        **_SOURCE_RUNS_DEADLINE,
    },
    Phase.REHEARSING_AGAIN: {
        Event.PREPARED: _go(Phase.STOPPING, Action.STOP_GUEST),
        **_SOURCE_RUNS_DEADLINE,
    },
    # ---- the blackout begins
    Phase.STOPPING: {
        Event.SAVED: _go(Phase.STATE_SENT, Action.SEND_STATE),
        **_SOURCE_STOPPED,
    },
    Phase.STATE_SENT: {
        Event.LOADED: _go(Phase.COMMITTED, Action.RELEASE_LEASE, Action.SEND_COMMIT),
        **_SOURCE_STOPPED,
        # Said in LOADED: the target keeps the state until it hears that the guest runs here.
        Event.FAILED: _go(Phase.ABORTED, Action.RESUME_GUEST, Action.SEND_ABORT, Action.REPORT),
    },
    # ---- the point of no return: from here the kernel says who runs
    Phase.COMMITTED: {
        Event.RUNNING: _go(Phase.DONE, Action.COMPLETE),
        **_each(
            (
                Event.FAILED,
                *_GONE,
                Event.DEADLINE,
                Event.VIOLATION,
                Event.FAILURE,
            ),
            _go(Phase.RECLAIMING, Action.RECLAIM_LEASE),
        ),
        **_stay(Phase.COMMITTED, Event.CANCEL),
    },
    Phase.RECLAIMING: {
        Event.RECLAIMED: _go(Phase.ABORTED, Action.RESUME_GUEST, Action.SEND_ABORT, Action.REPORT),
        Event.EPOCH_MOVED: _go(Phase.DONE, Action.COMPLETE),
        Event.RUNNING: _go(Phase.DONE, Action.COMPLETE),
        **_each((Event.LEASE_BUSY, Event.FAILURE), _go(Phase.UNDECIDED)),
        **_stay(Phase.RECLAIMING, Event.FAILED, *_GONE, Event.VIOLATION, Event.CANCEL),
    },
    Phase.UNDECIDED: {
        Event.RUNNING: _go(Phase.DONE, Action.COMPLETE),
        **_each(
            (Event.FAILED, Event.PEER_DIED, Event.RETRY),
            _go(Phase.RECLAIMING, Action.RECLAIM_LEASE),
        ),
        **_stay(Phase.UNDECIDED, Event.LOST, Event.VIOLATION, Event.CANCEL),
    },
    Phase.DONE: _stay(Phase.DONE, *LATE_EVENTS),
    Phase.ABORTED: _stay(Phase.ABORTED, *LATE_EVENTS),
}

# ---- the target ----------------------------------------------------------------------------------

_FAIL = _go(Phase.ABORTED, Action.SEND_FAILED, Action.REPORT)
_END = _go(Phase.ABORTED, Action.REPORT)

# Nothing of the guest is here yet: whatever happens, the source has it.
_TARGET_EMPTY: Row = {
    **_each((Event.ABORT, *_GONE), _END),
    **_each((Event.VIOLATION, Event.FAILURE, Event.CANCEL), _FAIL),
}
_TARGET_EMPTY_DEADLINE: Row = {**_TARGET_EMPTY, Event.DEADLINE: _FAIL}
# Said also to a source that seems to be gone: it may only have been slow.
_RUN = _go(Phase.DONE, Action.RUN_GUEST, Action.SEND_RUNNING, Action.COMPLETE)
# The source is gone and the guest is here: only ABORT, said before it went, ends that.
_ORPHAN_KEEPS = (*_GONE, Event.VIOLATION, Event.CANCEL)

_TARGET: Mapping[Phase, Row] = {
    Phase.IDLE: {
        Event.HELLO: _go(Phase.CHECKING, Action.CHECK_HELLO),
        **_without(Event.FAILURE, _TARGET_EMPTY_DEADLINE),
    },
    Phase.CHECKING: {
        Event.ACCEPTABLE: _go(Phase.ACCEPTED, Action.SEND_ACCEPT),
        Event.UNACCEPTABLE: _go(Phase.ABORTED, Action.SEND_REFUSE, Action.REPORT),
        **_TARGET_EMPTY,
    },
    Phase.ACCEPTED: {
        Event.FDS: _go(Phase.BUILDING, Action.BUILD),
        **_TARGET_EMPTY_DEADLINE,
    },
    Phase.BUILDING: {
        Event.BUILT: _go(Phase.LISTENING, Action.SEND_LISTENING),
        **_TARGET_EMPTY,
    },
    Phase.LISTENING: {
        Event.MAIN_CHECKED: _go(Phase.CONNECTED, Action.SEND_CONNECTED),
        **_TARGET_EMPTY_DEADLINE,
    },
    Phase.CONNECTED: {
        Event.REHEARSAL: _go(Phase.REHEARSING, Action.LOAD_REHEARSAL),
        **_TARGET_EMPTY_DEADLINE,
    },
    Phase.REHEARSING: {
        Event.REHEARSED: _go(Phase.PREPARED, Action.SEND_PREPARED),
        **_TARGET_EMPTY,
    },
    Phase.PREPARED: {
        Event.REHEARSAL: _go(Phase.REHEARSING, Action.LOAD_REHEARSAL),
        Event.STATE: _go(Phase.LOADING, Action.LOAD_STATE),
        **_TARGET_EMPTY_DEADLINE,
    },
    # ---- the guest is here, unverified
    Phase.LOADING: {
        Event.STATE_LOADED: _go(Phase.LOADED, Action.SEND_LOADED),
        **_TARGET_EMPTY,
        **_each(_GONE, _go(Phase.LOADING_ORPHAN)),
    },
    Phase.LOADING_ORPHAN: {
        Event.STATE_LOADED: _go(Phase.ORPHANED, Action.TAKE_LEASE),
        Event.FAILURE: _END,
        **_stay(Phase.LOADING_ORPHAN, *_ORPHAN_KEEPS),
    },
    # ---- the guest survives the source from here on
    Phase.LOADED: {
        Event.COMMIT: _go(Phase.TAKING, Action.TAKE_LEASE),
        **_each(_GONE, _go(Phase.ORPHANED, Action.TAKE_LEASE)),
        Event.ABORT: _END,
        # Nothing more is read, so no ABORT will be: the lease and the epoch say who has the guest.
        Event.VIOLATION: _go(Phase.ORPHAN_WAIT, Action.SEND_FAILED),
        Event.FAILURE: _go(Phase.LOADED, Action.SEND_FAILED),
        **_stay(Phase.LOADED, Event.CANCEL),
    },
    Phase.TAKING: {
        Event.LEASE_TAKEN: _RUN,
        # The source took it back after its deadline. It will run the guest and say ABORT, or die.
        Event.LEASE_BUSY: _go(Phase.ORPHAN_WAIT),
        Event.ABORT: _END,
        Event.EPOCH_MOVED: _END,
        Event.FAILURE: _go(Phase.UNDECIDED, Action.SEND_FAILED),
        **_stay(Phase.TAKING, *_GONE, Event.VIOLATION, Event.CANCEL),
    },
    Phase.ORPHANED: {
        Event.LEASE_TAKEN: _RUN,
        Event.LEASE_BUSY: _go(Phase.ORPHAN_WAIT),
        Event.FAILURE: _go(Phase.UNDECIDED),
        **_each((Event.EPOCH_MOVED, Event.ABORT), _END),
        **_stay(Phase.ORPHANED, *_ORPHAN_KEEPS),
    },
    Phase.ORPHAN_WAIT: {
        **_stay(Phase.ORPHAN_WAIT, Event.LOST, Event.VIOLATION, Event.CANCEL),
        Event.PEER_DIED: _go(Phase.ORPHANED, Action.TAKE_LEASE),
        Event.DEADLINE: _go(Phase.ORPHAN_LAST, Action.TAKE_LEASE),
        Event.ABORT: _END,
    },
    Phase.ORPHAN_LAST: {
        Event.LEASE_TAKEN: _RUN,
        **_each((Event.LEASE_BUSY, Event.FAILURE), _go(Phase.UNDECIDED)),
        **_each((Event.EPOCH_MOVED, Event.ABORT), _END),
        **_stay(Phase.ORPHAN_LAST, *_ORPHAN_KEEPS),
    },
    Phase.UNDECIDED: {
        **_stay(Phase.UNDECIDED, Event.VIOLATION, Event.CANCEL),
        **_each((*_GONE, Event.RETRY), _go(Phase.ORPHANED, Action.TAKE_LEASE)),
        Event.ABORT: _END,
    },
    Phase.DONE: _stay(Phase.DONE, *LATE_EVENTS),
    Phase.ABORTED: _stay(Phase.ABORTED, *LATE_EVENTS),
}

TRANSITIONS: Mapping[Role, Mapping[Phase, Row]] = MappingProxyType(
    {Role.SOURCE: MappingProxyType(_SOURCE), Role.TARGET: MappingProxyType(_TARGET)}
)

# ---- deadlines: data here, armed by the driver ---------------------------------------------------


# Phases that are not here end without waiting, or wait without a deadline for a reason given above
# (LOADED, UNDECIDED) or because the peer's deadline ends them (BUILDING: local work, bounded by the
# source's PREPARE or DEFER).
DEADLINES: Mapping[tuple[Role, Phase], DeadlineName] = MappingProxyType(
    {
        (Role.SOURCE, Phase.HELLO_SENT): DeadlineName.HELLO,
        (Role.SOURCE, Phase.FDS_SENT): DeadlineName.PREPARE,
        (Role.SOURCE, Phase.CONNECTING): DeadlineName.MAIN,
        (Role.SOURCE, Phase.MAIN_WAIT): DeadlineName.MAIN,
        (Role.SOURCE, Phase.REHEARSING): DeadlineName.REHEARSE,
        (Role.SOURCE, Phase.REHEARSING_AGAIN): DeadlineName.REHEARSE,
        (Role.SOURCE, Phase.STOPPING): DeadlineName.STOP,
        (Role.SOURCE, Phase.STATE_SENT): DeadlineName.LOAD,
        (Role.SOURCE, Phase.COMMITTED): DeadlineName.RUN,
        (Role.TARGET, Phase.IDLE): DeadlineName.HELLO,
        (Role.TARGET, Phase.ACCEPTED): DeadlineName.FDS,
        (Role.TARGET, Phase.LISTENING): DeadlineName.MAIN,
        (Role.TARGET, Phase.CONNECTED): DeadlineName.REHEARSE,
        (Role.TARGET, Phase.PREPARED): DeadlineName.STATE,
        (Role.TARGET, Phase.ORPHAN_WAIT): DeadlineName.ORPHAN,
    }
)


class Handshake:
    """One side's phase; `receive` is the only thing that changes it."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.phase = Phase.IDLE
        self._table = TRANSITIONS[role]

    @property
    def finished(self) -> bool:
        """Whether the update is over for this side."""
        return self.phase in TERMINAL_PHASES

    def expects(self, event: Event) -> bool:
        """Whether the present phase lists `event`."""
        return event in self._table[self.phase]

    def receive(self, event: Event) -> tuple[Action, ...]:
        """Move to the next phase and say what to do, in order.

        A message that the phase does not list counts as VIOLATION. Raises LocalProtocolError, and
        changes nothing, when a local event is not listed.
        """
        row = self._table[self.phase]
        transition = row.get(event)
        if transition is None:
            if event not in MESSAGE_EVENTS:
                raise LocalProtocolError(
                    f"{self.role.value}: event {event.name} is not possible in phase "
                    f"{self.phase.name}; it takes {', '.join(sorted(e.name for e in row))}"
                )
            transition = row[Event.VIOLATION]
        self.phase = transition.next
        return transition.actions
