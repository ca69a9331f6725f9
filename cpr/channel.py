"""Frames and their fds over one connected AF_UNIX stream socket.

Everything is a callback on the loop's own thread, without tasks or futures: a message is decoded
and handed over in the turn of the loop in which its last byte came, and `send` writes at once.

How fds stay with their frame: a sender attaches them to the frame's first byte, the kernel delivers
them in order with that byte, and the header says how many they are. Whatever does not add up is a
violation: the fds are closed, and nothing more is read, because the next boundary is not known.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence

from cpr.codec import FRAME_SIZE_MAX_BYTES, FrameDecoder, encode
from cpr.errors import ChannelError, RemoteProtocolError
from cpr.messages import FDS_PER_FRAME_MAX, PROTOCOL_MIN, Message
from cpr.ownedfd import OwnedFd
from cpr.peer import (
    UCRED,
    PeerIdentity,
    ask_for_credentials,
    check_uid,
    default_allowed_uids,
)
from cpr.unixsocket import accept_unix, adopt_listener, connect_unix, listen_unix

__all__ = [
    "Channel",
    "PeerIdentity",
    "accept_unix",
    "adopt_listener",
    "connect_unix",
    "listen_unix",
]

# One read of a small machine's state; larger frames take several turns of the loop.
_READ_SIZE_BYTES = 256 << 10
# The largest frame may wait behind a few small ones, and nothing else ever does.
SEND_QUEUE_MAX_BYTES = FRAME_SIZE_MAX_BYTES + (4 << 20)

_INT_SIZE_BYTES = struct.calcsize("i")
_ANCILLARY_SIZE_BYTES = socket.CMSG_SPACE(FDS_PER_FRAME_MAX * _INT_SIZE_BYTES) + socket.CMSG_SPACE(
    UCRED.size
)

OnMessage = Callable[[Message, list[OwnedFd]], None]
OnReason = Callable[[str], None]
Tamper = Callable[[bytes, Sequence[int]], tuple[bytes, Sequence[int]]]


class Channel:
    """One connection to the peer of an update.

    Owns `sock` (connected, AF_UNIX, SOCK_STREAM) from the first line on. `peer` is given when the
    caller knows who it is; otherwise the credentials of the first bytes received say it, and those
    must be of a user in `allowed_uids` (default: our own and root) before anything is delivered.

    Raises ChannelError, with `sock` closed, when a given `peer` is not of an allowed user.
    """

    def __init__(
        self,
        sock: socket.socket,
        loop: asyncio.AbstractEventLoop,
        *,
        peer: PeerIdentity | None = None,
        allowed_uids: frozenset[int] | None = None,
    ) -> None:
        self._sock = sock
        self._loop = loop
        self._allowed_uids = default_allowed_uids() if allowed_uids is None else allowed_uids
        self._peer = peer
        self._ucred: bytes | None = None  # of the first bytes; all others must have the same
        self._decoder = FrameDecoder()
        self._buffer = memoryview(bytearray(_READ_SIZE_BYTES))
        self._received: deque[OwnedFd] = deque()
        self._unsent: deque[tuple[memoryview, list[OwnedFd]]] = deque()
        self._unsent_bytes = 0
        self._reading = False
        self._lost = False
        self._closed = False
        self._on_message: OnMessage = _nobody_listens
        self._on_lost: OnReason = _nobody_listens
        self._on_violation: OnReason | None = None
        self._on_peer_died: Callable[[], None] | None = None
        self.protocol = PROTOCOL_MIN  # of what we send, until both sides agree on another
        self.tamper: Tamper | None = None  # a drill damages the next frame
        try:
            sock.setblocking(False)
            if peer is not None:
                check_uid(peer, self._allowed_uids)
            ask_for_credentials(sock)
        except BaseException:
            self.close()
            raise

    @property
    def peer(self) -> PeerIdentity | None:
        """Who is at the other end; None until the first bytes came."""
        return self._peer

    def start(
        self,
        on_message: OnMessage,
        on_lost: OnReason,
        on_peer_died: Callable[[], None] | None = None,
        on_violation: OnReason | None = None,
    ) -> None:
        """Begin to read.

        `on_message` gets each message and owns its fds. `on_lost` is called at most once, after
        every complete message that came before. `on_peer_died` is called when the peer's process is
        dead, after what it had sent. `on_violation` is called when the peer breaks the protocol or
        is not allowed; nothing is read after that, but `send` still works, so that the peer can be
        told. Without it a violation counts as loss.
        """
        self._on_message = on_message
        self._on_lost = on_lost
        self._on_peer_died = on_peer_died
        self._on_violation = on_violation
        self._reading = True
        self._loop.add_reader(self._sock.fileno(), self._receive_all)
        if self._peer is not None:
            self._watch(self._peer)

    def close(self) -> None:
        """Release everything; no callback is called afterwards. Again is harmless."""
        if self._closed:
            return
        self._closed = self._lost = True
        self._stop_reading()
        self._drop_unsent()
        if self._peer is not None:
            self._unwatch(self._peer)
            self._peer.close()
        self._sock.close()

    # ---- for drills ------------------------------------------------------------------------------

    def shutdown(self, how: int) -> None:
        """End the connection in one direction or both (socket.SHUT_…), as a broken peer does."""
        with contextlib.suppress(OSError):  # it is not connected any more
            self._sock.shutdown(how)

    def break_off(self, reason: str) -> None:
        """Behave as if the kernel had reported `reason` for the connection."""
        self._lose(f"receiving failed: {reason}")

    # ---- sending ---------------------------------------------------------------------------------

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send `message` and duplicates of `fds`, at once as far as the kernel takes it.

        Raises ChannelError when the channel is closed or broken (`on_lost` has then been called),
        or when the peer does not read and the queue is full.
        """
        encoded = encode(message, self.protocol, fd_count=len(fds))
        if self.tamper is not None:
            tamper, self.tamper = self.tamper, None
            encoded, fds = tamper(encoded, fds)
        frame = memoryview(encoded)
        if self._lost:
            raise ChannelError(f"{message.KIND.name} was not sent: the channel is closed")
        sent = 0
        if not self._unsent:
            sent = self._write(frame, fds)
        if sent < len(frame):
            self._queue(message, frame[sent:], () if sent else fds)

    def _write(self, data: memoryview, fds: Sequence[int]) -> int:
        """Bytes that the kernel took; fds go with the first of them."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            return self._sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        except OSError as error:
            reason = f"sending failed: {error.strerror}"
            self._drain()  # what the peer said before it went explains why it went
            self._lose(reason)
            raise ChannelError(reason) from error

    def _queue(self, message: Message, rest: memoryview, fds: Sequence[int]) -> None:
        if self._unsent_bytes + len(rest) > SEND_QUEUE_MAX_BYTES:
            raise ChannelError(
                f"{message.KIND.name} was not sent: the peer does not read, and "
                f"{self._unsent_bytes} bytes wait already (limit {SEND_QUEUE_MAX_BYTES})"
            )
        # The caller may close its fds when send() returns, so what waits is a duplicate.
        if not self._unsent:
            self._loop.add_writer(self._sock.fileno(), self._send_rest)
        self._unsent.append((rest, [OwnedFd.duplicate_of(fd, "unsent:fd:0") for fd in fds]))
        self._unsent_bytes += len(rest)

    def _send_rest(self) -> None:
        data, fds = self._unsent[0]
        try:
            sent = self._write(data, [fd.fileno() for fd in fds])
        except ChannelError:
            return  # on_lost was called
        if sent:
            for fd in fds:
                fd.close()
            self._unsent_bytes -= sent
            self._unsent[0] = (data[sent:], [])
        if sent == len(data):
            self._unsent.popleft()
        if not self._unsent:
            self._loop.remove_writer(self._sock.fileno())

    def _drop_unsent(self) -> None:
        if self._unsent:
            self._loop.remove_writer(self._sock.fileno())
        for _data, fds in self._unsent:
            for fd in fds:
                fd.close()
        self._unsent.clear()

    # ---- receiving -------------------------------------------------------------------------------

    def _receive_all(self) -> None:
        """Read, and once more: the answer to what a message made us send may be there already.

        In the blackout that saves a turn of the loop. Twice and no more: others want the loop, too.
        """
        if self._receive() and self._reading:
            self._receive()

    def _drain(self) -> None:
        """Take everything that is there now, and first what came in one read with this message."""
        self._deliver()
        while self._reading and self._receive():
            pass

    def _receive(self) -> bool:
        """One read; False when there was nothing to read, or never will be."""
        try:
            size, ancillary, flags, _address = self._sock.recvmsg_into(
                [self._buffer], _ANCILLARY_SIZE_BYTES, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return False
        except OSError as error:
            self._lose(f"receiving failed: {error.strerror}")
            return False
        ucred = self._take_ancillary(ancillary)
        if flags & socket.MSG_CTRUNC:
            self._violate(
                f"fds were lost on their way: more than {FDS_PER_FRAME_MAX} in one frame, or this "
                "process may not open that many files"
            )
        elif not size:
            unfinished = self._decoder.pending_bytes
            inside = f" after {unfinished} bytes of an unfinished frame" if unfinished else ""
            self._lose(f"the peer closed the channel{inside}")
        elif self._authenticate(ucred):
            self._decoder.push(self._buffer[:size])
            self._deliver()
        return self._reading

    def _take_ancillary(self, ancillary: Sequence[tuple[int, int, bytes]]) -> bytes | None:
        """Own every fd that came, and return the sender's credentials."""
        ucred = None
        for _level, kind, data in ancillary:
            if kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
                self._received.extend(OwnedFd(fd, "received:fd:0") for fd in fds)
            else:
                ucred = data  # SCM_CREDENTIALS: we asked for nothing else
        return ucred

    def _authenticate(self, ucred: bytes | None) -> bool:
        """Whether these bytes may be looked at."""
        if ucred is not None and ucred == self._ucred:
            return True
        if ucred is None or self._ucred is not None:
            self._violate("another process sends on this channel than the one that began")
            return False
        self._ucred = ucred
        if self._peer is not None:
            return True  # the caller knows better who it is
        try:
            self._peer = PeerIdentity.of_ucred(ucred)
            check_uid(self._peer, self._allowed_uids)
        except ChannelError as error:
            self._violate(str(error))
            return False
        self._watch(self._peer)
        return True

    def _deliver(self) -> None:
        """Hand over every complete message with its fds."""
        while self._reading:
            try:
                frame = self._decoder.next_frame()
            except RemoteProtocolError as error:
                self._violate(str(error))
                return
            if frame is None:
                break
            if frame.fd_count > len(self._received):
                self._violate(
                    f"{frame.message.KIND.name} announces {frame.fd_count} fds, and "
                    f"{len(self._received)} came"
                )
                return
            fds = [self._received.popleft() for _ in range(frame.fd_count)]
            self._on_message(frame.message, fds)
        if self._received and not self._decoder.pending_bytes:
            self._violate(f"{len(self._received)} fds came that no frame announces")
        elif len(self._received) > FDS_PER_FRAME_MAX:
            self._violate(f"{len(self._received)} fds came with one frame")

    # ---- how it ends -----------------------------------------------------------------------------

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._sock.fileno())
        while self._received:
            self._received.popleft().close()

    def _violate(self, reason: str) -> None:
        self._stop_reading()
        if self._on_violation is None:
            self._lose(reason)
        else:
            self._on_violation(reason)

    def _lose(self, reason: str) -> None:
        self._stop_reading()
        self._drop_unsent()
        if not self._lost:
            self._lost = True
            self._on_lost(reason)

    # ---- the peer's death ------------------------------------------------------------------------

    def _watch(self, peer: PeerIdentity) -> None:
        if self._on_peer_died is None:
            return
        if peer.pidfd is not None:
            self._loop.add_reader(peer.pidfd.fileno(), self._peer_died)
        elif peer.pid:
            self._loop.call_soon(self._peer_died)  # it was gone before we could watch it

    def _unwatch(self, peer: PeerIdentity) -> None:
        if peer.pidfd is not None and not peer.pidfd.closed:
            self._loop.remove_reader(peer.pidfd.fileno())

    def _peer_died(self) -> None:
        assert self._peer is not None
        self._unwatch(self._peer)
        self._drain()
        if not self._closed and self._on_peer_died is not None:
            self._on_peer_died()


def _nobody_listens(*_arguments: object) -> None:
    """Before `start` there is nobody to tell; `send` raises all the same."""
