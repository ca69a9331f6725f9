"""What a value of a migration parameter must be, in QEMU's words.

A rule gives None for a good value, and otherwise the text of the error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vmm.errors import MigrationError
from vmm.update.faults import FaultPlan

MAX_DOWNTIME_LIMIT_MS = 2_000_000
_PAGE_SIZE_BYTES = 4096

Rule = Callable[[Any], str | None]


def in_range(name: str, low: int, high: int, shown_low: int | None = None) -> Rule:
    """QEMU's most usual range check; its text spells the name with underscores."""
    shown = low if shown_low is None else shown_low
    text = f"Parameter '{name}' expects a value between {shown} and {high}"
    return lambda value: None if low <= value <= high else text


def integer_in_range(name: str, low: int, high: int, shown_low: str = "") -> Rule:
    """Its other range check."""
    text = f"Parameter '{name}' expects an integer in the range of {shown_low or low} to {high}"
    return lambda value: None if low <= value <= high else text


def downtime(value: int) -> str | None:
    """At most 2000 s."""
    if value <= MAX_DOWNTIME_LIMIT_MS:
        return None
    return "Parameter 'downtime_limit' expects an integer in the range of 0 to (2000 * 1000) ms"


def cache_size(value: int) -> str | None:
    """A power of two of at least a page."""
    if value >= _PAGE_SIZE_BYTES and value & (value - 1) == 0:
        return None
    return "Parameter 'xbzrle_cache_size' expects a power of two no less than the target page size"


def dirty_limit(value: int) -> str | None:
    """At least 1 MB/s."""
    return None if value >= 1 else "Parameter 'vcpu_dirty_limit' must be greater than 1 MB/s"


def no_tls(value: str | None) -> str | None:
    """Only the empty value: there is no TLS."""
    if not value:
        return None
    return "Parameter 'tls-creds': TLS is not supported; both processes are on one host"


def fault_plan(value: str | None) -> str | None:
    """Empty, or ROLE/WHEN/ACTION/FAULT."""
    try:
        if value:
            FaultPlan.parse(value)
    except MigrationError as error:
        return str(error)
    return None
