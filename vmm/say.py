"""What the process says to people: lines on stderr, as QEMU writes them."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

PROGRAM = "vmm"


def say(text: str, *, timestamps: bool = False) -> None:
    """Write one line; with `-msg timestamp=on` it begins with the time in UTC."""
    stamp = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ} " if timestamps else ""
    print(f"{stamp}{PROGRAM}: {text}", file=sys.stderr, flush=True)  # noqa: T201 - a CLI's voice
