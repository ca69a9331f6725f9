"""Unix stream sockets as character back-ends: server (one client at a time) or client.

A server whose client went away discards output until the next one comes, as QEMU does. In an update
both the listener (fd 0) and the connection (fd 1; of a client, fd 0) go to the successor, so the
peer notices nothing; who connects while the fds are held waits in the backlog for who runs next.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Mapping
from pathlib import Path

from vmm.config import Chardev
from vmm.devices.chardev_base import CharFd, CharFrontend
from vmm.devices.chardev_stream import FdStream
from vmm.errors import DeviceError

# One client is served, a few may wait; QEMU's listen backlog is 1.
_BACKLOG = 4


class SocketBackend:
    """See the module's text. Owns its sockets."""

    def __init__(
        self,
        config: Chardev,
        loop: asyncio.AbstractEventLoop,
        *,
        listener: socket.socket | None,
        connection: socket.socket | None,
        socket_file: tuple[Path, int, int] | None,
    ) -> None:
        self.id = config.id
        self._loop = loop
        self._wait = config.server and config.wait
        self._listener = listener
        self._connection = connection
        self._socket_file = socket_file  # path, dev, ino: removed at close if it is still ours
        self._held = False
        self._serving = True  # False: adopted, and the predecessor still serves
        self._accepting = False
        self._connected = asyncio.Event()
        self._stream = FdStream(loop, self._lost)
        for sock in (listener, connection):
            if sock is not None:
                sock.setblocking(False)
        if connection is not None:
            self._use(connection)

    @classmethod
    def open(cls, config: Chardev, loop: asyncio.AbstractEventLoop) -> SocketBackend:
        """Listen or connect, by path or around an inherited fd (see `Chardev.fd`).

        Raises DeviceError with QEMU's texts.
        """
        if config.fd is not None:
            sock = _checked_socket(config, config.fd, listening=config.server)
            listener, connection = (sock, None) if config.server else (None, sock)
            backend = cls(config, loop, listener=listener, connection=connection, socket_file=None)
        elif config.path is None:
            raise DeviceError(f"chardev '{config.id}': one of 'path' and 'fd' must be given")
        elif config.server:
            listener = _listen(config.path)
            status = config.path.stat()
            file = (config.path, status.st_dev, status.st_ino)
            backend = cls(config, loop, listener=listener, connection=None, socket_file=file)
        else:
            connection = _connect(config.path)
            backend = cls(config, loop, listener=None, connection=connection, socket_file=None)
        backend._watch_listener()  # our own class's other half of construction
        return backend

    @classmethod
    def adopt(
        cls, config: Chardev, fds: Mapping[int, int], loop: asyncio.AbstractEventLoop
    ) -> SocketBackend:
        """Go on with the predecessor's sockets; nothing is accepted before `start`.

        Raises DeviceError, and then owns none of the fds.
        """
        sockets: dict[int, socket.socket] = {}
        try:
            for number, fd in sorted(fds.items()):
                listening = config.server and number == 0
                sockets[number] = _checked_socket(config, fd, listening=listening)
        except DeviceError:
            for sock in sockets.values():
                sock.detach()
            raise
        listener = sockets.get(0) if config.server else None
        connection = sockets.get(1 if config.server else 0)
        file = None
        if config.path is not None and listener is not None:
            with contextlib.suppress(FileNotFoundError):  # somebody removed the socket file: fine
                status = config.path.stat()
                file = (config.path, status.st_dev, status.st_ino)
        backend = cls(
            config,
            loop,
            listener=listener,
            connection=connection,
            socket_file=file,
        )
        backend._serving = False  # our own class; `start` takes over
        return backend

    def attach(self, frontend: CharFrontend) -> None:
        """See CharBackend."""
        self._stream.attach(frontend, self.id)

    def write(self, data: bytes) -> int:
        """See CharBackend."""
        return self._stream.write(data)

    def receive_more(self) -> None:
        """See CharBackend."""
        self._stream.receive_more()

    def start(self) -> None:
        """Serve: accept clients and read."""
        self._serving = True
        self._stream.start()
        self._watch_listener()

    def stop(self) -> None:
        """Read nothing; accept nothing."""
        self._stream.stop()
        self._unwatch_listener()

    async def wait_connected(self) -> None:
        """With wait=on: until the first client is there."""
        if self._wait:
            await self._connected.wait()

    def fds(self) -> tuple[CharFd, ...]:
        """Listener and connection, those that exist."""
        kinds = ((self._listener, "socket-listener"), (self._connection, "socket"))
        present = [(sock.fileno(), kind) for sock, kind in kinds if sock is not None]
        return tuple(CharFd(number, fd, kind) for number, (fd, kind) in enumerate(present))

    def hold_fds(self) -> None:
        """See CharBackend; a connection that breaks now stays, and breaks for the successor."""
        self._held = True
        self._unwatch_listener()

    def release_fds(self) -> None:
        """Serve again; a connection that broke meanwhile breaks now."""
        self._held = False
        if self._connection is not None:
            self._use(self._connection)
        self._watch_listener()

    def close(self) -> None:
        """Close both sockets, and remove the socket file unless a successor has it."""
        self._stream.stop()
        self._unwatch_listener()
        self._stream.disconnect()
        for sock in (self._listener, self._connection):
            if sock is not None:
                sock.close()
        self._listener = self._connection = None
        if self._socket_file is not None and self._serving and not self._held:
            _remove_socket_file(*self._socket_file)
        self._socket_file = None

    # ---- on the loop's thread -----------------------------------------------------------

    def _watch_listener(self) -> None:
        busy = self._connection is not None or self._held
        if self._listener is None or busy or not self._serving:
            return
        if not self._accepting:
            self._loop.add_reader(self._listener.fileno(), self._accept)
            self._accepting = True

    def _unwatch_listener(self) -> None:
        if self._accepting and self._listener is not None:
            self._loop.remove_reader(self._listener.fileno())
        self._accepting = False

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # the client gave up before we came
        connection.setblocking(False)
        self._connection = connection
        self._unwatch_listener()  # one client; the next one waits in the backlog
        self._use(connection)

    def _use(self, connection: socket.socket) -> None:
        self._stream.connect(read_fd=connection.fileno(), write_fd=connection.fileno())
        self._connected.set()

    def _lost(self, _fd: int) -> None:
        """The client is gone. While held the fd stays as it is; see `hold_fds`."""
        if self._held or self._connection is None:
            return
        self._stream.disconnect()
        self._connection.close()
        self._connection = None
        self._watch_listener()


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)  # a file that an earlier process left behind, as QEMU does
        listener.bind(os.fspath(path))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise DeviceError(f"Failed to bind socket to {path}: {error.strerror or error}") from error
    return listener


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(os.fspath(path))
    except OSError as error:
        connection.close()
        raise DeviceError(f"Failed to connect to '{path}': {error.strerror or error}") from error
    return connection


def _checked_socket(config: Chardev, fd: int, *, listening: bool) -> socket.socket:
    """Wrap an inherited fd; DeviceError (fd untouched) if it is not the socket it should be."""
    role = "a listening" if listening else "a connected"
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise DeviceError(
            f"chardev '{config.id}': fd {fd} is not a socket ({error.strerror}); expected {role} "
            "unix stream socket"
        ) from error
    is_listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) != 0
    if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_STREAM) or (
        is_listening != listening
    ):
        family, kind = sock.family, sock.type
        sock.detach()
        raise DeviceError(
            f"chardev '{config.id}': fd {fd} is a {'' if is_listening else 'not '}listening "
            f"{family!r} {kind!r} socket, expected {role} unix stream socket"
        )
    os.set_inheritable(fd, False)
    return sock


def _remove_socket_file(path: Path, dev: int, ino: int) -> None:
    """Remove the socket file if it is still the one we made, and not a later process's."""
    with contextlib.suppress(FileNotFoundError):
        status = path.stat()
        if (status.st_dev, status.st_ino) == (dev, ino):
            path.unlink()
