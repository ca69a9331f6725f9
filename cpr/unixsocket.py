"""Connecting and listening on AF_UNIX stream sockets without blocking the loop.

A unix connect is done at once or not at all, except when the listener's backlog is full. Then a
non-blocking connect fails with EAGAIN, and there is no event to wait for (asyncio would take the
socket for connected). Only a blocking connect waits its turn, so that one case has a thread.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
import threading
from pathlib import Path

from cpr.errors import ChannelError

PATH_SIZE_MAX = 107  # sockaddr_un.sun_path without its terminating zero
# One update at a time: the kernel lets one more wait its turn.
BACKLOG = 1
# Whoever connects gets guest RAM, once it has said who it is; nobody else needs to come so far.
_SOCKET_MODE = 0o600

_MS_PER_S = 1000
_TIMEVAL = struct.Struct("@ll")  # struct timeval: seconds, microseconds


async def connect_unix(path: str, timeout_ms: int) -> socket.socket:
    """A connected non-blocking socket, at the latest after `timeout_ms`.

    Raises OSError with the kernel's errno (FileNotFoundError, ConnectionRefusedError, …), or
    ChannelError when the path is too long or the listener does not accept in time.
    """
    _check_path(path)
    sock = _stream_socket()
    try:
        sock.connect(path)
    except BlockingIOError:
        sock.close()
        return await _connect_in_turn(path, timeout_ms)
    except BaseException:
        sock.close()
        raise
    return sock


def listen_unix(path: str) -> socket.socket:
    """A non-blocking socket that listens on `path`, for its owner and root (mode 0600).

    A stale socket file there is replaced. Raises OSError with the kernel's errno, or ChannelError
    when the path is too long, or in a directory where anybody could put another socket there.
    """
    _check_path(path)
    _check_directory(Path(path).parent)
    stale = Path(path)
    if stale.is_socket():
        stale.unlink()
    sock = _stream_socket()
    try:
        os.fchmod(sock.fileno(), _SOCKET_MODE)  # bind takes the mode from here, less the umask
        sock.bind(path)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def adopt_listener(fd: int) -> socket.socket:
    """Take over an inherited listening AF_UNIX stream socket; `fd` is ours from here on.

    Raises ChannelError, with `fd` closed, when it is anything else.
    """
    try:
        os.set_inheritable(fd, False)
    except OSError as error:
        raise ChannelError(f"fd {fd} cannot be used: {error.strerror}") from error
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        os.close(fd)
        raise ChannelError(f"fd {fd} is not a socket: {error.strerror}") from error
    is_unix_stream = sock.family == socket.AF_UNIX and sock.type == socket.SOCK_STREAM
    if not is_unix_stream or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.close()
        raise ChannelError(f"fd {fd} is not a listening unix stream socket; bind and listen first")
    sock.setblocking(False)
    return sock


async def accept_unix(listener: socket.socket) -> socket.socket:
    """The next connection, non-blocking; ends by cancellation or by an OSError of the listener."""
    sock, _address = await asyncio.get_running_loop().sock_accept(listener)
    return sock


def _check_path(path: str) -> None:
    size = len(os.fsencode(path))
    if size > PATH_SIZE_MAX:
        raise ChannelError(
            f"socket path '{path}' has {size} bytes; the kernel allows {PATH_SIZE_MAX}"
        )


def _check_directory(directory: Path) -> None:
    mode = directory.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise ChannelError(
            f"anybody may replace a socket in '{directory}' (mode {stat.S_IMODE(mode):04o}); use a "
            "directory that others cannot write, or one with the sticky bit"
        )


def _stream_socket() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    return sock


async def _connect_in_turn(path: str, timeout_ms: int) -> socket.socket:
    """Connect in a thread. The thread is a daemon: nothing waits for it when we are cancelled."""
    loop = asyncio.get_running_loop()
    connected: asyncio.Future[socket.socket] = loop.create_future()

    def deliver(sock: socket.socket, error: OSError | None) -> None:
        if error is None and not connected.done():
            connected.set_result(sock)
            return
        sock.close()
        if error is not None and not connected.done():
            connected.set_exception(error)

    def work() -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        error: OSError | None = None
        try:
            _connect_blocking(sock, path, timeout_ms)
        except OSError as caught:
            error = caught
        try:
            loop.call_soon_threadsafe(deliver, sock, error)
        except RuntimeError:  # the loop is gone, and with it whoever wanted to connect
            sock.close()

    threading.Thread(target=work, name="connect_unix", daemon=True).start()
    try:
        return await connected
    except asyncio.CancelledError:
        if connected.done() and not connected.cancelled() and connected.exception() is None:
            connected.result().close()  # it came in the moment in which we were cancelled
        raise
    except BlockingIOError as error:
        raise ChannelError(
            f"no answer from '{path}' within {timeout_ms} ms: its backlog is full"
        ) from error


def _connect_blocking(sock: socket.socket, path: str, timeout_ms: int) -> None:
    """connect() with the kernel's own timeout (SO_SNDTIMEO); BlockingIOError when it passes."""
    timeval = _TIMEVAL.pack(timeout_ms // _MS_PER_S, timeout_ms % _MS_PER_S * 1000)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
    sock.connect(path)
    sock.getpeername()  # a connect that a signal interrupted looks done but has no peer
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(0, 0))
    sock.setblocking(False)
