"""cpio archives in the "newc" form, which the Linux kernel unpacks as its initramfs; pure.

Several may follow one another in one file; a later file replaces an earlier one of the same name
(Documentation/driver-api/early-userspace/buffer-format.rst).
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"
ALIGNMENT = 4


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, folder, link (`content` is where it points) or device node (`rdev`)."""

    path: str  # without a leading slash
    mode: int  # with its type
    content: bytes = b""
    rdev: tuple[int, int] = (0, 0)
    mtime_s: int = 0

    @classmethod
    def file(cls, path: str, content: bytes, *, executable: bool = False) -> Entry:
        """A regular file."""
        return cls(path, stat.S_IFREG | (0o755 if executable else 0o644), content)

    @classmethod
    def copy(cls, source: Path, path: str) -> Entry:
        """A file as it is, with the time that Python's compiled files are compared with."""
        status = source.stat()
        mode = stat.S_IFREG | status.st_mode & 0o777
        return cls(path, mode, source.read_bytes(), mtime_s=int(status.st_mtime))

    @classmethod
    def folder(cls, path: str) -> Entry:
        """A directory; parents come before what is in them."""
        return cls(path, stat.S_IFDIR | 0o755)

    @classmethod
    def link(cls, path: str, target: str) -> Entry:
        """A symbolic link."""
        return cls(path, stat.S_IFLNK | 0o777, target.encode())

    @classmethod
    def char_device(cls, path: str, major: int, minor: int) -> Entry:
        """A character device."""
        return cls(path, stat.S_IFCHR | 0o600, rdev=(major, minor))


def archive(entries: Iterable[Entry]) -> bytes:
    """The whole archive; folders that the paths need are added before them."""
    parts: list[bytes] = []
    folders: set[str] = set()
    number = 0
    for entry in entries:
        names = entry.path.split("/")
        for depth in range(1, len(names)):
            folder = "/".join(names[:depth])
            if folder not in folders:
                folders.add(folder)
                number += 1
                parts += _record(Entry.folder(folder), number)
        if stat.S_ISDIR(entry.mode):
            if entry.path in folders:
                continue
            folders.add(entry.path)
        number += 1
        parts += _record(entry, number)
    parts += _record(Entry(_TRAILER, 0), 0)
    return b"".join(parts)


def _record(entry: Entry, number: int) -> tuple[bytes, ...]:
    name = entry.path.encode() + b"\0"
    fields = (
        *(number, entry.mode, 0, 0, 1, entry.mtime_s, len(entry.content), 0, 0),
        *(*entry.rdev, len(name), 0),
    )
    header = _MAGIC + b"".join(b"%08X" % field for field in fields) + name
    return (
        header.ljust(-(-len(header) // ALIGNMENT) * ALIGNMENT, b"\0"),
        entry.content,
        bytes(-len(entry.content) % ALIGNMENT),
    )
