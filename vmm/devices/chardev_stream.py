"""Bytes between one fd and one front-end: what every back-end with an fd has in common.

Writes happen at once on the caller's (vCPU's) thread; only when the kernel's buffer is full does
the loop take part, to say when there is room. Reads happen on the loop's thread, and only as much
as the front-end has room for. `FdStream` does not own its fds: the back-end closes them.
"""

from __future__ import annotations

import asyncio
import os
import select
import threading
from collections.abc import Callable

from vmm.devices.chardev_base import CharFrontend
from vmm.errors import DeviceError

# Writing this much after POLLOUT never blocks on a pipe (pipe(7), PIPE_BUF); terminals get single
# bytes, because POLLOUT promises them no more.
_PIPE_CHUNK_BYTES = select.PIPE_BUF
_TERMINAL_CHUNK_BYTES = 1

WriteNow = Callable[[int, bytes], int]


def write_nonblocking(fd: int, data: bytes) -> int:
    """Write to an fd that has O_NONBLOCK; 0 when it is full. OSError otherwise."""
    try:
        return os.write(fd, data)
    except BlockingIOError:
        return 0


def write_if_writable(fd: int, data: bytes) -> int:
    """Write to an fd that we share with others and must not make non-blocking (stdout)."""
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    chunk = _TERMINAL_CHUNK_BYTES if os.isatty(fd) else _PIPE_CHUNK_BYTES
    done = 0
    while done < len(data) and poller.poll(0):
        done += os.write(fd, data[done : done + chunk])
    return done


class FdStream:
    """See the module's text.

    `on_lost(fd)` is called on the loop's thread when the peer behind `fd` is gone: end of file on
    reading, or a write that failed.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_lost: Callable[[int], None],
        write_now: WriteNow = write_nonblocking,
    ) -> None:
        self._loop = loop
        self._on_lost = on_lost
        self._write_now = write_now
        self._frontend: CharFrontend | None = None
        self._lock = threading.Lock()  # guards the fds: a number must not be used after close
        self._read_fd: int | None = None
        self._write_fd: int | None = None
        self._generation = 0  # of the connection: news about an older one is no news
        self._running = False
        self._paused = False  # the front-end had no room; receive_more wakes us

    def attach(self, frontend: CharFrontend, backend_id: str) -> None:
        """Remember the front-end; DeviceError if there is one."""
        if self._frontend is not None:
            raise DeviceError(
                f"chardev '{backend_id}' is already in use; every device needs its own"
            )
        self._frontend = frontend

    def connect(self, *, read_fd: int | None, write_fd: int | None) -> None:
        """Use these fds from now on, in place of any others."""
        self._unwatch()
        with self._lock:
            self._read_fd, self._write_fd = read_fd, write_fd
            self._generation += 1
        self._paused = False
        if self._running:
            self._watch_readable()
            if self._frontend is not None:
                self._frontend.writable()

    def disconnect(self) -> None:
        """Forget the fds; when this returns nobody uses their numbers."""
        self._unwatch()
        with self._lock:
            self._read_fd = self._write_fd = None
            self._generation += 1

    def write(self, data: bytes) -> int:
        """Write what goes at once; without a connection, or when it breaks, discard."""
        with self._lock:
            fd = self._write_fd
            if fd is None:
                return len(data)
            try:
                done = self._write_now(fd, data)
            except OSError:
                self._loop.call_soon_threadsafe(self._lost, fd, self._generation)
                return len(data)
        if done < len(data):
            self._loop.call_soon_threadsafe(self._watch_writable)
        return done

    def receive_more(self) -> None:
        """Any thread: the front-end has room again."""
        if self._paused:
            self._loop.call_soon_threadsafe(self._resume_reading)

    def start(self) -> None:
        """Begin to read, in the loop's next turn: this is called before the guest is entered."""
        self._running = True
        self._paused = False
        self._loop.call_soon(self._watch_if_running)

    def stop(self) -> None:
        """Read nothing more, and call the front-end no more."""
        self._running = False
        self._unwatch()

    # ---- on the loop's thread -----------------------------------------------------------

    def _watch_if_running(self) -> None:
        if self._running and not self._paused:
            self._watch_readable()

    def _watch_readable(self) -> None:
        if self._read_fd is None or self._frontend is None:
            return
        try:
            self._loop.add_reader(self._read_fd, self.on_readable)
        except PermissionError:  # epoll refuses regular files and /dev/null: always readable
            self._loop.call_soon(self._read_unpollable)

    def _read_unpollable(self) -> None:
        if self._running and not self._paused and self._read_fd is not None:
            self.on_readable()
            self._loop.call_soon(self._read_unpollable)

    def on_readable(self) -> None:
        """Read once, as much as the front-end takes."""
        if not self._running or self._read_fd is None or self._frontend is None:
            return
        capacity = self._frontend.receive_capacity()
        if capacity == 0:
            self._paused = True
            self._loop.remove_reader(self._read_fd)
            self._resume_reading_if_room()  # the guest may have read before it saw the pause
            return
        try:
            data = os.read(self._read_fd, capacity)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._frontend.receive(data)
        else:
            self._lost(self._read_fd, self._generation)

    def _resume_reading_if_room(self) -> None:
        if self._frontend is not None and self._frontend.receive_capacity():
            self._resume_reading()

    def _resume_reading(self) -> None:
        if self._paused and self._running:
            self._paused = False
            self._watch_readable()

    def _watch_writable(self) -> None:
        if self._running and self._write_fd is not None:
            self._loop.add_writer(self._write_fd, self._on_writable)

    def _on_writable(self) -> None:
        if self._write_fd is not None:
            self._loop.remove_writer(self._write_fd)
        if self._running and self._frontend is not None:
            self._frontend.writable()

    def _lost(self, fd: int, generation: int) -> None:
        """The peer is gone; said once for each connection."""
        if generation == self._generation:
            self._generation += 1
            self._unwatch()
            self._on_lost(fd)

    def _unwatch(self) -> None:
        if self._read_fd is not None:
            self._loop.remove_reader(self._read_fd)
        if self._write_fd is not None:
            self._loop.remove_writer(self._write_fd)
