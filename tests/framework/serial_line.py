"""The outside end of a guest's serial port or debug console: bytes in order, waited for."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import cast

from tools.lab.deadlines import GUEST_PROGRESS_MS, within

LINE_BUFFER_BYTES = 1 << 20


class SerialLine(asyncio.Protocol):
    """Everything that the guest ever said, and a way to speak to it."""

    def __init__(self) -> None:
        self.received = bytearray()
        self._more = asyncio.Event()
        self._transports: list[asyncio.BaseTransport] = []

    @classmethod
    async def connect(cls, path: Path) -> SerialLine:
        """To a unix socket."""
        line = cls()
        await asyncio.get_running_loop().create_unix_connection(lambda: line, str(path))
        return line

    @classmethod
    async def on_fds(cls, read_fd: int, write_fd: int | None = None) -> SerialLine:
        """On pipes or terminals, which it owns from now on."""
        line = cls()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: line, os.fdopen(read_fd, "rb", buffering=0))
        if write_fd is not None:
            writer = os.fdopen(write_fd, "wb", buffering=0)
            await loop.connect_write_pipe(lambda: line, writer)
        return line

    async def until(self, what: str, holds: Callable[[bytes], bool]) -> None:
        """Wait until `holds` of everything received; DeadlineError shows the end of it."""

        async def wait() -> None:
            while not holds(bytes(self.received)):
                self._more.clear()
                await self._more.wait()

        tail = bytes(self.received[-20:])
        await within(GUEST_PROGRESS_MS, f"guest: {what}, after {tail!r}", wait())

    async def until_count(self, byte: bytes, count: int) -> None:
        """Wait until `byte` has come `count` times in all."""
        await self.until(f"{count} x {byte!r}", lambda received: received.count(byte) >= count)

    async def more(self, byte: bytes, count: int) -> None:
        """Wait for `byte` `count` more times."""
        await self.until_count(byte, self.received.count(byte) + count)

    def send(self, data: bytes) -> None:
        """To the guest; the transport keeps what the guest does not take yet."""
        cast("asyncio.WriteTransport", self._transports[-1]).write(data)

    def close(self) -> None:
        """Hang up."""
        for transport in self._transports:
            transport.close()

    # ---- asyncio.Protocol -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transports.append(transport)

    def data_received(self, data: bytes) -> None:
        self.received += data
        self._more.set()
