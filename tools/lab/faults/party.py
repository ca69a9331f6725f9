"""A guest and the process that has it: faults happen to its updates, and it must survive them.

The guest goes on from case to case. After each, a clean update to a fresh process shows that the
next one succeeds, and that process has the guest for the next case.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

from qemu.qmp import ExecuteError

from tools.lab.argv import Build, GuestSpec
from tools.lab.errors import CheckFailedError, LabError
from tools.lab.faults.cases import Case
from tools.lab.faults.duel import faulted_update
from tools.lab.faults.oracle import Oracle, Outcome
from tools.lab.faults.witness import StampingGuest
from tools.lab.heartbeat import HeartbeatReader
from tools.lab.launcher import Launched, Launcher
from tools.lab.load import LoadSpec
from tools.lab.ramview import RamView
from tools.lab.traffic import Traffic
from tools.lab.update import live_update

CALM_TIMEOUT_MS = 30_000


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
        self._oracle = Oracle(StampingGuest(ram, self._serial))
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
        await faulted_update(case, old, new)
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

    async def _clean_update(self) -> None:
        new = await self._launcher.start_successor(self.build)
        old, self._owner = self._owner, new
        await live_update(old.process, new.process, new.sockets.migrate_arguments())
        self._launcher.remove_sockets(new)
        if (status := await old.process.quit()) != 0:
            raise CheckFailedError(f"{old.process.name}: exit status {status} after quit")
        await self._oracle.guest.check(new.process)


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
