"""What the tests of character back-ends share: a front-end, a loop with a deadline, sockets."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from vmm.config import Chardev, ChardevKind
from vmm.devices.chardev import CharBackend

DEADLINE_S = 30
T = TypeVar("T")


class Frontend:
    """Takes up to `room` bytes; tests wait for what arrives."""

    def __init__(self, room: int = 1 << 20) -> None:
        self.room = room
        self.received = bytearray()
        self.writable_calls = 0
        self._changed = asyncio.Event()

    def receive_capacity(self) -> int:
        return self.room

    def receive(self, data: bytes) -> None:
        assert len(data) <= self.room
        self.room -= len(data)
        self.received += data
        self._changed.set()

    def writable(self) -> None:
        self.writable_calls += 1
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()


def run(scenario: Callable[[asyncio.AbstractEventLoop], Awaitable[T]]) -> T:
    """Run `scenario` on a loop of its own, with the deadline of every test here."""

    async def main() -> T:
        async with asyncio.timeout(DEADLINE_S):
            return await scenario(asyncio.get_running_loop())

    return asyncio.run(main())


def socket_config(folder: Path, *, server: bool = True, wait: bool = False) -> Chardev:
    path = folder / "serial.sock"
    return Chardev("c0", ChardevKind.SOCKET, path=path, server=server, wait=wait)


def duplicates(backend: CharBackend) -> dict[int, int]:
    """What a successor gets: its own duplicates."""
    return {number: os.dup(fd) for number, fd, _kind in backend.fds()}


async def connect(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(str(path))


def open_fds() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


async def next_turn(loop: asyncio.AbstractEventLoop) -> None:
    turn = loop.create_future()
    loop.call_soon(turn.set_result, None)
    await turn


def received_count(frontend: Frontend, count: int) -> bool:
    return len(frontend.received) == count
