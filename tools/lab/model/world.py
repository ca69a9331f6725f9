"""What the model consists of: processes, the link between them, the lease, and what is checked.

The handshake is the real table (`cpr.handshake`). The rest is the smallest honest model of what
surrounds it. Time is not modelled: a deadline may pass whenever one is armed, and any process may
do nothing for as long as it likes, so every slow and every hanging process is included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum, auto
from typing import NamedTuple

from cpr.handshake import DEADLINES, TRANSITIONS, Action, DeadlineName, Event, Phase, Transition
from cpr.phases import Role, Word

Table = Mapping[Role, Mapping[Phase, Mapping[Event, Transition]]]


class ModelError(AssertionError):
    """Something happened that must not."""


class Who(IntEnum):
    """A process. THIRD is a successor of an earlier update, which the source took back."""

    SOURCE = 0
    TARGET = 1
    THIRD = 2

    @property
    def role(self) -> Role:
        """Whose table it follows."""
        return Role.SOURCE if self is Who.SOURCE else Role.TARGET


class Micro(Word):
    """Second halves of actions: other processes and a crash can come between."""

    CHECK_EPOCH = auto()
    RAISE_EPOCH = auto()
    ENTER_GUEST = auto()
    LOCK = auto()


class Kind(Enum):
    """What a step is: work that goes on by itself, time, the user, or something going wrong."""

    PROGRESS = auto()
    DEADLINE = auto()
    USER = auto()
    FAULT = auto()


class Fault(Enum):
    """What can go wrong, at any point and as often as it can."""

    DEATH = "a process dies"
    CUT = "the link is cut in one direction, after any of the messages on their way"
    DAMAGE = "bytes come that do not parse"
    CANCEL = "the user cancels, on either side"
    FAILURE = "a process fails in its own work"


ALL_FAULTS = frozenset(Fault)


class Guard(Enum):
    """A check of the lease or of the epoch, each of which a mutant leaves out."""

    LOCK_EXCLUDES = "an acquired lease refuses everybody else"
    DEATH_FREES = "the kernel frees the lease of the dead"
    CHECK_EPOCH = "who gets the lease compares the epoch with that of its CPU state"
    CHECK_UNDER_LOCK = "the comparison is made while the lease is held, not before"
    RELEASE_STALE = "who finds its state overtaken gives the lease back"
    LOOK_WHEN_BUSY = "who finds the lease busy looks at the epoch, too"
    RAISE_EPOCH = "the epoch is raised when the guest is entered"
    RAISE_FIRST = "the epoch is raised before the guest is entered, not after"
    ENTER_NEEDS_LEASE = "only the holder of the lease raises the epoch and enters"


ALL_GUARDS = frozenset(Guard)


class Proc(NamedTuple):
    """One process."""

    phase: Phase = Phase.IDLE
    todo: tuple[Action | Micro, ...] = ()
    queue: tuple[Event, ...] = ()  # already with the driver, handled as soon as nothing is to do
    pending: tuple[Event, ...] = ()  # work in the background that will end with this event
    alive: bool = True
    running: bool = False
    state_epoch: int = 0  # the epoch to which our CPU state belongs; 0 = none
    state_age: int = 0  # how often the guest had run when the state was taken: the truth, unseen
    lost: bool = False  # the channel is gone for this side: nothing is read or sent
    deaf: bool = False  # after bytes that do not parse nothing more is read
    knows_death: bool = False
    duty: bool = False  # the guest may have to be run from here; ends by a word, not by a phase
    said: Action | None = None  # REPORT or COMPLETE: how it ended for the user
    closed: bool = False  # the channel is closed by this side: its update is over


class World(NamedTuple):
    """Everything. `to[w]` are messages on their way to w; `cut[w]`: no more come after them."""

    procs: tuple[Proc, ...]
    to: tuple[tuple[Event, ...], tuple[Event, ...]] = ((), ())
    cut: tuple[bool, bool] = (False, False)
    lease: Who | None = Who.SOURCE
    epoch: int = 1
    ran: int = 1  # how often the guest was entered in truth
    main_sent: bool = False
    sent: tuple[int, int] = (0, 0)  # epoch and age that STATE carries
    excused: bool = False  # the only process that could run the guest died
    broken: bool = False  # the link was cut, or a process died
    disturbed: bool = False  # that, or bytes were damaged, or the lease could not be asked for


class View(NamedTuple):
    """What one process can see and touch. Its moves depend on nothing else."""

    me: Proc
    inbox: tuple[Event, ...]
    hung_up: bool  # nothing comes after the inbox
    deaf_peer: bool  # what we send fails
    peer_alive: bool
    lease: Who | None
    epoch: int
    ran: int
    main_sent: bool
    sent: tuple[int, int]


class Move(NamedTuple):
    """One thing a process can do next."""

    label: str
    kind: Kind
    after: View
    messages: tuple[Event, ...] = ()  # sent
    told: Event | None = None  # the event that the table answers
    disturbs: bool = False


class Step(NamedTuple):
    """One thing that can happen next in the world."""

    who: Who | None
    label: str
    kind: Kind
    world: World
    told: Event | None = None


# A process that heard this has the guest no longer on its conscience.
ENDS_DUTY = {
    Role.SOURCE: frozenset({Event.RUNNING, Event.EPOCH_MOVED}),
    Role.TARGET: frozenset({Event.ABORT, Event.EPOCH_MOVED}),
}


@dataclass(frozen=True, eq=False)
class Subject:
    """What is checked: the table and deadlines that the code runs by, and the lease's checks."""

    table: Table = field(default_factory=lambda: TRANSITIONS)
    deadlines: Mapping[tuple[Role, Phase], DeadlineName] = field(default_factory=lambda: DEADLINES)
    guards: frozenset[Guard] = ALL_GUARDS


