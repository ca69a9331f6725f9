"""Where the lab keeps what is slow to fetch or to build; tools/fetch-peer uses the same place."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """~/.cache/cpr-vmm, or under $XDG_CACHE_HOME."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cpr-vmm"


def peer_qemu() -> Path:
    """Where tools/fetch-peer puts the command that runs a real QEMU."""
    return cache_folder() / "peers" / "qemu" / "run"
