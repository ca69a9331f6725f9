"""Which taps a process has open, as the kernel tells."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path


def taps_of(pid: int) -> list[str]:
    """Their names, sorted; the process may open and close other fds meanwhile."""
    found: list[str] = []
    for fdinfo in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found += re.findall(r"^iff:\s*(\S+)$", fdinfo.read_text(), re.MULTILINE)
    return sorted(found)
