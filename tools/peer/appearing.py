"""Wait for a file to appear, by inotify: the one way to know that a QEMU successor listens.

QEMU 10.0 takes only a path for its cpr channel, and its monitor answers only after an update began.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from pathlib import Path

from tools.lab.deadlines import within

IN_CREATE = 0x100
EVENTS_BYTES = 4096  # several events; their content does not matter, only that something came


async def file_appears(path: Path, deadline_ms: int) -> None:
    """Wait until `path` exists; its directory must. DeadlineError after `deadline_ms`."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "inotify_init1")
    try:
        # The watch comes before the first look, so that no creation falls between the two.
        if libc.inotify_add_watch(fd, os.fsencode(path.parent), IN_CREATE) < 0:
            raise OSError(ctypes.get_errno(), "inotify_add_watch", str(path.parent))
        await within(deadline_ms, f"{path} to appear", _until_exists(fd, path))
    finally:
        os.close(fd)


async def _until_exists(fd: int, path: Path) -> None:
    loop = asyncio.get_running_loop()
    changed = asyncio.Event()

    def drain() -> None:
        os.read(fd, EVENTS_BYTES)
        changed.set()

    loop.add_reader(fd, drain)
    try:
        while not _is_there(path):
            await changed.wait()
            changed.clear()
    finally:
        loop.remove_reader(fd)


def _is_there(path: Path) -> bool:
    return path.exists()
