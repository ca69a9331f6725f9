"""A pseudo-terminal as a character back-end: people attach with `screen /dev/pts/N`.

Only the master side (index 0) is kept, and passed on in an update; the terminal keeps its name.
While nobody has the terminal open the kernel reports a hang-up all the time, which would keep an
ordinary watcher busy for ever. So the master is watched through an edge-triggered epoll of its own,
which speaks once for each change, and each write asks first: with nobody there output is discarded,
as in QEMU.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import struct
import sys
import tty

from vmm.config import Chardev
from vmm.devices.chardev_base import CharFd, CharFrontend
from vmm.devices.chardev_stream import FdStream, write_nonblocking
from vmm.errors import DeviceError

_MULTIPLEXER = "/dev/ptmx"
# asm-generic/ioctls.h; Python names them only from 3.13 on.
_TIOCSPTLCK, _TIOCGPTN = 0x4004_5431, 0x8004_5430
_INT = struct.Struct("i")


class PtyBackend:
    """See the module's text. Owns the master."""

    def __init__(self, config: Chardev, master: int, loop: asyncio.AbstractEventLoop) -> None:
        self.id = config.id
        self.terminal_path = terminal_path(master)
        self._loop = loop
        self._master: int | None = master
        self._frontend: CharFrontend | None = None
        self._running = False
        self._paused = False
        os.set_blocking(master, False)
        self._stream = FdStream(loop, self._lost, _write_if_attached)  # writes only
        self._stream.connect(read_fd=None, write_fd=master)
        self._edges = select.epoll()  # CLOEXEC from birth
        self._edges.register(master, select.EPOLLIN | select.EPOLLET)

    @classmethod
    def open(cls, config: Chardev, loop: asyncio.AbstractEventLoop) -> PtyBackend:
        """Make a new terminal in raw mode and say its name on stderr, as QEMU does.

        Raises DeviceError when the system has no more pseudo-terminals.
        """
        try:
            master = os.open(_MULTIPLEXER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError as error:
            raise DeviceError(
                f"chardev '{config.id}': Failed to create PTY: {error.strerror}"
            ) from error
        fcntl.ioctl(master, _TIOCSPTLCK, _INT.pack(0))  # unlock, see unlockpt(3)
        slave = os.open(terminal_path(master), os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        tty.setraw(slave)
        os.close(slave)
        backend = cls(config, master, loop)
        sys.stderr.write(f"char device redirected to {backend.terminal_path} (label {config.id})\n")
        return backend

    @classmethod
    def adopt(cls, config: Chardev, fd: int, loop: asyncio.AbstractEventLoop) -> PtyBackend:
        """Go on with the predecessor's master; DeviceError (fd untouched) if it is none."""
        try:
            terminal_path(fd)
        except OSError as error:
            raise DeviceError(
                f"chardev '{config.id}': the fd that came is not the master of a pseudo-terminal"
            ) from error
        os.set_inheritable(fd, False)
        return cls(config, fd, loop)

    def attach(self, frontend: CharFrontend) -> None:
        """See CharBackend."""
        self._stream.attach(frontend, self.id)
        self._frontend = frontend

    def write(self, data: bytes) -> int:
        """See CharBackend."""
        return self._stream.write(data)

    def receive_more(self) -> None:
        """See CharBackend."""
        if self._paused:
            self._loop.call_soon_threadsafe(self._resume_reading)

    def start(self) -> None:
        """See CharBackend."""
        self._running = True
        self._stream.start()
        self._loop.add_reader(self._edges.fileno(), self._on_edge)
        self._resume_reading()

    def stop(self) -> None:
        """See CharBackend."""
        if self._running:
            self._loop.remove_reader(self._edges.fileno())
        self._running = False
        self._stream.stop()

    async def wait_connected(self) -> None:
        """Always ready: output without a reader is discarded."""

    def fds(self) -> tuple[CharFd, ...]:
        """The master."""
        return () if self._master is None else (CharFd(0, self._master, "pty"),)

    def hold_fds(self) -> None:
        """It never changes."""

    def release_fds(self) -> None:
        """It never changes."""

    def close(self) -> None:
        """Close the master; the terminal goes away unless a successor has it."""
        self.stop()
        self._stream.disconnect()
        self._edges.close()
        if self._master is not None:
            os.close(self._master)
            self._master = None

    # ---- on the loop's thread -----------------------------------------------------------

    def _on_edge(self) -> None:
        self._edges.poll(0)  # take the edge
        if not self._paused:
            self._read_available()

    def _resume_reading(self) -> None:
        self._paused = False
        if self._running:
            self._read_available()

    def _read_available(self) -> None:
        """Read until the terminal is empty or the front-end is full: there is one edge only."""
        while self._frontend is not None and self._master is not None:
            capacity = self._frontend.receive_capacity()
            if capacity == 0:
                self._paused = True
                capacity = self._frontend.receive_capacity()  # read before it saw the pause?
                if capacity == 0:
                    return
                self._paused = False
            try:
                data = os.read(self._master, capacity)
            except OSError:  # empty (EAGAIN), or nobody has the terminal open (EIO)
                return
            self._frontend.receive(data)

    def _lost(self, _fd: int) -> None:
        """A failed write means that nobody is there; the next one asks again."""
        self._stream.connect(read_fd=None, write_fd=self._master)


def terminal_path(master: int) -> str:
    """The name of the terminal side; OSError if `master` is no master (see ptsname(3))."""
    (number,) = _INT.unpack(fcntl.ioctl(master, _TIOCGPTN, _INT.pack(0)))
    return f"/dev/pts/{number}"


def _write_if_attached(fd: int, data: bytes) -> int:
    """Write if somebody has the terminal open, else discard."""
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    if any(events & select.POLLHUP for _, events in poller.poll(0)):
        return len(data)
    return write_nonblocking(fd, data)
