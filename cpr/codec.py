"""Messages to bytes and back. Pure: bytes in, messages out.

A frame is a fixed header and a body::

    0   4  magic "CPRL"
    4   2  protocol version of this frame, or 0xffff: every version reads it (HELLO, REFUSE, …)
    6   2  kind (cpr.messages.MessageKind)
    8   2  number of fds that travel with the frame's first byte
    10  2  zero
    12  4  length of the body in bytes
    16 16  BLAKE2b-128 of the body
    32     body: one CBOR map, field name to value

The header is checked as soon as it is there, before a byte of the body is waited for. The body must
be exactly the fields of the message's dataclass, with exactly their types: a field more, a field
less, or a bool where an int belongs is refused by name. New fields are a new protocol version, and
HELLO says which versions its sender speaks. What comes before one is agreed on (BEFORE_AGREEMENT)
is of every version: there a field more is not looked at, because a later version may have added it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import struct
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cpr.errors import LimitError, LocalProtocolError, RemoteProtocolError
from cpr.messages import (
    ANY_PROTOCOL,
    BEFORE_AGREEMENT,
    FDS_PER_FRAME_MAX,
    MESSAGE_TYPES,
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    FdOffer,
    Message,
    MessageKind,
)
from cpr.plaincbor import dumps, loads
from cpr.typed import Reader, Readers, Writer, writer_of
from cpr.vmstate import SectionHeader

MAGIC = b"CPRL"
_HEADER = struct.Struct(">4sHHHHI16s")
HEADER_SIZE_BYTES = _HEADER.size
DIGEST_SIZE_BYTES = 16

# State is kilobytes for a small machine and a few MiB with many vCPUs and their XSAVE areas; RAM
# never travels here. 64 MiB is far above any machine and far below what would hurt the receiver.
FRAME_SIZE_MAX_BYTES = 64 << 20
# Everything but state is names and numbers; thousands of fds fit in this.
CONTROL_SIZE_MAX_BYTES = 1 << 20
# The deepest field is the machine description in HELLO: a map of lists of lists. Twice that.
NESTING_MAX = 8

_WITHOUT_FIELDS = frozenset(
    message_type for message_type in MESSAGE_TYPES.values() if not dataclasses.fields(message_type)
)
# The types of messages, and of records in them, that a later version may add fields to.
_MAY_GROW = frozenset(MESSAGE_TYPES[kind] for kind in BEFORE_AGREEMENT) | {SectionHeader, FdOffer}
_STATE_KINDS = frozenset({MessageKind.REHEARSAL, MessageKind.STATE})
_KINDS = {int(kind): kind for kind in MessageKind}


@dataclass(frozen=True, slots=True)
class Frame:
    """A decoded message, and how many of the received fds are its."""

    message: Message
    fd_count: int


def encode(message: Message, protocol: int = PROTOCOL_MIN, *, fd_count: int = 0) -> bytes:
    """The frame of `message`; those of BEFORE_AGREEMENT are the same in every `protocol`.

    Raises LocalProtocolError for a version that we do not speak, a message larger than its limit,
    or an `fd_count` that the message cannot have.
    """
    if type(message) in _WITHOUT_FIELDS:
        return _encode_once(message, protocol, fd_count)
    return _encode(message, protocol, fd_count)


def _encode(message: Message, protocol: int, fd_count: int) -> bytes:
    kind = message.KIND
    if not PROTOCOL_MIN <= protocol <= PROTOCOL_MAX:
        raise LocalProtocolError(
            f"{kind.name}: asked for protocol {protocol}; this build speaks "
            f"{PROTOCOL_MIN}..{PROTOCOL_MAX}"
        )
    if fd_count and (kind is not MessageKind.FDS or fd_count > FDS_PER_FRAME_MAX):
        raise LocalProtocolError(
            f"{kind.name} cannot carry {fd_count} fds; FDS carries up to {FDS_PER_FRAME_MAX}"
        )
    body = dumps(_WRITERS[kind](message))
    if len(body) > _size_max(kind):
        raise LocalProtocolError(
            f"{kind.name} has {len(body)} bytes; the limit is {_size_max(kind)}"
        )
    version = ANY_PROTOCOL if kind in BEFORE_AGREEMENT else protocol
    return _HEADER.pack(MAGIC, version, kind, fd_count, 0, len(body), _digest(body)) + body


# Of a message that says no more than its kind there is one frame, made before the blackout.
_encode_once = functools.lru_cache(maxsize=64)(_encode)


class FrameDecoder:
    """Collects bytes of one stream and cuts them into frames.

    After an error the stream has no known frame boundary any more: every later call raises the
    same error.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._header: tuple[MessageKind, int, int, bytes] | None = None
        self._error: RemoteProtocolError | None = None

    @property
    def pending_bytes(self) -> int:
        """Bytes of a frame that is not complete; 0 between frames."""
        return len(self._buffer) + (HEADER_SIZE_BYTES if self._header is not None else 0)

    def feed(self, data: bytes | memoryview) -> list[Message]:
        """Every message that `data` completes, on a stream that carries no fds.

        Raises RemoteProtocolError (LimitError) as `next_frame` does.
        """
        self.push(data)
        messages = []
        while (frame := self.next_frame()) is not None:
            if frame.fd_count:
                raise RemoteProtocolError(
                    f"{frame.message.KIND.name} announces {frame.fd_count} fds on a stream that "
                    "carries none"
                )
            messages.append(frame.message)
        return messages

    def push(self, data: bytes | memoryview) -> None:
        """Append received bytes."""
        self._buffer += data

    def next_frame(self) -> Frame | None:
        """The next complete frame, or None.

        Raises RemoteProtocolError, or LimitError when a named limit is exceeded; the text names the
        message and the field.
        """
        if self._error is not None:
            raise self._error
        try:
            return self._next_frame()
        except RemoteProtocolError as error:
            self._error = error
            raise

    def _next_frame(self) -> Frame | None:
        buffer = self._buffer
        if self._header is None:
            if len(buffer) < HEADER_SIZE_BYTES:
                if not MAGIC.startswith(buffer[: len(MAGIC)]):
                    raise _not_a_frame(buffer)
                return None
            self._header = _parse_header(buffer)
            del buffer[:HEADER_SIZE_BYTES]
        kind, fd_count, size_bytes, digest = self._header
        if len(buffer) < size_bytes:
            return None
        body = bytes(memoryview(buffer)[:size_bytes])
        del buffer[:size_bytes]
        self._header = None
        if _digest(body) != digest:
            raise RemoteProtocolError(
                f"{kind.name}: digest of {size_bytes} bytes does not match; it was damaged"
            )
        return Frame(_decode_body(kind, body), fd_count)


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=DIGEST_SIZE_BYTES).digest()


