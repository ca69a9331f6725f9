"""A memory limit from outside: a control group of version 1 or 2 (cgroups(7))."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
_NUMBERS = itertools.count()


@dataclass(frozen=True, slots=True)
class MemoryCgroup:
    """One group; empty again when its processes have ended."""

    place: Path
    limit_file: str
    usage_file: str

    def enter(self) -> None:
        """Move the calling process into the group; between fork and exec."""
        (self.place / "cgroup.procs").write_text(str(os.getpid()))

    @property
    def usage_bytes(self) -> int:
        """What its processes have now."""
        return int((self.place / self.usage_file).read_text())

    def limit(self, size_bytes: int) -> None:
        """They may have no more from now on: who asks for it is killed, or told no."""
        (self.place / self.limit_file).write_text(str(size_bytes))


def parent() -> tuple[Path, str, str] | None:
    """Where groups with a memory limit can be made, and their files; None when nowhere."""
    old = ROOT / "memory"
    if os.access(old, os.W_OK) and (old / "memory.limit_in_bytes").exists():
        return old, "memory.limit_in_bytes", "memory.usage_in_bytes"
    control = ROOT / "cgroup.subtree_control"
    if os.access(control, os.W_OK) and "memory" in control.read_text().split():
        return ROOT, "memory.max", "memory.current"
    return None


@contextlib.contextmanager
def memory_cgroup() -> Iterator[MemoryCgroup]:
    """Make a group; it is gone when the context is left, and its processes have ended then."""
    found = parent()
    assert found is not None, "needs_memory_cgroup says that there is one"
    base, limit_file, usage_file = found
    place = base / f"cpr-test-{os.getpid()}-{next(_NUMBERS)}"
    place.mkdir()
    try:
        yield MemoryCgroup(place, limit_file, usage_file)
    finally:
        place.rmdir()
