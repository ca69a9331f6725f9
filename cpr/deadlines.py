"""How long each wait of a live update may take.

Data only: the driver arms them, and which phase waits for which is in `cpr.handshake.DEADLINES`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import Enum
from typing import Self


class DeadlineName(Enum):
    """What a phase may wait for; the value is the first part of the field in `Deadlines`."""

    CONNECT = "connect"
    HELLO = "hello"
    FDS = "fds"
    PREPARE = "prepare"
    DEFER = "defer"
    MAIN = "main"
    REHEARSE = "rehearse"
    STOP = "stop"
    STATE = "state"
    LOAD = "load"
    RUN = "run"
    ORPHAN = "orphan"


# An orphan that finds the lease busy waits for its source to make up its mind, which takes one of
# the source's deadlines (load or run). Were this one no longer, the orphan would ask too early.
ORPHAN_FACTOR = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Deadlines:
    """How long each wait may take, in milliseconds.

    While the guest runs they are generous, because waiting costs nothing; while it is stopped they
    are what a guest's own watchdogs forgive.
    """

    connect_ms: int = 30_000  # the successor may still be starting: its listener's backlog holds us
    hello_ms: int = 30_000
    fds_ms: int = 30_000
    prepare_ms: int = 60_000  # mapping and prefaulting large RAM
    defer_ms: int = 600_000  # a person or an orchestrator sets the target up by hand
    main_ms: int = 10_000
    rehearse_ms: int = 10_000
    stop_ms: int = 10_000
    state_ms: int = 30_000  # the source's stop and save, seen from the target
    load_ms: int = 5_000
    run_ms: int = 5_000
    orphan_ms: int = 10_000  # a dying process is dead long before; a living one runs the guest

    @classmethod
    def uniform(cls, timeout_ms: int) -> Self:
        """The same deadline for every wait; an orphan's must outlast those of its source."""
        same = {field.name: timeout_ms for field in fields(cls)}
        return cls(**same | {"orphan_ms": timeout_ms * ORPHAN_FACTOR})

    def of(self, name: DeadlineName) -> int:
        """The deadline `name` in milliseconds."""
        timeout_ms: int = getattr(self, f"{name.value}_ms")
        return timeout_ms
