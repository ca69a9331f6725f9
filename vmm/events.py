"""QMP events, stamped when they happen and written when there is time.

Inside a blackout nothing may be formatted or written to a socket, so the update holds events back;
they keep the time at which they happened and go out in order afterwards. If the blackout lasts
longer than a client should wait for the news (a hung successor), a timer lets them out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

# Longer than any sane blackout, shorter than a person or an orchestrator notices.
HOLD_MAX_MS = 25
_MS_PER_S = 1000

SendEvent = Callable[[str, Mapping[str, Any] | None, int], None]


class EventLog:
    """Emits events in order; `send(name, data, timestamp_ns)` writes one (CLOCK_REALTIME)."""

    def __init__(self, send: SendEvent, loop: asyncio.AbstractEventLoop) -> None:
        self._send = send
        self._loop = loop
        self._pending: list[tuple[str, Mapping[str, Any] | None, int]] = []
        self._timer: asyncio.TimerHandle | None = None

    def emit(
        self, name: str, data: Mapping[str, Any] | None = None, timestamp_ns: int | None = None
    ) -> None:
        """Record an event that happens now, or happened at `timestamp_ns` (CLOCK_REALTIME)."""
        if timestamp_ns is None:
            timestamp_ns = time.time_ns()
        if self._timer is None:
            self._send(name, data, timestamp_ns)
        else:
            self._pending.append((name, data, timestamp_ns))

    def hold(self) -> None:
        """Keep events back until `release`, at most HOLD_MAX_MS."""
        if self._timer is None:
            self._timer = self._loop.call_later(HOLD_MAX_MS / _MS_PER_S, self.release)

    def release(self) -> None:
        """Write what was held back, in order."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        pending, self._pending = self._pending, []
        for name, data, timestamp_ns in pending:
            self._send(name, data, timestamp_ns)