@dataclass(frozen=True)
class Setup:
    """Which world is explored."""

    name: str
    paused: bool = False  # the guest is paused: it has an owner, but is never entered
    prompt: bool = False  # the kernel's answer is acted on in the turn in which it was asked
    third: bool = False  # an earlier successor lives, holds every fd, and may ask for the lease
    faults: frozenset[Fault] = ALL_FAULTS
    lies: bool = False  # the peer says anything at any time; only P2 is asked of such a world
    subject: Subject = field(default_factory=Subject)

    def start(self) -> World:
        """A source that has the guest, and a target that waits."""
        epoch = ran = 1
        source = Proc(
            running=not self.paused,
            state_epoch=epoch,
            state_age=ran,
            pending=(Event.START,),
            duty=True,
        )
        procs: tuple[Proc, ...] = (source, Proc())
        if self.third:
            # It verified a STATE one epoch ago; then the source took the guest back and ran it.
            old = Proc(Phase.LOADED, state_epoch=epoch, state_age=ran)
            procs = (source._replace(state_epoch=2, state_age=2), Proc(), old)
            epoch = ran = 2
        return World(procs, epoch=epoch, ran=ran)


def other(who: Who) -> Who:
    """The peer; the third process was a successor, so its peer is the source."""
    return Who.TARGET if who is Who.SOURCE else Who.SOURCE


def owners(world: World, *, paused: bool) -> list[Who]:
    """Who has the guest: runs it, or (paused) holds the lease with a current state and a duty."""
    procs = world.procs
    if not paused:
        return [who for who in Who if who < len(procs) and procs[who].running]
    return [
        who
        for who in Who
        if who < len(procs) and world.lease is who and may_have_to_run(world, who, paused=True)
    ]


def may_have_to_run(world: World, who: Who, *, paused: bool) -> bool:
    """Whether this process has a CPU state that is current, verified, and not given up for good.

    Of a running guest the moved epoch says that it was given up, before any message does; a paused
    guest moves no epoch, so there the word on its way counts.
    """
    proc = world.procs[who]
    last_word = Event.RUNNING if who is Who.SOURCE else Event.ABORT
    if paused and who < Who.THIRD and last_word in world.to[who]:
        return False
    if ENDS_DUTY[who.role].intersection(proc.queue):
        return False
    return proc.alive and proc.duty and proc.state_epoch == world.epoch
