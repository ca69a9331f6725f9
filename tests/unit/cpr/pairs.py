"""A Channel and a raw socket at its other end, and an ear that remembers what the Channel said."""

from __future__ import annotations

import array
import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, Protocol

from cpr.channel import Channel
from cpr.codec import encode
from cpr.messages import Fds, Message, State
from cpr.ownedfd import OwnedFd
from cpr.vmstate import Section

DEADLINE_S = 30
BIG = State((Section("ram", "blob", 1, False, bytes(4 << 20), b""),), "running", 1, 2)


def run(story: Coroutine[Any, Any, None]) -> None:
    """Run one test's story, with a deadline and without leftover fds."""
    before = open_fds()
    asyncio.run(asyncio.wait_for(story, DEADLINE_S))
    assert not open_fds() - before


def open_fds() -> set[str]:
    """Numbers of our open fds (without the one that lists them)."""
    listing = Path("/proc/self/fd")
    return {entry.name for entry in listing.iterdir() if entry.exists() or _is_anonymous(entry)}


def _is_anonymous(entry: Path) -> bool:
    try:
        return not str(entry.readlink()).startswith("/proc/")
    except FileNotFoundError:
        return False


class Closable(Protocol):
    """Anything that is closed once."""

    def close(self) -> None: ...


def close_all(*owners: Closable) -> None:
    for owner in owners:
        owner.close()


class Ear:
    """Remembers what a channel says, in order."""

    def __init__(self) -> None:
        self.heard: list[str | Message] = []
        self.fds: list[OwnedFd] = []
        self.then: Callable[[], None] = lambda: None  # what to do with each message
        self._news = asyncio.Event()

    def on_message(self, message: Message, fds: list[OwnedFd]) -> None:
        self.fds += fds
        self._add(message)
        self.then()

    def on_lost(self, reason: str) -> None:
        self._add(f"lost: {reason}")

    def on_violation(self, reason: str) -> None:
        self._add(f"violation: {reason}")

    def on_peer_died(self) -> None:
        self._add("died")

    async def until(self, count: int) -> list[str | Message]:
        """Everything heard, as soon as it is `count` things."""
        while len(self.heard) < count:
            self._news.clear()
            await self._news.wait()
        return self.heard

    def close(self) -> None:
        for fd in self.fds:
            fd.close()

    def _add(self, what: str | Message) -> None:
        self.heard.append(what)
        self._news.set()


def pair(**options: Any) -> tuple[Channel, socket.socket]:
    """A channel that is not started, and the raw socket at its other end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return Channel(ours, asyncio.get_running_loop(), **options), theirs


def listen(channel: Channel, *, violations: bool = True) -> Ear:
    """Start `channel` with a new ear."""
    ear = Ear()
    on_violation = ear.on_violation if violations else None
    channel.start(ear.on_message, ear.on_lost, ear.on_peer_died, on_violation)
    return ear


def send_raw(sock: socket.socket, data: bytes, fds: Iterable[int] = ()) -> None:
    """One sendmsg."""
    rights = array.array("i", fds)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
    assert sock.sendmsg([data], ancillary) == len(data)


def fds_frame(count: int) -> bytes:
    return encode(Fds(tuple(f"ram:ram{n}:0" for n in range(count))), fd_count=count)


def memfds(count: int) -> list[OwnedFd]:
    return [OwnedFd(os.memfd_create("test", os.MFD_CLOEXEC), "ram:ram0:0") for _ in range(count)]


_CHILD = """
import os, sys
os.write(int(sys.argv[1]), bytes.fromhex(sys.argv[2]))
sys.stdin.read()
os.write(int(sys.argv[1]), bytes.fromhex(sys.argv[3]))
"""


def child_that_writes(
    sock: socket.socket, data: bytes, last_words: bytes = b""
) -> subprocess.Popen[bytes]:
    """A process that writes `data` to `sock`, and `last_words` when its standard input ends."""
    return subprocess.Popen(
        [sys.executable, "-ISc", _CHILD, str(sock.fileno()), data.hex(), last_words.hex()],
        stdin=subprocess.PIPE,
        pass_fds=[sock.fileno()],
    )