def _size_max(kind: MessageKind) -> int:
    return FRAME_SIZE_MAX_BYTES if kind in _STATE_KINDS else CONTROL_SIZE_MAX_BYTES


def _not_a_frame(buffer: bytearray) -> RemoteProtocolError:
    return RemoteProtocolError(
        f"expected a frame that begins with {MAGIC!r}, got {bytes(buffer[: len(MAGIC)])!r}: the "
        "peer does not speak this protocol"
    )


def _parse_header(buffer: bytearray) -> tuple[MessageKind, int, int, bytes]:
    """(kind, fd count, body size in bytes, digest) of a header that may be believed."""
    magic, version, number, fd_count, reserved, size_bytes, digest = _HEADER.unpack_from(buffer)
    if magic != MAGIC:
        raise _not_a_frame(buffer)
    if version != ANY_PROTOCOL and not PROTOCOL_MIN <= version <= PROTOCOL_MAX:
        raise RemoteProtocolError(
            f"the peer sent a frame of protocol {version}; this build reads "
            f"{PROTOCOL_MIN}..{PROTOCOL_MAX}"
        )
    kind = _KINDS.get(number)
    if kind is None:
        raise RemoteProtocolError(f"protocol {version} has no message of kind {number}")
    if (version == ANY_PROTOCOL) != (kind in BEFORE_AGREEMENT):
        raise RemoteProtocolError(
            f"{kind.name} came in a frame of protocol {version}; HELLO, REFUSE, ABORT and FAILED "
            f"have {ANY_PROTOCOL}, and nothing else has"
        )
    if reserved:
        raise RemoteProtocolError(f"{kind.name}: reserved header field is {reserved}, expected 0")
    if size_bytes > _size_max(kind):
        raise LimitError(
            f"{kind.name}: {size_bytes} bytes announced; the limit is {_size_max(kind)}"
        )
    if fd_count > FDS_PER_FRAME_MAX:
        raise LimitError(f"{kind.name}: {fd_count} fds; the limit is {FDS_PER_FRAME_MAX} a frame")
    if fd_count and kind is not MessageKind.FDS:
        raise RemoteProtocolError(f"{kind.name}: {fd_count} fds announced; only FDS carries fds")
    return kind, fd_count, size_bytes, digest


def _decode_body(kind: MessageKind, body: bytes) -> Message:
    try:
        value = loads(body, nesting_max=NESTING_MAX, int_keys=False)
    except ValueError as error:
        raise RemoteProtocolError(f"{kind.name}: body is {error}") from error
    message: Message = _READERS[kind](value, kind.name)
    return message


# ---- readers and writers, made at import: none is cold when the guest is stopped -----------------


def _nested_reader(cls: type[Any]) -> Reader:
    hints = typing.get_type_hints(cls)
    names = frozenset(field.name for field in dataclasses.fields(cls))
    may_grow = cls in _MAY_GROW
    readers = tuple((field.name, _TYPES.of(hints[field.name])) for field in dataclasses.fields(cls))

    def read(value: Any, where: str) -> Any:
        if type(value) is not dict:
            raise _TYPES.wrong(where, "map", value)
        if value.keys() != names and not (may_grow and value.keys() > names):
            missing = ", ".join(sorted(names - value.keys())) or "none"
            unknown = ", ".join(sorted(map(repr, value.keys() - names))) or "none"
            raise RemoteProtocolError(
                f"{where}: fields missing: {missing}; fields unknown: {unknown}"
            )
        return cls(*[reader(value[name], f"{where}.{name}") for name, reader in readers])

    return read


def _nested_writer(cls: type[Any]) -> Writer:
    hints = typing.get_type_hints(cls)
    writers = tuple(
        (field.name, writer_of(hints[field.name], _nested_writer))
        for field in dataclasses.fields(cls)
    )
    return lambda value: {name: writer(getattr(value, name)) for name, writer in writers}


_TYPES = Readers(RemoteProtocolError, LimitError, _nested_reader)
_READERS: Mapping[MessageKind, Reader] = {
    kind: _nested_reader(message_type) for kind, message_type in MESSAGE_TYPES.items()
}
_WRITERS: Mapping[MessageKind, Writer] = {
    kind: _nested_writer(message_type) for kind, message_type in MESSAGE_TYPES.items()
}
