"""Make a character back-end from its configuration: a new one, or one around inherited fds.

Shared by serial ports and debug consoles; monitors have their own servers. Kinds:

    null    discards            chardev_basic.py
    file    output only         chardev_basic.py
    stdio   this process's own  chardev_basic.py; never passed on
    socket  unix stream         chardev_socket.py
    pty     a pseudo-terminal   chardev_pty.py
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping

from vmm.config import Chardev, ChardevKind
from vmm.devices.chardev_base import CharBackend, CharFd, CharFrontend
from vmm.devices.chardev_basic import FileBackend, NullBackend, StdioBackend
from vmm.devices.chardev_pty import PtyBackend
from vmm.devices.chardev_socket import SocketBackend
from vmm.errors import DeviceError

__all__ = ["CharBackend", "CharFd", "CharFrontend", "adopt_chardev", "open_chardev"]


def open_chardev(config: Chardev, loop: asyncio.AbstractEventLoop) -> CharBackend:
    """Open the file, socket or terminal that `config` describes.

    Raises DeviceError with the path and the system's reason.
    """
    match config.kind:
        case ChardevKind.NULL:
            return NullBackend(config.id)
        case ChardevKind.STDIO:
            return StdioBackend(config.id, loop)
        case ChardevKind.FILE:
            return FileBackend.open(config, loop)
        case ChardevKind.SOCKET:
            return SocketBackend.open(config, loop)
        case ChardevKind.PTY:
            return PtyBackend.open(config, loop)


def adopt_chardev(
    config: Chardev, fds: Mapping[int, int], loop: asyncio.AbstractEventLoop
) -> CharBackend:
    """Make the back-end of a successor around the fds that came, by their index.

    Nothing is opened in place of an fd that did not come. Every fd in `fds` belongs to the back-end
    afterwards, and is closed if this fails.

    Raises DeviceError for a missing, unexpected or wrong fd.
    """
    try:
        match config.kind:
            case ChardevKind.NULL:
                _expect_indexes(config, fds, required=frozenset())
                return NullBackend(config.id)
            case ChardevKind.STDIO:
                _expect_indexes(config, fds, required=frozenset())
                return StdioBackend(config.id, loop)
            case ChardevKind.FILE:
                _expect_indexes(config, fds, required=frozenset({0}))
                return FileBackend.adopt(config, fds[0], loop)
            case ChardevKind.SOCKET:
                required = frozenset({0}) if config.server else frozenset[int]()
                connection = frozenset({1 if config.server else 0})
                _expect_indexes(config, fds, required=required, optional=connection)
                return SocketBackend.adopt(config, fds, loop)
            case ChardevKind.PTY:
                _expect_indexes(config, fds, required=frozenset({0}))
                return PtyBackend.adopt(config, fds[0], loop)
    except DeviceError:
        for fd in fds.values():
            os.close(fd)
        raise


def _expect_indexes(
    config: Chardev,
    fds: Mapping[int, int],
    *,
    required: frozenset[int],
    optional: frozenset[int] = frozenset(),
) -> None:
    missing = sorted(required - fds.keys())
    if missing:
        raise DeviceError(
            f"chardev '{config.id}' ({config.kind.value}): fd(s) with index {missing} did not come "
            "from the source; it is never opened anew in an update"
        )
    unexpected = sorted(fds.keys() - required - optional)
    if unexpected:
        raise DeviceError(
            f"chardev '{config.id}' ({config.kind.value}): fd(s) with index {unexpected} came but "
            "are not expected; do both sides have the same -chardev?"
        )
