"""What the two processes say to each other: one frozen dataclass per message.

Source to target: Hello, Fds, Rehearsal, State, Commit, Abort. Target to source: Accept, Refuse,
Listening, Connected, Prepared, Loaded, Running, Failed. On the main channel: MainHeader. The order
in which they may come is not here but in `cpr.handshake`; their bytes are in `cpr.codec`.

A message is a value: it holds names of fds, never fds. On the wire a message is a CBOR map by field
name, and a field's annotation here is the type that the decoder insists on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar

from cpr.vmstate import Section, SectionHeader

PROTOCOL_MIN = 1
PROTOCOL_MAX = 1

# In the frames of what may be said before a protocol is agreed on (`BEFORE_AGREEMENT`). Every
# version reads and writes them alike, for ever: two without a protocol in common can still say so.
ANY_PROTOCOL = 0xFFFF

# A frame's fds go out with its first byte in one sendmsg, and the kernel takes at most 253 in one
# (SCM_MAX_FD). 64 keeps the ancillary buffer of every read small; more fds are several Fds frames.
FDS_PER_FRAME_MAX = 64

# Long enough that two updates of one host never share one; it only tells them apart.
NONCE_SIZE_BYTES = 16


class MessageKind(IntEnum):
    """The kind number in a frame's header. Numbers are the wire: never reused, never renumbered."""

    HELLO = 1
    FDS = 2
    REHEARSAL = 3
    STATE = 4
    COMMIT = 5
    ABORT = 6
    ACCEPT = 16
    REFUSE = 17
    LISTENING = 18
    CONNECTED = 19
    PREPARED = 20
    LOADED = 21
    RUNNING = 22
    FAILED = 23
    MAIN_HEADER = 32


# They may gain fields, which an older version does not look at, and lose or change none.
BEFORE_AGREEMENT = frozenset(
    {MessageKind.HELLO, MessageKind.REFUSE, MessageKind.ABORT, MessageKind.FAILED}
)


@dataclass(frozen=True, slots=True)
class FdOffer:
    """One fd that the source will hand over.

    `name` follows `cpr.ownedfd.FdName`; `identity` is what the receiver must find with fstat and
    fcntl (dev, ino, size, seals, …), by the names that the fd's kind defines.
    """

    name: str
    kind: str
    identity: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Message:
    """Base of every message."""

    KIND: ClassVar[MessageKind]


# ---- source to target ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello(Message):
    """All that the target needs to know to accept or to refuse while the guest still runs.

    `protocol_min..protocol_max` is what the source speaks after HELLO. `machine` is the part of the
    configuration that both sides must share. `user_paced` says that a person decides when the guest
    stops, so the target sets no deadline for STATE. `nonce` ties the main channel to this update.
    """

    KIND: ClassVar[MessageKind] = MessageKind.HELLO

    protocol_min: int
    protocol_max: int
    product: str
    product_version: str
    machine: Mapping[str, Any]
    sections: tuple[SectionHeader, ...]
    fds: tuple[FdOffer, ...]
    user_paced: bool
    nonce: bytes


@dataclass(frozen=True, slots=True)
class Fds(Message):
    """The fds attached to this frame, in the order of `names`; the last frame has no `more`."""

    KIND: ClassVar[MessageKind] = MessageKind.FDS

    names: tuple[str, ...]
    more: bool = False


@dataclass(frozen=True, slots=True)
class Rehearsal(Message):
    """A state that is loaded but never run: it warms every path and finds what cannot be loaded."""

    KIND: ClassVar[MessageKind] = MessageKind.REHEARSAL

    sections: tuple[Section, ...]


@dataclass(frozen=True, slots=True)
class State(Message):
    """The stopped guest, complete.

    `runstate` is what the guest shall be in the target. `epoch` is the run epoch at which the state
    was taken: it may be run only while that is still the current one. `stopped_ns` is the
    CLOCK_MONOTONIC time of the stop.
    """

    KIND: ClassVar[MessageKind] = MessageKind.STATE

    sections: tuple[Section, ...]
    runstate: str
    epoch: int
    stopped_ns: int


@dataclass(frozen=True, slots=True)
class Commit(Message):
    """The source has given the run lease back to the kernel: take it and run."""

    KIND: ClassVar[MessageKind] = MessageKind.COMMIT


@dataclass(frozen=True, slots=True)
class Abort(Message):
    """The source keeps the guest; `cancelled` when a person asked for that."""

    KIND: ClassVar[MessageKind] = MessageKind.ABORT

    reason: str
    cancelled: bool


# ---- target to source ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Accept(Message):
    """The machine can run here. `deferred`: a person still has to say where main listens."""

    KIND: ClassVar[MessageKind] = MessageKind.ACCEPT

    protocol: int
    product: str
    product_version: str
    deferred: bool


@dataclass(frozen=True, slots=True)
class Refuse(Message):
    """The machine cannot run here; every reason at once."""

    KIND: ClassVar[MessageKind] = MessageKind.REFUSE

    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Listening(Message):
    """The machine is built around the fds, and main listens."""

    KIND: ClassVar[MessageKind] = MessageKind.LISTENING


@dataclass(frozen=True, slots=True)
class Connected(Message):
    """The header on main was that of this update."""

    KIND: ClassVar[MessageKind] = MessageKind.CONNECTED


@dataclass(frozen=True, slots=True)
class Prepared(Message):
    """The rehearsal was loaded; only the real state is missing."""

    KIND: ClassVar[MessageKind] = MessageKind.PREPARED


@dataclass(frozen=True, slots=True)
class Loaded(Message):
    """Every section of STATE is verified and being set: the guest now survives either process."""

    KIND: ClassVar[MessageKind] = MessageKind.LOADED


@dataclass(frozen=True, slots=True)
class Running(Message):
    """The target owns the guest since `resumed_ns` (CLOCK_MONOTONIC), in run state `runstate`."""

    KIND: ClassVar[MessageKind] = MessageKind.RUNNING

    resumed_ns: int
    runstate: str


@dataclass(frozen=True, slots=True)
class Failed(Message):
    """The target gives up and will never run this guest."""

    KIND: ClassVar[MessageKind] = MessageKind.FAILED

    reason: str


# ---- on main -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MainHeader(Message):
    """First on main: which update this is, and the RAM block table (id, size in bytes)."""

    KIND: ClassVar[MessageKind] = MessageKind.MAIN_HEADER

    nonce: bytes
    machine_type: str
    ram_blocks: tuple[tuple[str, int], ...]


MESSAGE_TYPES: Mapping[MessageKind, type[Message]] = {
    message_type.KIND: message_type
    for message_type in (
        Hello,
        Fds,
        Rehearsal,
        State,
        Commit,
        Abort,
        Accept,
        Refuse,
        Listening,
        Connected,
        Prepared,
        Loaded,
        Running,
        Failed,
        MainHeader,
    )
}
