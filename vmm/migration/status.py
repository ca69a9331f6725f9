"""The status of a migration: its moves, and what `query-migrate` shows at each of them.

One record describes one migration, outgoing or incoming; a new attempt begins a new record. Times
come in as CLOCK_MONOTONIC nanoseconds, go out as whole milliseconds.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Mapping, Sequence
from typing import Any

from vmm.config import MigrationAddress, SocketFd, SocketInet, SocketUnix, SocketVsock
from vmm.errors import RunstateError
from vmm.migration.addresses import SOCKET_ADDRESS, socket_to_qmp
from vmm.qapi import INT, NUMBER, STR, Array, Member, Object, of_annotation

_NS_PER_MS = 1_000_000
_NS_PER_S = 1_000_000_000
_PAGE_SIZE_BYTES = 4096


class MigrationStatus(enum.Enum):
    """Every status of QEMU 10.0; postcopy, COLO and wait-unplug are never entered here."""

    NONE = "none"
    SETUP = "setup"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    ACTIVE = "active"
    POSTCOPY_ACTIVE = "postcopy-active"
    POSTCOPY_PAUSED = "postcopy-paused"
    POSTCOPY_RECOVER_SETUP = "postcopy-recover-setup"
    POSTCOPY_RECOVER = "postcopy-recover"
    COMPLETED = "completed"
    FAILED = "failed"
    COLO = "colo"
    PRE_SWITCHOVER = "pre-switchover"
    DEVICE = "device"
    WAIT_UNPLUG = "wait-unplug"


_M = MigrationStatus
FINAL = frozenset({_M.COMPLETED, _M.FAILED, _M.CANCELLED})
# A cancel may come too late: then the truth is `completed`, whatever was asked.
TRANSITIONS: Mapping[MigrationStatus, frozenset[MigrationStatus]] = {
    _M.NONE: frozenset({_M.SETUP, _M.ACTIVE, _M.FAILED}),
    _M.SETUP: frozenset({_M.ACTIVE, _M.FAILED, _M.CANCELLING, _M.CANCELLED}),
    _M.ACTIVE: frozenset(
        {_M.PRE_SWITCHOVER, _M.DEVICE, _M.COMPLETED, _M.FAILED, _M.CANCELLING, _M.CANCELLED}
    ),
    _M.PRE_SWITCHOVER: frozenset({_M.DEVICE, _M.FAILED, _M.CANCELLING, _M.CANCELLED}),
    _M.DEVICE: frozenset({_M.COMPLETED, _M.FAILED, _M.CANCELLING, _M.CANCELLED}),
    _M.CANCELLING: frozenset({_M.CANCELLED, _M.FAILED, _M.COMPLETED}),
}

RUNNING = frozenset({_M.SETUP, _M.ACTIVE, _M.PRE_SWITCHOVER, _M.DEVICE, _M.CANCELLING})
_WITH_PROGRESS = frozenset({_M.ACTIVE, _M.PRE_SWITCHOVER, _M.DEVICE, _M.CANCELLING, _M.COMPLETED})


class MigrationRecord:
    """One migration. `incoming` records have no times and no RAM counters, as in QEMU."""

    def __init__(self, *, incoming: bool = False) -> None:
        self.status = MigrationStatus.NONE
        self.reason = ""
        self.incoming = incoming
        self.socket_addresses: tuple[MigrationAddress, ...] = ()
        self.transferred_bytes = 0
        self.passes = 0
        self._downtime_ms: int | None = None
        self._started_ns: int | None = None
        self._active_ns: int | None = None
        self._ended_ns: int | None = None

    def move(self, status: MigrationStatus, reason: str, now_ns: int) -> None:
        """Go to `status`; `reason` (not empty for failures) becomes error-desc.

        Raises RunstateError on a move that does not exist.
        """
        if status not in TRANSITIONS.get(self.status, frozenset()):
            raise RunstateError(
                f"invalid migration status transition: '{self.status.value}' -> '{status.value}'"
            )
        self.status = status
        if reason:
            self.reason = reason
        if self._started_ns is None:
            self._started_ns = now_ns
        if status is MigrationStatus.ACTIVE:
            self._active_ns = now_ns
        if status in FINAL:
            self._ended_ns = now_ns

    def set_downtime(self, downtime_ns: int) -> None:
        """How long no process ran the guest, once it is known."""
        self._downtime_ms = max(0, downtime_ns) // _NS_PER_MS

    def describe(
        self, *, blocked_reasons: Sequence[str] = (), now_ns: int | None = None
    ) -> dict[str, Any]:
        """The value of `query-migrate`; empty before the first migration."""
        info: dict[str, Any] = {}
        if blocked_reasons:
            info["blocked-reasons"] = list(blocked_reasons)
        if self.status is MigrationStatus.NONE:
            return info
        info["status"] = self.status.value
        if self.incoming:
            if self.socket_addresses and self.status not in FINAL:
                info["socket-address"] = [
                    socket_to_qmp(address)
                    for address in self.socket_addresses
                    if isinstance(address, SocketUnix | SocketInet | SocketVsock | SocketFd)
                ]
        elif self.status in _WITH_PROGRESS:
            info.update(self._progress(time.monotonic_ns() if now_ns is None else now_ns))
        if self.reason:
            info["error-desc"] = self.reason
        return info

    def _progress(self, now_ns: int) -> dict[str, Any]:
        assert self._started_ns is not None
        end_ns = now_ns if self._ended_ns is None else self._ended_ns
        active_ns = end_ns if self._active_ns is None else self._active_ns
        elapsed_ns = end_ns - self._started_ns
        progress: dict[str, Any] = {
            "setup-time": (active_ns - self._started_ns) // _NS_PER_MS,
            "total-time": elapsed_ns // _NS_PER_MS,
            "ram": self.ram_counters(elapsed_ns),
        }
        if self.status is MigrationStatus.COMPLETED:
            progress["downtime"] = self._downtime_ms or 0
        else:
            progress["expected-downtime"] = self._downtime_ms or 0
        return progress

    def ram_counters(self, elapsed_ns: int) -> dict[str, Any]:
        """RAM counters: all zero, because RAM stays in place; `transferred` is device state."""
        megabits = self.transferred_bytes * 8 / 1_000_000
        return {
            "total": 0,
            "remaining": 0,
            "transferred": self.transferred_bytes,
            "mbps": megabits / (elapsed_ns / _NS_PER_S) if elapsed_ns else 0.0,
            "page-size": _PAGE_SIZE_BYTES,
            "dirty-sync-count": self.passes,
            "dirty-sync-missed-zero-copy": 0,
            "dirty-pages-rate": 0,
            "duplicate": 0,
            "normal": 0,
            "normal-bytes": 0,
            "pages-per-second": 0,
            "postcopy-requests": 0,
            "multifd-bytes": 0,
            "downtime-bytes": 0,
            "postcopy-bytes": 0,
            "precopy-bytes": 0,
        }


_COUNTERS = Object(
    "MigrationRamStats",
    tuple(
        Member(name, NUMBER if name == "mbps" else INT)
        for name in MigrationRecord().ram_counters(0)
    ),
)
# The value of query-migrate.
MIGRATION_INFO = Object(
    "MigrationInfo",
    (
        Member("status", of_annotation(MigrationStatus), optional=True),
        Member("ram", _COUNTERS, optional=True),
        Member("total-time", INT, optional=True),
        Member("expected-downtime", INT, optional=True),
        Member("downtime", INT, optional=True),
        Member("setup-time", INT, optional=True),
        Member("error-desc", STR, optional=True),
        Member("blocked-reasons", Array(STR), optional=True),
        Member("socket-address", Array(SOCKET_ADDRESS), optional=True),
    ),
)
