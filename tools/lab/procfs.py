"""What /proc says a process holds: the raw material of every leak check.

Counters are compared by *kind*, never by number: two generations of the same VMM must hold the same
kinds of fds, the same number of threads and no children.
"""

from __future__ import annotations

import ctypes
import os
import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tools.lab.errors import CheckFailedError

_INODE = re.compile(r"^(socket|pipe):\[\d+\]$")
_MEMFD = re.compile(r"^/memfd:(?P<name>.*) \(deleted\)$")
_RUN_DIR_NUMBER = re.compile(r"\d+")
PAGE_SIZE_BYTES = os.sysconf("SC_PAGE_SIZE")
_NS_PER_US = 1000


@dataclass(frozen=True, slots=True)
class ProcessCounters:
    """A snapshot of one process."""

    fds: Mapping[str, int]  # kind -> how many
    threads: int
    mappings: int
    rss_bytes: int
    children: int

    @property
    def fd_count(self) -> int:
        """All fds together."""
        return sum(self.fds.values())


@dataclass(frozen=True, slots=True)
class MemfdIdentity:
    """Which memory it is: the same (dev, ino) means the same pages."""

    dev: int
    ino: int
    size_bytes: int


def fd_kind(target: str) -> str:
    """Return what an fd link names, without what differs from process to process.

    `socket:[1234]` -> `socket`; `/memfd:ram0 (deleted)` -> `memfd:ram0`; in a path, digits of the
    file name become N.
    """
    if match := _INODE.match(target):
        return match[1]
    if match := _MEMFD.match(target):
        return f"memfd:{match['name']}"
    if target.startswith("/") and not target.startswith("/dev/"):
        return _RUN_DIR_NUMBER.sub("N", target.rsplit("/", 1)[-1])
    return target


def read_counters(pid: int) -> ProcessCounters:
    """Snapshot of a live process.

    Raises CheckFailedError when it is gone.
    """
    root = Path("/proc") / str(pid)
    try:
        return ProcessCounters(
            fds=dict(sorted(Counter(fd_kind(target) for target in _fd_links(pid)).items())),
            threads=len(list((root / "task").iterdir())),
            mappings=(root / "maps").read_text().count("\n"),
            rss_bytes=int((root / "statm").read_text().split()[1]) * PAGE_SIZE_BYTES,
            children=len(child_pids(pid)),
        )
    except FileNotFoundError as error:
        raise CheckFailedError(f"process {pid} is gone; it should still be there") from error


def child_pids(pid: int | str) -> tuple[int, ...]:
    """Direct children of every thread of a process (a number, or "self")."""
    tasks = Path("/proc") / str(pid) / "task"
    return tuple(
        int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()
    )


def leaks(before: ProcessCounters, after: ProcessCounters) -> tuple[str, ...]:
    """Name what `after` holds more than `before`, one sentence each; () is a pass.

    Mappings and RSS move with the allocator, so they are judged by their slope over many
    generations and not here.
    """
    found = [
        f"fd {kind}: {before.fds.get(kind, 0)} -> {count}"
        for kind, count in after.fds.items()
        if count > before.fds.get(kind, 0)
    ]
    if after.threads > before.threads:
        found.append(f"threads: {before.threads} -> {after.threads}")
    if after.children > before.children:
        found.append(f"child processes: {before.children} -> {after.children}")
    return tuple(found)


def find_memfd(pid: int, size_bytes: int) -> Path:
    """/proc path of the one memfd of this size that a process holds.

    Guest RAM has a size that nothing else in a VMM has, whatever the memfd is called. Raises
    CheckFailedError when there is none, or several that are not the same file.
    """
    found: dict[tuple[int, int], Path] = {}
    for entry in (Path("/proc") / str(pid) / "fd").iterdir():
        try:
            target = str(entry.readlink())
            status = entry.stat()
        except FileNotFoundError:
            continue  # an fd that was closed while we looked
        if _MEMFD.match(target) and status.st_size == size_bytes:
            found.setdefault((status.st_dev, status.st_ino), entry)
    if len(found) != 1:
        raise CheckFailedError(
            f"process {pid}: expected one memfd of {size_bytes} bytes (guest RAM), "
            f"found {len(found)}"
        )
    return next(iter(found.values()))


def memfd_identity(path: Path) -> MemfdIdentity:
    """Identity of what a /proc fd path names."""
    status = path.stat()
    return MemfdIdentity(status.st_dev, status.st_ino, status.st_size)


def _fd_links(pid: int) -> list[str]:
    links = []
    for entry in (Path("/proc") / str(pid) / "fd").iterdir():
        try:
            links.append(str(entry.readlink()))
        except FileNotFoundError:
            continue  # an fd that was closed while we looked
    return links


def cpu_time_us(pid: int) -> float:
    """User and system time of a process so far, by its CPU-time clock, which counts nanoseconds.

    /proc/PID/stat counts in ticks of 10 ms: a fast VMM's share of a short round reads as 0 there.
    Source: clock_getcpuclockid(3). Raises ProcessLookupError when there is no such process.
    """
    clock = ctypes.c_int32()
    failed = ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock))
    if failed:
        raise ProcessLookupError(failed, f"CPU-time clock of process {pid}: {os.strerror(failed)}")
    return time.clock_gettime_ns(clock.value) / _NS_PER_US
