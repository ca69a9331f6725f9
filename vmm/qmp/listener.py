"""The listening socket of a monitor: made at a path, or inherited from whoever started us."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

from vmm.config import Chardev
from vmm.errors import ConfigError

_BACKLOG = 16
# sun_path has 108 bytes, the last of which is the terminator.
MAX_PATH_BYTES = 107


class MonitorSocket:
    """A listening unix socket and the file it made; an inherited fd may also be connected."""

    def __init__(self, sock: socket.socket, path: Path | None = None) -> None:
        self.sock = sock
        self._path = path
        self._identity = _identity(path) if path is not None else None

    @classmethod
    def open(cls, chardev: Chardev) -> MonitorSocket:
        """Bind or adopt what the chardev says. Raises ConfigError with QEMU's text."""
        if chardev.fd is not None:
            return cls(_adopt(chardev.fd))
        assert chardev.path is not None
        return cls(_bind(chardev.path), chardev.path)

    @property
    def is_listening(self) -> bool:
        """Whether clients connect to it; otherwise it is itself the connection to the client."""
        return bool(self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))

    def remove_file(self) -> None:
        """Remove the socket file unless a successor has put its own there."""
        if self._path is None or self._identity is None:
            return
        with contextlib.suppress(FileNotFoundError):
            if _identity(self._path) == self._identity:
                self._path.unlink()
        self._path = None


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino


def _adopt(fd: int) -> socket.socket:
    try:
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise ConfigError(f"fd={fd} is not a socket: {error.strerror}") from error
    sock.setblocking(False)
    return sock


def _bind(path: Path) -> socket.socket:
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise ConfigError(
            f"UNIX socket path '{path}' is too long: it must be less than "
            f"{MAX_PATH_BYTES + 1} bytes"
        )
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        if path.is_socket():
            path.unlink()  # a predecessor's: its clients stay connected to it, new ones come here
        sock.bind(os.fspath(path))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise ConfigError(f"Failed to bind socket to {path}: {error.strerror}") from error
    return sock
