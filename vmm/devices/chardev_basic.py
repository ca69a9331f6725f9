"""Character back-ends without a peer that comes and goes: null, file, stdio."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
import termios
from typing import Any

from vmm.config import Chardev
from vmm.devices.chardev_base import CharFd, CharFrontend
from vmm.devices.chardev_stream import FdStream, write_if_writable
from vmm.errors import DeviceError

_FILE_MODE = 0o666  # before umask, as QEMU


class NullBackend:
    """Discards output and has no input."""

    def __init__(self, backend_id: str) -> None:
        self.id = backend_id
        self._frontend: CharFrontend | None = None

    def attach(self, frontend: CharFrontend) -> None:
        """See CharBackend."""
        if self._frontend is not None:
            raise DeviceError(f"chardev '{self.id}' is already in use; every device needs its own")
        self._frontend = frontend

    def write(self, data: bytes) -> int:
        """Accept and discard."""
        return len(data)

    def receive_more(self) -> None:
        """There is no input."""

    def start(self) -> None:
        """Nothing to do."""

    def stop(self) -> None:
        """Nothing to do."""

    async def wait_connected(self) -> None:
        """Always ready."""

    def fds(self) -> tuple[CharFd, ...]:
        """None."""
        return ()

    def hold_fds(self) -> None:
        """Nothing to hold."""

    def release_fds(self) -> None:
        """Nothing to release."""

    def close(self) -> None:
        """Nothing to release."""


class _FdBackend:
    """What file and stdio share: one stream, and fds that never change."""

    def __init__(self, backend_id: str, stream: FdStream) -> None:
        self.id = backend_id
        self._stream = stream

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
        """See CharBackend."""
        self._stream.start()

    def stop(self) -> None:
        """See CharBackend."""
        self._stream.stop()

    async def wait_connected(self) -> None:
        """Always ready."""

    def hold_fds(self) -> None:
        """They never change."""

    def release_fds(self) -> None:
        """They never change."""


class FileBackend(_FdBackend):
    """Output to a file; the successor goes on with the same open file, at the same place."""

    def __init__(self, config: Chardev, fd: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(config.id, FdStream(loop, self._write_failed))
        self._path = config.path
        self._fd: int | None = fd
        self._stream.connect(read_fd=None, write_fd=fd)

    @classmethod
    def open(cls, config: Chardev, loop: asyncio.AbstractEventLoop) -> FileBackend:
        """Create or truncate (or append to) the file; DeviceError with QEMU's text."""
        if config.path is None:
            raise DeviceError(f"chardev '{config.id}': Parameter 'path' is missing")
        # O_NONBLOCK is for fifos and terminals; a regular file does not know it.
        flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        flags |= os.O_APPEND if config.append else os.O_TRUNC
        try:
            fd = os.open(config.path, flags, _FILE_MODE)
        except OSError as error:
            raise DeviceError(
                f"chardev '{config.id}': Could not open '{config.path}': {error.strerror}"
            ) from error
        return cls(config, fd, loop)

    @classmethod
    def adopt(cls, config: Chardev, fd: int, loop: asyncio.AbstractEventLoop) -> FileBackend:
        """Go on with the predecessor's open file; DeviceError if it is not open for writing."""
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise DeviceError(f"chardev '{config.id}': the file that came is not open for writing")
        os.set_inheritable(fd, False)
        return cls(config, fd, loop)

    def fds(self) -> tuple[CharFd, ...]:
        """The open file."""
        return () if self._fd is None else (CharFd(0, self._fd, "file"),)

    def close(self) -> None:
        """Close the file."""
        self._stream.stop()
        self._stream.disconnect()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _write_failed(self, _fd: int) -> None:
        """The disk is full, or a fifo's reader went away: say once that output is lost."""
        sys.stderr.write(
            f"vmm: warning: chardev '{self.id}': writing to '{self._path}' failed; its output is "
            "discarded from now on\n"
        )
        self._stream.disconnect()


class StdioBackend(_FdBackend):
    """This process's standard input and output; every process of an update has its own."""

    def __init__(
        self,
        backend_id: str,
        loop: asyncio.AbstractEventLoop,
        read_fd: int = 0,
        write_fd: int = 1,
    ) -> None:
        super().__init__(backend_id, FdStream(loop, self._lost, write_if_writable))
        self._read_fd, self._write_fd = read_fd, write_fd
        self._read_open = self._write_open = True
        self._saved_terminal: list[Any] | None = None
        self._connect()
        if os.isatty(read_fd):
            self._saved_terminal = termios.tcgetattr(read_fd)
            termios.tcsetattr(read_fd, termios.TCSANOW, _guest_terminal(self._saved_terminal))

    def fds(self) -> tuple[CharFd, ...]:
        """None: they belong to the process, not to the machine."""
        return ()

    def close(self) -> None:
        """Give the terminal back as it was; the fds are the process's."""
        self._stream.stop()
        self._stream.disconnect()
        if self._saved_terminal is not None:
            termios.tcsetattr(self._read_fd, termios.TCSANOW, self._saved_terminal)
            self._saved_terminal = None

    def _lost(self, fd: int) -> None:
        """End of input, or nobody reads our output: go on with the other half."""
        if fd == self._read_fd:
            self._read_open = False
        else:
            self._write_open = False
        self._connect()

    def _connect(self) -> None:
        self._stream.connect(
            read_fd=self._read_fd if self._read_open else None,
            write_fd=self._write_fd if self._write_open else None,
        )


def _guest_terminal(attributes: list[Any]) -> list[Any]:
    """Every key goes to the guest as it is typed, except those that signal this process (^C)."""
    iflag, oflag, cflag, lflag, ispeed, ospeed, characters = attributes
    iflag &= ~(
        termios.BRKINT
        | termios.PARMRK
        | termios.ISTRIP
        | termios.INLCR
        | termios.IGNCR
        | termios.ICRNL
        | termios.IXON
    )
    lflag &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.IEXTEN)
    characters = list(characters)
    characters[termios.VMIN], characters[termios.VTIME] = 1, 0
    return [iflag, oflag | termios.OPOST, cflag, lflag, ispeed, ospeed, characters]
