"""The built-in guest's voice on COM1: an event source that survives live updates.

The launcher connects once, before the first process starts. Every successor is handed the same
connection, so a line that is torn, missing or out of order is the fault of an update. Heartbeats
also pace the drill: "wait for five heartbeats" is guest progress, not a sleep.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tools.lab.deadlines import GUEST_PROGRESS_MS, within
from tools.lab.errors import CheckFailedError

_LINE = re.compile(rb"^cpr-guest seq=(\d+) pass=(\d+) gap_us=(\d+) errors=(\d+)$")
# A heartbeat has some 60 bytes; a "line" beyond this is not one, and must not grow for ever.
LINE_MAX_BYTES = 4096
PROBLEMS_MAX = 10
CONNECTION_ENDED = "the guest's serial connection ended; the process that held it is gone"


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """One line of the guest."""

    sequence: int
    pass_number: int
    gap_us: int
    errors: int


class HeartbeatReader(asyncio.Protocol):
    """Parses heartbeats; `lines` counts them all, `problems` tells what was wrong."""

    def __init__(self) -> None:
        self.lines = 0
        self.latest: Heartbeat | None = None
        self.problems: list[str] = []
        self._pending = b""
        self._waiters: list[tuple[Callable[[Heartbeat], bool], asyncio.Future[Heartbeat]]] = []
        self._transport: asyncio.BaseTransport | None = None
        self._closed = False

    @classmethod
    async def connect(cls, path: Path) -> HeartbeatReader:
        """Connect to a listening unix socket (its backlog is enough)."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        sock.connect(str(path))  # a unix connect to a listening socket does not block
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        _transport, reader = await loop.create_connection(cls, sock=sock)
        return reader

    async def wait_for(
        self, what: str, condition: Callable[[Heartbeat], bool], deadline_ms: int
    ) -> Heartbeat:
        """Return the first heartbeat from now on that fulfils `condition`.

        Raises DeadlineError, or CheckFailedError when the connection ends first.
        """
        if self._closed:
            raise CheckFailedError(CONNECTION_ENDED)
        waiter: asyncio.Future[Heartbeat] = asyncio.get_running_loop().create_future()
        entry = (condition, waiter)
        self._waiters.append(entry)
        try:
            return await within(deadline_ms, f"guest heartbeat ({what})", waiter)
        finally:
            if entry in self._waiters:
                self._waiters.remove(entry)

    async def wait_lines(self, count: int) -> None:
        """Wait for `count` more heartbeats."""
        goal = self.lines + count
        await self.wait_for(f"{count} more", lambda _beat: self.lines >= goal, GUEST_PROGRESS_MS)

    async def wait_total(self, total: int, deadline_ms: int) -> None:
        """Wait until `total` heartbeats have come since the guest started."""
        if self.lines < total:
            await self.wait_for(f"number {total}", lambda _beat: self.lines >= total, deadline_ms)

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()

    # ---- asyncio.Protocol -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport so that `close` can end it."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Split into lines; the last one may be incomplete."""
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            self._take(line)
        if len(self._pending) > LINE_MAX_BYTES:
            self._problem(f"{len(self._pending)} serial bytes without a newline")
            self._pending = b""

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell everybody who waits that nothing will come any more."""
        self._closed = True
        waiting, self._waiters = self._waiters, []
        for _condition, waiter in waiting:
            if not waiter.done():
                waiter.set_exception(CheckFailedError(CONNECTION_ENDED))

    # ---- parsing --------------------------------------------------------------------------------

    def _take(self, line: bytes) -> None:
        match = _LINE.match(line.rstrip(b"\r"))
        if match is None:
            self._problem(f"serial line is not a heartbeat: {line[:80]!r}")
            return
        beat = Heartbeat(*(int(field) for field in match.groups()))
        if self.latest is not None and beat.sequence <= self.latest.sequence:
            self._problem(f"serial: sequence {beat.sequence} after {self.latest.sequence}")
        self.latest = beat
        self.lines += 1
        self._wake(beat)

    def _wake(self, beat: Heartbeat) -> None:
        waiting, self._waiters = self._waiters, []
        for condition, waiter in waiting:
            if waiter.done():
                continue
            if condition(beat):
                waiter.set_result(beat)
            else:
                self._waiters.append((condition, waiter))

    def _problem(self, text: str) -> None:
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(text)
