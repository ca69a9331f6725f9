"""Kill or hang either side at each step of an update: the guest goes on in exactly one process.

Real processes, real signals, a real guest. The process under test fails by itself (the migration
parameter x-cpr-fault), so that every case hits its step exactly.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from qemu.qmp import ExecuteError

from cpr.handshake import Action
from tools.lab.argv import Build, GuestSpec
from tools.lab.deadlines import EXIT_MS, UPDATE_MS, within
from tools.lab.heartbeat import HeartbeatReader
from tools.lab.launcher import Launched, Launcher
from tools.lab.process import VmmProcess
from tools.lab.update import live_update

GUEST = GuestSpec(ram_bytes=32 << 20, pages=256, heartbeat_ms=5)
VMM = (sys.executable, "-m", "vmm")
HEARTBEATS = 10  # more than can be under way in the socket when the guest stops
SHORT_TIMEOUT_MS = 1_500  # of every phase, for the tests in which somebody hangs

BEFORE_THE_STOP = [
    Action.CHECK_HELLO,
    Action.SEND_ACCEPT,
    Action.BUILD,
    Action.SEND_LISTENING,
    Action.SEND_CONNECTED,
    Action.LOAD_REHEARSAL,
    Action.SEND_PREPARED,
]
BEFORE_COMMIT = [*BEFORE_THE_STOP, Action.LOAD_STATE, Action.SEND_LOADED]


class Rig:
    """An old process with a running guest, and a way to update it."""

    def __init__(self, launcher: Launcher, accel: str, old: Launched, serial: HeartbeatReader):
        self.launcher = launcher
        self.accel = accel
        self.old = old.process
        self.serial = serial

    async def successor(self, fault: str = "") -> Launched:
        """A process that waits for the guest, and perhaps fails at one step (vmm.update.faults)."""
        new = await self.launcher.start_successor(Build(VMM, self.accel))
        if fault:
            await new.process.execute("migrate-set-parameters", {"x-cpr-fault": fault})
        return new

    async def migrate(self, new: Launched) -> None:
        await self.old.execute(
            "migrate-set-capabilities",
            {"capabilities": [{"capability": "events", "state": True}]},
        )
        await self.old.execute("migrate-set-parameters", {"mode": "cpr-transfer"})
        await self.old.execute("migrate", new.sockets.migrate_arguments())

    async def migrate_with_deadline(self, new: Launched) -> None:
        await self.old.execute("migrate-set-parameters", {"x-cpr-timeout-ms": SHORT_TIMEOUT_MS})
        await self.migrate(new)

    async def guest_goes_on(self) -> None:
        """The guest speaks on, in order, and found no page of RAM wrong."""
        await self.serial.wait_lines(HEARTBEATS)
        assert self.serial.problems == []
        assert self.serial.latest is not None
        assert self.serial.latest.errors == 0

    async def next_update_succeeds(self) -> None:
        new = await self.successor()
        await live_update(self.old, new.process, new.sockets.migrate_arguments())
        await self.guest_goes_on()


@contextlib.asynccontextmanager
async def rig(accel: str, fault: str = "") -> AsyncIterator[Rig]:
    """A guest in an old process, which perhaps fails at one step of its next update."""
    async with Launcher(GUEST) as launcher:
        old, serial = await launcher.start_first(Build(VMM, accel))
        if fault:
            await old.process.execute("migrate-set-parameters", {"x-cpr-fault": fault})
        yield Rig(launcher, accel, old, serial)


async def event(process: VmmProcess, name: str, status: str | None = None) -> None:
    """Wait for an event; with `status`, for that MIGRATION status."""

    async def wait() -> None:
        while True:
            got = await process.next_event()
            if got["event"] == name and (status is None or got["data"]["status"] == status):
                return

    await within(UPDATE_MS, f"{process.name}: {name} {status or ''}", wait())


async def stopped(process: VmmProcess) -> None:
    """Wait until SIGSTOP took effect in the process (it is our child)."""
    wait = asyncio.to_thread(os.waitid, os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    await within(UPDATE_MS, f"{process.name}: stopped by a signal", wait)


async def query(process: VmmProcess) -> dict[str, Any]:
    info: dict[str, Any] = await process.execute("query-migrate")
    return info


async def runstate(process: VmmProcess) -> str:
    return str((await process.execute("query-status"))["status"])


@pytest.mark.parametrize("action", BEFORE_COMMIT, ids=lambda action: action.name)
async def test_successor_killed_before_commit_old_process_runs_on_by_itself(action: Action) -> None:
    async with rig("unicorn") as r:
        new = await r.successor(f"target/before/{action.name}/kill")
        await r.migrate(new)
        await event(r.old, "MIGRATION", "failed")
        assert await runstate(r.old) == "running"
        reason = (await query(r.old))["error-desc"]
        assert "target" in reason
        await r.guest_goes_on()
        await r.next_update_succeeds()


async def test_successor_killed_between_commit_and_the_lease_old_process_takes_it_back(
    accel: str,
) -> None:
    async with rig(accel) as r:
        new = await r.successor("target/before/TAKE_LEASE/kill")
        await r.migrate(new)
        await event(r.old, "MIGRATION", "failed")
        await r.guest_goes_on()
        await r.next_update_succeeds()


async def test_successor_killed_with_the_lease_but_before_it_ran_old_process_runs_on() -> None:
    async with rig("unicorn") as r:
        new = await r.successor("target/before/RUN_GUEST/kill")
        await r.migrate(new)
        await event(r.old, "MIGRATION", "failed")
        await r.guest_goes_on()


async def test_successor_killed_after_it_ran_old_process_never_runs_its_stale_state() -> None:
    async with rig("unicorn") as r:
        new = await r.successor("target/after/RUN_GUEST/kill")
        await r.migrate(new)
        await event(r.old, "MIGRATION", "completed")
        assert await runstate(r.old) == "postmigrate"
        with pytest.raises(ExecuteError, match="older than the RAM"):
            await r.old.execute("cont")
        assert await runstate(r.old) == "postmigrate"


@pytest.mark.parametrize(
    ("when", "action"),
    [
        ("before", Action.RELEASE_LEASE),
        ("after", Action.RELEASE_LEASE),
        ("after", Action.SEND_COMMIT),
        ("before", Action.COMPLETE),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
async def test_old_process_killed_after_a_verified_state_guest_runs_in_the_successor(
    when: str, action: Action
) -> None:
    async with rig("unicorn", f"source/{when}/{action.name}/kill") as r:
        new = await r.successor()
        with contextlib.suppress(Exception):
            await r.migrate(new)
        await event(new.process, "MIGRATION", "completed")
        assert await runstate(new.process) == "running"
        await r.guest_goes_on()


async def test_old_process_killed_right_after_it_sent_the_state_guest_runs_in_the_successor() -> (
    None
):
    async with rig("unicorn", "source/after/SEND_STATE/kill") as r:
        new = await r.successor()
        with contextlib.suppress(Exception):
            await r.migrate(new)
        await event(new.process, "MIGRATION", "completed")
        await r.guest_goes_on()


@pytest.mark.parametrize("action", [Action.SEND_ACCEPT, Action.SEND_PREPARED, Action.SEND_LOADED])
async def test_hung_successor_is_given_up_at_the_deadline_and_never_runs_when_it_wakes(
    action: Action,
) -> None:
    async with rig("unicorn") as r:
        new = await r.successor(f"target/before/{action.name}/hang")
        await r.migrate_with_deadline(new)
        await event(r.old, "MIGRATION", "failed")
        assert "did not answer within" in (await query(r.old))["error-desc"]
        await r.guest_goes_on()
        os.kill(new.process.pid, signal.SIGCONT)
        await within(EXIT_MS, "the successor gives up", new.process.wait_exit())
        await r.guest_goes_on()
        await r.next_update_succeeds()


async def test_successor_hung_before_the_lease_loses_it_to_the_old_process_and_gives_up() -> None:
    async with rig("unicorn") as r:
        new = await r.successor("target/before/TAKE_LEASE/hang")
        await r.migrate_with_deadline(new)
        await event(r.old, "MIGRATION", "failed")
        await r.guest_goes_on()
        os.kill(new.process.pid, signal.SIGCONT)
        await within(EXIT_MS, "the successor gives up", new.process.wait_exit())
        await r.guest_goes_on()


async def test_cont_on_the_old_process_is_refused_for_good_once_the_successor_ran(
    accel: str,
) -> None:
    async with rig(accel) as r:
        new = await r.successor()
        await live_update(r.old, new.process, new.sockets.migrate_arguments())
        with pytest.raises(ExecuteError, match="run lease"):
            await r.old.execute("cont")
        await new.process.terminate()
        with pytest.raises(ExecuteError, match="older than the RAM"):
            await r.old.execute("cont")
        assert await runstate(r.old) == "postmigrate"


async def test_cont_on_the_old_process_works_when_the_paused_successor_died_before_it_ran() -> None:
    async with rig("unicorn") as r:
        new = await r.launcher.start_successor(Build(VMM, r.accel), extra=["-S"])
        await r.migrate(new)
        await event(r.old, "MIGRATION", "completed")
        assert await runstate(new.process) == "paused"
        with pytest.raises(ExecuteError, match="run lease"):
            await r.old.execute("cont")
        await new.process.terminate()
        await r.old.execute("cont")
        assert await runstate(r.old) == "running"
        await r.guest_goes_on()


async def test_cancel_while_the_successor_builds_tells_both_sides() -> None:
    async with rig("unicorn") as r:
        new = await r.successor("target/before/SEND_LISTENING/hang")
        await r.migrate(new)
        await stopped(new.process)
        await r.old.execute("migrate_cancel")
        await event(r.old, "MIGRATION", "cancelled")
        assert await runstate(r.old) == "running"
        os.kill(new.process.pid, signal.SIGCONT)
        await within(EXIT_MS, "the successor ends", new.process.wait_exit())
        assert "cancel" in new.process.log_tail()
        await r.guest_goes_on()
        await r.next_update_succeeds()


async def test_cancel_in_pre_switchover_resumes_the_guest_here() -> None:
    async with rig("unicorn") as r:
        await r.old.execute(
            "migrate-set-capabilities",
            {"capabilities": [{"capability": "pause-before-switchover", "state": True}]},
        )
        new = await r.successor()
        await r.migrate(new)
        await event(r.old, "MIGRATION", "pre-switchover")
        assert await runstate(r.old) == "finish-migrate"
        with pytest.raises(ExecuteError, match="Migration is not finalized yet"):
            await r.old.execute("cont")
        await r.old.execute("migrate_cancel")
        await event(r.old, "MIGRATION", "cancelled")
        assert await runstate(r.old) == "running"
        await within(EXIT_MS, "the successor ends", new.process.wait_exit())
        await r.guest_goes_on()
