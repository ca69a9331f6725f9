"""What this process has open, for tests that count before and after."""

from __future__ import annotations

from pathlib import Path


def open_files() -> list[str]:
    """Every open fd as what it links to, sorted; listing itself opens one more each time."""
    links = [fd for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    return sorted(str(link.readlink()) for link in links)


def memfds() -> list[str]:
    """Every memfd that is open or mapped."""
    mapped = Path("/proc/self/maps").read_text().splitlines()
    return [name for name in (*open_files(), *mapped) if "memfd:" in name]
