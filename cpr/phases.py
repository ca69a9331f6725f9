"""The words of the handshake: roles, phases, events and actions.

What they mean together is in `cpr.handshake`; they are listed here so that the table there is all
one has to read. Plain enums, so that a model checker can walk them.
"""

from __future__ import annotations

from enum import Enum, auto


class Word(Enum):
    """A word of the handshake.

    Hashed by identity, in C: Enum's own hash is a Python function, and each event of the blackout
    looks several words up.
    """

    __hash__ = object.__hash__


class Role(Word):
    """Which process this is."""

    SOURCE = "source"
    TARGET = "target"


class Phase(Word):
    """Where a process is in the handshake; the first and the last two exist on both sides."""

    IDLE = auto()
    # source
    HELLO_SENT = auto()
    FDS_SENT = auto()
    CONNECTING = auto()
    MAIN_WAIT = auto()
    STOPPING = auto()
    STATE_SENT = auto()
    COMMITTED = auto()
    RECLAIMING = auto()
    REHEARSING_AGAIN = auto()
    # both, with different tables
    REHEARSING = auto()
    UNDECIDED = auto()
    # target
    CHECKING = auto()
    ACCEPTED = auto()
    BUILDING = auto()
    LISTENING = auto()
    CONNECTED = auto()
    PREPARED = auto()
    LOADING = auto()
    LOADING_ORPHAN = auto()
    LOADED = auto()
    TAKING = auto()
    ORPHANED = auto()
    ORPHAN_WAIT = auto()
    ORPHAN_LAST = auto()
    # the end
    DONE = auto()
    ABORTED = auto()


class Event(Word):
    """What a process can be told. The first group has the names of `cpr.messages.MessageKind`."""

    # messages
    HELLO = auto()
    FDS = auto()
    REHEARSAL = auto()
    STATE = auto()
    COMMIT = auto()
    ABORT = auto()
    ACCEPT = auto()
    REFUSE = auto()
    LISTENING = auto()
    CONNECTED = auto()
    PREPARED = auto()
    LOADED = auto()
    RUNNING = auto()
    FAILED = auto()
    MAIN_HEADER = auto()
    # from outside
    START = auto()
    CANCEL = auto()
    RETRY = auto()
    LOST = auto()
    PEER_DIED = auto()
    DEADLINE = auto()
    VIOLATION = auto()
    # local results: source
    MAIN_SENT = auto()
    SAVED = auto()
    RECLAIMED = auto()
    # local results: target
    ACCEPTABLE = auto()
    UNACCEPTABLE = auto()
    BUILT = auto()
    MAIN_CHECKED = auto()
    REHEARSED = auto()
    STATE_LOADED = auto()
    LEASE_TAKEN = auto()
    # local results: both
    EPOCH_MOVED = auto()
    LEASE_BUSY = auto()
    FAILURE = auto()


class Action(Word):
    """What a process must do now, in the order given."""

    # source
    SEND_HELLO = auto()
    SEND_FDS = auto()
    CONNECT_MAIN = auto()
    REHEARSE = auto()
    STOP_GUEST = auto()
    SEND_STATE = auto()
    RELEASE_LEASE = auto()
    SEND_COMMIT = auto()
    RECLAIM_LEASE = auto()
    RESUME_GUEST = auto()
    SEND_ABORT = auto()
    # target
    CHECK_HELLO = auto()
    SEND_ACCEPT = auto()
    SEND_REFUSE = auto()
    BUILD = auto()
    SEND_LISTENING = auto()
    SEND_CONNECTED = auto()
    LOAD_REHEARSAL = auto()
    SEND_PREPARED = auto()
    LOAD_STATE = auto()
    SEND_LOADED = auto()
    TAKE_LEASE = auto()
    RUN_GUEST = auto()
    SEND_RUNNING = auto()
    SEND_FAILED = auto()
    # both
    COMPLETE = auto()
    REPORT = auto()


MESSAGE_EVENTS = frozenset(event for event in Event if event.value <= Event.MAIN_HEADER.value)
TERMINAL_PHASES = frozenset({Phase.DONE, Phase.ABORTED})
# Can reach a process after the update is over, because it was on its way or was just being done. A
# late message counts as VIOLATION, as everywhere, and changes nothing either.
LATE_EVENTS = frozenset({Event.CANCEL, Event.LOST, Event.PEER_DIED, Event.VIOLATION, Event.FAILURE})
