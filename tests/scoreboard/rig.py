"""A guest in a real process, and successors that may fail on request."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from tools.lab.argv import Build, GuestSpec
from tools.lab.deadlines import EXIT_MS, UPDATE_MS, within
from tools.lab.heartbeat import HeartbeatReader
from tools.lab.launcher import Launched, Launcher
from tools.lab.options import own_vmm
from tools.lab.process import VmmProcess
from tools.lab.update import EVENTS_ON, live_update

GUEST = GuestSpec(ram_bytes=32 << 20, pages=64, heartbeat_ms=5)
BUILD = Build(own_vmm(), "unicorn")
HEARTBEATS = 5
SHORT_TIMEOUT_MS = 1_500
_LAST_WORDS = frozenset({"completed", "failed", "cancelled"})


class Rig:
    """`old` has the guest."""

    def __init__(self, launcher: Launcher, old: Launched, serial: HeartbeatReader) -> None:
        self.launcher = launcher
        self.old = old.process
        self.serial = serial
        self.said: list[str] = []  # statuses of the last update, as the old process said them

    async def successor(self, *extra: str, build: Build = BUILD) -> Launched:
        return await self.launcher.start_successor(build, extra)

    async def fault(self, process: VmmProcess, plan: str) -> None:
        """Let `process` fail at one step of its next update."""
        for name, value in (("x-cpr-fault", plan), ("x-cpr-timeout-ms", SHORT_TIMEOUT_MS)):
            await process.execute("migrate-set-parameters", {name: value})

    async def begin(self, new: Launched) -> asyncio.Future[Any]:
        """`migrate`; the command itself may never be answered, so it is not waited for."""
        await self.old.execute("migrate-set-capabilities", EVENTS_ON)
        await self.old.execute("migrate-set-parameters", {"mode": "cpr-transfer"})
        self.old.forget_events()
        self.said = []
        migrate = asyncio.ensure_future(
            self.old.execute("migrate", new.sockets.migrate_arguments())
        )
        migrate.add_done_callback(lambda done: done.cancelled() or done.exception())
        return migrate

    async def last_word(self) -> str:
        """Wait for completed, failed or cancelled from the old process."""

        async def listen() -> str:
            while True:
                event = await self.old.next_event()
                if event["event"] == "MIGRATION":
                    self.said.append(str(event["data"]["status"]))
                    if self.said[-1] in _LAST_WORDS:
                        return self.said[-1]

        return await within(UPDATE_MS, "the old process's last word", listen())

    async def update_ends(self, new: Launched) -> str:
        await self.begin(new)
        return await self.last_word()

    async def update(self, *extra: str) -> Launched:
        """A clean update; the old process stays."""
        new = await self.successor(*extra)
        await live_update(self.old, new.process, new.sockets.migrate_arguments())
        return new

    async def reason(self) -> str:
        return str((await self.old.execute("query-migrate"))["error-desc"])

    async def guest_goes_on(self) -> None:
        """It speaks on, in order, and found its RAM as it left it."""
        await self.serial.wait_lines(HEARTBEATS)
        assert self.serial.problems == []
        assert self.serial.latest is not None
        assert self.serial.latest.errors == 0


async def status(process: VmmProcess) -> str:
    return str((await process.execute("query-status"))["status"])


async def ended(process: VmmProcess) -> int:
    return await within(EXIT_MS, f"{process.name}: its end", process.wait_exit())


async def marks(process: VmmProcess) -> dict[str, int]:
    """Last time of each mark of the process's update, in ns."""
    timeline = await process.execute("x-query-cpr-timeline")
    return {mark["what"]: mark["t-ns"] for mark in timeline}


@contextlib.asynccontextmanager
async def rig(*extra: str) -> AsyncIterator[Rig]:
    async with Launcher(GUEST, extra=extra) as launcher:
        old, serial = await launcher.start_first(BUILD)
        yield Rig(launcher, old, serial)
