"""A guest and the process that has it: faults happen to its updates, and it must survive them.

The guest goes on from case to case. After each, a clean update to a fresh process shows that the
next one succeeds, and that process has the guest for the next case.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

from qemu.qmp import ExecuteError

from tools.lab.argv import Build, GuestSpec
from tools.lab.deadlines import EXIT_MS, MS_PER_S, UPDATE_MS, within
from tools.lab.errors import CheckFailedError, LabError
from tools.lab.faults.cases import Case
from tools.lab.faults.oracle import Oracle, Outcome
from tools.lab.heartbeat import HeartbeatReader
from tools.lab.launcher import Launched, Launcher
from tools.lab.load import LoadSpec
from tools.lab.process import VmmProcess
from tools.lab.ramview import RamView
from tools.lab.traffic import Traffic
from tools.lab.update import live_update
from vmm.update.faults import Fault

# Of every phase. A hung process is given up after it, so it sets the pace of those cases; a busy
# machine must not reach it in a phase that only works.
PHASE_TIMEOUT_MS = 2_000
CALM_TIMEOUT_MS = 30_000
# How long a process may be in doubt before the documented way out is taken: longer than any chain
# of phase deadlines that ends by itself.
DOUBT_MS = 4 * PHASE_TIMEOUT_MS
_TERMINAL = frozenset({"completed", "failed", "cancelled"})
_EVENTS_ON = {"capabilities": [{"capability": "events", "state": True}]}


@dataclass(slots=True)
class Watch:
    """What one process says of the update; `settled` when that is its last word, or it ended."""

    process: VmmProcess
    status: str = "none"
    settled: asyncio.Event = field(default_factory=asyncio.Event)

    async def listen(self) -> None:
        """Take events until the process ends."""
        exit_ = asyncio.ensure_future(self.process.wait_exit())
        exit_.add_done_callback(lambda _exit: self.settled.set())
        while True:
            event = await self.process.next_event()
            if event["event"] == "MIGRATION":
                self.status = str(event["data"]["status"])
                if self.status in _TERMINAL:
                    self.settled.set()

    async def wait(self, deadline_ms: int) -> bool:
        """Whether it settles by then."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_ms / MS_PER_S):
                await self.settled.wait()
        return self.settled.is_set()


