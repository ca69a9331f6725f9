"""Connections for migration addresses, and the header on the main channel.

Nothing here is in the blackout: the main channel is connected and checked while the guest runs.
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from cpr.codec import FrameDecoder, encode
from cpr.messages import MainHeader
from cpr.unixsocket import BACKLOG, adopt_listener, connect_unix, listen_unix
from vmm.config import MigrationAddress, SocketFd, SocketInet, SocketUnix, SocketVsock
from vmm.errors import MigrationError
from vmm.optstr import parse_number

_MS_PER_S = 1000
_READ_SIZE_BYTES = 4096
_PORT_MAX = (1 << 16) - 1
_VSOCK_MAX = (1 << 32) - 1


async def connect(address: MigrationAddress, timeout_ms: int) -> socket.socket:
    """A connected non-blocking stream socket.

    Raises OSError as the kernel gave it, or MigrationError for an address that cannot carry the
    main channel of a cpr update.
    """
    if isinstance(address, SocketUnix):
        return await connect_unix(address.path, timeout_ms=timeout_ms)
    target: tuple[str | int, int]
    if isinstance(address, SocketInet):
        host, port = _inet_target(address)
        target = (host or "127.0.0.1", port)
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    elif isinstance(address, SocketVsock):
        target = _vsock_target(address)
        sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    elif isinstance(address, SocketFd):
        raise MigrationError(f"File descriptor named '{address.name}' has not been found")
    else:
        raise MigrationError("Migration requires streamable transport (eg unix)")
    sock.setblocking(False)
    try:
        async with asyncio.timeout(timeout_ms / _MS_PER_S):
            await asyncio.get_running_loop().sock_connect(sock, target)
    except (TypeError, ValueError) as error:  # no host name
        sock.close()
        where = ":".join(str(part) for part in target)
        raise MigrationError(f"address resolution failed for {where}: {error}") from error
    except BaseException:
        sock.close()
        raise
    return sock


def connect_reason(address: MigrationAddress, error: BaseException) -> str:
    """QEMU's text for a failed connection."""
    if isinstance(error, OSError) and error.strerror:
        where = getattr(address, "path", None) or str(address)
        return f"Failed to connect to '{where}': {error.strerror}"
    return str(error)


class Listener:
    """A listening stream socket for one connection; removes its socket file when closed."""

    def __init__(self, sock: socket.socket, path: Path | None) -> None:
        self._sock = sock
        self._path = path
        self._inode = path.stat().st_ino if path is not None else None
        self._accepting: asyncio.Task[tuple[socket.socket, object]] | None = None

    @classmethod
    def open(cls, address: MigrationAddress) -> Listener:
        """Listen on `address`; an inherited fd must already be a listening socket.

        Raises MigrationError with QEMU's text.
        """
        if isinstance(address, SocketFd):
            return cls(_adopt(address.name), None)
        if isinstance(address, SocketUnix):
            return cls(_bind_unix(address.path), Path(address.path))
        if isinstance(address, SocketInet):
            return cls(_bind(socket.AF_INET, _inet_target(address)), None)
        if isinstance(address, SocketVsock):
            return cls(_bind(socket.AF_VSOCK, _vsock_target(address)), None)
        raise MigrationError("Migration requires streamable transport (eg unix)")

    async def accept(self) -> socket.socket:
        """The one connection, non-blocking; ends with CancelledError when closed meanwhile."""
        loop = asyncio.get_running_loop()
        self._accepting = asyncio.ensure_future(loop.sock_accept(self._sock))
        try:
            sock, _address = await self._accepting
        finally:
            self._accepting = None
        sock.setblocking(False)
        return sock

    def close(self) -> None:
        """Stop listening and remove the socket file if it is still ours."""
        if self._accepting is not None:
            self._accepting.cancel()
        self._sock.close()
        path, self._path = self._path, None
        if path is not None and path.exists() and path.stat().st_ino == self._inode:
            path.unlink()


async def send_main_header(
    sock: socket.socket, header: MainHeader, protocol: int, timeout_ms: int
) -> None:
    """Write the stream header and the RAM block table, in the protocol that ACCEPT chose."""
    async with asyncio.timeout(timeout_ms / _MS_PER_S):
        await asyncio.get_running_loop().sock_sendall(sock, encode(header, protocol))


async def receive_main_header(sock: socket.socket, timeout_ms: int) -> MainHeader:
    """Read the stream header; RemoteProtocolError or MigrationError when it is anything else."""
    loop = asyncio.get_running_loop()
    decoder = FrameDecoder()
    try:
        async with asyncio.timeout(timeout_ms / _MS_PER_S):
            while data := await loop.sock_recv(sock, _READ_SIZE_BYTES):
                for message in decoder.feed(data):
                    if isinstance(message, MainHeader):
                        return message
                    raise MigrationError(
                        f"main channel: expected the stream header, got {type(message).__name__}"
                    )
    except TimeoutError:
        raise MigrationError(f"main channel: no stream header within {timeout_ms} ms") from None
    raise MigrationError("main channel: closed before the stream header came")


def _adopt(name: str) -> socket.socket:
    number = parse_number(name)
    if number is None:
        raise MigrationError(f"File descriptor named '{name}' has not been found")
    return adopt_listener(number)


def _inet_target(address: SocketInet) -> tuple[str, int]:
    port = parse_number(address.port, _PORT_MAX)
    if port is None:
        raise MigrationError(
            f"address resolution failed for {address.host}:{address.port}: Servname not supported "
            "for ai_socktype"
        )
    return address.host, port


def _vsock_target(address: SocketVsock) -> tuple[int, int]:
    cid, port = (parse_number(text, _VSOCK_MAX) for text in (address.cid, address.port))
    if cid is None:
        raise MigrationError(f"Failed to parse cid '{address.cid}'")
    if port is None:
        raise MigrationError(f"Failed to parse port '{address.port}'")
    return cid, port


def _bind_unix(path: str) -> socket.socket:
    try:
        return listen_unix(path)
    except OSError as error:
        raise MigrationError(f"Failed to bind socket to {path}: {error.strerror}") from error


def _bind(family: socket.AddressFamily, address: tuple[str | int, int]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        if family == socket.AF_INET:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except (OSError, TypeError, UnicodeError) as error:  # the last two: no host name
        sock.close()
        where = ":".join(str(part) for part in address)
        reason = error.strerror if isinstance(error, OSError) else error
        raise MigrationError(f"Failed to bind socket to {where}: {reason}") from error
    return sock
