"""The guest's serial lines over a real socket, whole, torn and wrong."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tools.lab.errors import CheckFailedError, DeadlineError
from tools.lab.heartbeat import LINE_MAX_BYTES, HeartbeatReader
from tools.lab.process import listen_unix

DEADLINE_MS = 10_000
Story = Callable[[HeartbeatReader, socket.socket], Awaitable[None]]


def line(sequence: int) -> bytes:
    return b"cpr-guest seq=%d pass=1 gap_us=5 errors=0\n" % sequence


def with_guest(socket_dir: Path, story: Story) -> None:
    """Run `story` with a reader and the guest's end of its connection."""

    async def run() -> None:
        with listen_unix(socket_dir / "serial.sock") as listener:
            reader = await HeartbeatReader.connect(socket_dir / "serial.sock")
            guest, _address = listener.accept()
        with guest:
            try:
                await story(reader, guest)
            finally:
                reader.close()

    asyncio.run(run())


def test_heartbeats_are_counted_and_the_latest_is_kept(socket_dir: Path) -> None:
    async def story(reader: HeartbeatReader, guest: socket.socket) -> None:
        guest.sendall(line(1) + line(20)[:15])
        await reader.wait_total(1, DEADLINE_MS)
        guest.sendall(line(20)[15:])
        await reader.wait_total(2, DEADLINE_MS)
        assert reader.latest is not None
        assert reader.latest.sequence == 20
        assert reader.problems == []

    with_guest(socket_dir, story)


def test_waiting_for_a_condition_ignores_earlier_heartbeats(socket_dir: Path) -> None:
    async def story(reader: HeartbeatReader, guest: socket.socket) -> None:
        guest.sendall(line(1) + line(2) + line(30))
        beat = await reader.wait_for("30", lambda beat: beat.sequence > 2, DEADLINE_MS)
        assert beat.sequence == 30

    with_guest(socket_dir, story)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (line(5) + line(5), "sequence 5 after 5"),
        (b"cpr-gu\n" + line(1), "not a heartbeat"),
        (b"x" * (LINE_MAX_BYTES + 1) + b"\n" + line(1), "not a heartbeat"),
    ],
)
def test_repeated_or_torn_lines_are_noted(socket_dir: Path, data: bytes, problem: str) -> None:
    async def story(reader: HeartbeatReader, guest: socket.socket) -> None:
        guest.sendall(data + line(99))
        await reader.wait_for("the end", lambda beat: beat.sequence == 99, DEADLINE_MS)
        assert problem in reader.problems[0]

    with_guest(socket_dir, story)


def test_silence_ends_at_the_deadline_which_is_named(socket_dir: Path) -> None:
    async def story(reader: HeartbeatReader, _guest: socket.socket) -> None:
        with pytest.raises(DeadlineError, match=r"number 1.*nothing came within 20 ms"):
            await reader.wait_total(1, 20)

    with_guest(socket_dir, story)


def test_end_of_the_connection_is_seen_at_once_and_afterwards(socket_dir: Path) -> None:
    async def story(reader: HeartbeatReader, guest: socket.socket) -> None:
        guest.close()
        with pytest.raises(CheckFailedError, match="connection ended"):
            await reader.wait_lines(1)
        with pytest.raises(CheckFailedError, match="connection ended"):
            await reader.wait_lines(1)

    with_guest(socket_dir, story)