class Party:
    """One guest; `async with party(…)` makes it."""

    def __init__(
        self, launcher: Launcher, build: Build, guest: GuestSpec, traffic: Traffic | None
    ) -> None:
        self.build = build
        self.lost = False  # the guest: its only process was killed
        self._traffic = traffic
        self._launcher = launcher
        self._guest = guest
        self._owner: Launched
        self._serial: HeartbeatReader
        self._oracle: Oracle
        self._ram: RamView

    async def start(self, stack: contextlib.AsyncExitStack) -> None:
        """Boot the guest and update it once without a fault, to know what a process holds then."""
        first, self._serial = await self._launcher.start_first(self.build)
        await self._serial.wait_lines(1)
        self._launcher.remove_sockets(first)
        ram = stack.enter_context(
            RamView(first.process.pid, self._guest.ram_bytes, self._guest.vcpu_count)
        )
        self._oracle = Oracle(ram, self._serial)
        self._owner = first
        await self._clean_update()
        self._oracle.learn(self._owner.process)
        if self._traffic is not None:
            self._ram = ram
            await self._traffic.start(ram.net_report)

    async def end(self) -> None:
        """Balance the load's ledger. Raises CheckFailedError when a frame was lost or doubled."""
        if self._traffic is not None and not self.lost:
            await self._traffic.stop(self._ram.net_report)

    async def suffer(self, case: Case) -> Outcome:
        """One case and everything that must hold after it. Raises LabError when something does not.

        A party whose guest is lost, rightly or not, is of no further use.
        """
        old = self._owner
        new = await self._launcher.start_successor(self.build)
        before = self._oracle.before(old.process)
        watches = Watch(old.process), Watch(new.process)
        async with _listening(watches):
            victim = await self._update_with(case, old, new, watches)
            if case.plan.fault is Fault.KILL:
                await within(EXIT_MS, f"{victim.name}: the end by SIGKILL", victim.wait_exit())
            await self._settle(*watches)
        outcome = await self._oracle.judge(case, old.process, new.process, before)
        for process in (old, new):
            self._launcher.remove_sockets(process)
        if not new.process.alive and new.sockets.main is not None:
            new.sockets.main.unlink(missing_ok=True)  # a process that is killed cannot
        if outcome.owner is None:
            self.lost = True
            return outcome
        loser = old if outcome.owner is new.process else new
        if loser.process.alive:
            await loser.process.quit()
        self._owner = new if loser is old else old
        await self._owner.process.execute(
            "migrate-set-parameters", {"x-cpr-timeout-ms": CALM_TIMEOUT_MS}
        )
        await self._clean_update()
        if leftover := self._launcher.leftover_sockets():
            raise CheckFailedError(f"socket files left behind: {', '.join(leftover)}")
        return outcome

    async def _update_with(
        self, case: Case, old: Launched, new: Launched, watches: tuple[Watch, Watch]
    ) -> VmmProcess:
        """Let `old` migrate to `new`, one of which will fail; returns that one."""
        for process in (old.process, new.process):
            await process.execute("migrate-set-capabilities", _EVENTS_ON)
            await process.execute("migrate-set-parameters", {"x-cpr-timeout-ms": PHASE_TIMEOUT_MS})
        await old.process.execute("migrate-set-parameters", {"mode": "cpr-transfer"})
        role = case.plan.role.value
        victim = old.process if role == "source" else new.process
        other_watch = watches[1] if role == "source" else watches[0]
        await victim.execute("migrate-set-parameters", {"x-cpr-fault": str(case.plan)})
        # The command may never be answered: its process dies or hangs.
        migrate = asyncio.ensure_future(
            old.process.execute("migrate", new.sockets.migrate_arguments())
        )
        migrate.add_done_callback(lambda done: done.cancelled() or done.exception())
        if case.plan.fault is Fault.HANG:
            await _hung(victim)
            if not case.wakes:
                await other_watch.wait(DOUBT_MS)
            os.kill(victim.pid, signal.SIGCONT)
        await asyncio.wait([migrate], timeout=UPDATE_MS / MS_PER_S)
        return victim

    async def _settle(self, old: Watch, new: Watch) -> None:
        """Wait for the last word of both; one in doubt is helped as the documentation says."""
        await asyncio.gather(old.wait(DOUBT_MS), new.wait(DOUBT_MS))
        if not old.settled.is_set() and old.process.alive:
            with contextlib.suppress(ExecuteError):  # refused: the successor ran
                await old.process.execute("cont")
        if not (old.settled.is_set() or new.settled.is_set()):
            raise CheckFailedError(
                f"neither side came to an end: {old.status} in the old process, {new.status} in "
                "the new one"
            )
        if new.status == "failed":
            await within(EXIT_MS, "the end of a failed successor", new.process.wait_exit())

    async def _clean_update(self) -> None:
        new = await self._launcher.start_successor(self.build)
        old, self._owner = self._owner, new
        await live_update(old.process, new.process, new.sockets.migrate_arguments())
        self._launcher.remove_sockets(new)
        if (status := await old.process.quit()) != 0:
            raise CheckFailedError(f"{old.process.name}: exit status {status} after quit")
        await self._oracle.guest_is_well(new.process)


async def _hung(process: VmmProcess) -> None:
    """Wait until SIGSTOP took effect (it is our child)."""
    wait = asyncio.to_thread(os.waitid, os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    try:
        await within(UPDATE_MS, f"{process.name}: stopped by SIGSTOP", wait)
    except ChildProcessError as error:
        raise CheckFailedError(f"{process.name} ended before it reached its step") from error


@contextlib.asynccontextmanager
async def _listening(watches: tuple[Watch, Watch]) -> AsyncIterator[None]:
    for watch in watches:
        watch.process.forget_events()
    tasks = [asyncio.ensure_future(watch.listen()) for watch in watches]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def party(build: Build, guest: GuestSpec, load: LoadSpec | None) -> AsyncIterator[Party]:
    """A guest to which faults can happen, with a `load` over all of them.

    Raises LabError when it does not start, CheckFailedError when the ledger does not balance.
    """
    async with contextlib.AsyncExitStack() as stack:
        traffic = None
        if load is not None:
            traffic = Traffic.prepare(load, stack.enter_context(contextlib.ExitStack()))
            stack.push_async_callback(traffic.end)
            guest = replace(guest, network=traffic.guest_words)
        launcher = await stack.enter_async_context(_launcher(guest, traffic))
        made = Party(launcher, build, guest, traffic)
        try:
            await made.start(stack)
        except ExecuteError as error:
            raise LabError(str(error)) from error
        yield made
        await made.end()


def _launcher(guest: GuestSpec, traffic: Traffic | None) -> Launcher:
    if traffic is None:
        return Launcher(guest)
    return Launcher(guest, extra=traffic.nic.argv(), first=traffic.child)
