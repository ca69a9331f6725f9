"""A chain of live updates, and everything that must hold after each of them.

One guest is booted once and then handed from process to process. After every update the chain
checks, from outside: the guest goes on (sequence, clock, its own error counter), in the same memory
(inode), the old process ends cleanly and neither process kept anything. Every few updates, and at
the end, the guest is stopped and every stamped page of RAM is checked.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace

from qemu.qmp import ExecuteError

from tools.lab.argv import Build, GuestSpec
from tools.lab.checks import expect_nothing
from tools.lab.deadlines import DRAIN_MS, GUEST_PROGRESS_MS
from tools.lab.errors import CheckFailedError, LabError
from tools.lab.gaps import find_gaps
from tools.lab.heartbeat import Heartbeat, HeartbeatReader
from tools.lab.launcher import Launched, Launcher
from tools.lab.load import LoadSpec
from tools.lab.process import VmmProcess
from tools.lab.procfs import ProcessCounters, find_memfd, leaks, memfd_identity
from tools.lab.ramview import RamView
from tools.lab.results import ChainResult, UpdateRecord
from tools.lab.traffic import Traffic
from tools.lab.update import UpdateResult, live_update
from vmm.boot.guest.report import GuestReport, sequence_problems, verify_stamps
from vmm.errors import BootError

# The pause before an update, in heartbeats of the guest; drawn from the seed.
PAUSE_HEARTBEATS_MAX = 5
VERIFY_EVERY_UPDATES = 10


@dataclass(frozen=True, slots=True)
class ChainPlan:
    """What to run: generation k is started from `builds[k % len(builds)]`."""

    name: str
    builds: tuple[Build, ...]
    count: int
    guest: GuestSpec
    seed: int
    replay: str
    load: LoadSpec | None = None

    def build(self, generation: int) -> Build:
        """The build of a generation; 0 boots the guest."""
        return self.builds[generation % len(self.builds)]


OnUpdate = Callable[[UpdateRecord], None]


async def run_chain(plan: ChainPlan, on_update: OnUpdate) -> ChainResult:
    """Run the whole chain; a failure is part of the result, not an exception."""
    chain = _Chain(plan)
    failure: str | None = None
    try:
        with contextlib.ExitStack() as stack:
            chain.traffic = Traffic.prepare(plan.load, stack) if plan.load else None
            async with _launcher(plan, chain.traffic) as launcher, chain.ended():
                await chain.run(launcher, on_update)
    except (LabError, ExecuteError, BootError) as error:
        failure = f"{chain.where}: {error}"
    return ChainResult(
        name=plan.name,
        planned=plan.count,
        records=tuple(chain.records),
        guest=plan.guest,
        seed=plan.seed,
        ram_verifications=chain.ram_verifications,
        heartbeats=chain.heartbeats,
        replay=plan.replay,
        failure=failure,
        load=plan.load,
        baseline=chain.traffic.baseline if chain.traffic else None,
        ledger=chain.traffic.ledger if chain.traffic else None,
    )


def _launcher(plan: ChainPlan, traffic: Traffic | None) -> Launcher:
    if traffic is None:
        return Launcher(plan.guest)
    guest = replace(plan.guest, network=traffic.guest_words)
    return Launcher(guest, extra=traffic.nic.argv(), first=traffic.child)


@dataclass(slots=True)
class _Chain:
    """The state of a running chain."""

    plan: ChainPlan
    records: list[UpdateRecord] = field(default_factory=list)
    ram_verifications: int = 0
    heartbeats: int = 0
    where: str = "start"
    traffic: Traffic | None = None
    _steady: dict[str, ProcessCounters] = field(default_factory=dict)

    async def run(self, launcher: Launcher, on_update: OnUpdate) -> None:
        plan = self.plan
        pauses = random.Random(plan.seed)
        current, serial = await launcher.start_first(plan.build(0))
        launcher.remove_sockets(current)
        await serial.wait_lines(1)
        with RamView(current.process.pid, plan.guest.ram_bytes, plan.guest.vcpu_count) as ram:
            if self.traffic is not None:
                self.where = "the load without updates"
                await self.traffic.start(ram.net_report)
            for number in range(1, plan.count + 1):
                build = plan.build(number)
                self.where = f"update {number} ({accel_label(plan.build(number - 1))} -> "
                self.where += f"{accel_label(build)})"
                successor = await launcher.start_successor(build)
                await serial.wait_lines(pauses.randint(1, PAUSE_HEARTBEATS_MAX))
                record = await self._update(number, current, successor, ram, serial)
                launcher.remove_sockets(successor)
                expect_nothing("socket files left behind", launcher.leftover_sockets())
                self.records.append(record)
                current = successor
                if number % VERIFY_EVERY_UPDATES == 0 or number == plan.count:
                    await self._verify_ram(current.process, ram, serial)
                on_update(record)
            if self.traffic is not None:
                self.where = "the load over all updates"
                await self.traffic.stop(ram.net_report)
            self.where = "the end of the chain"
            await current.process.quit_cleanly()
        self.heartbeats = serial.lines

    @contextlib.asynccontextmanager
    async def ended(self) -> AsyncIterator[None]:
        """End the load, if there is one, whatever happens inside."""
        try:
            yield
        finally:
            if self.traffic is not None:
                await self.traffic.end()

    async def _update(
        self,
        number: int,
        old: Launched,
        new: Launched,
        ram: RamView,
        serial: HeartbeatReader,
    ) -> UpdateRecord:
        """One update with all its checks; `old` has ended when it returns."""
        old_before = old.process.counters()
        before = ram.report()
        result = await live_update(old.process, new.process, new.sockets.migrate_arguments())
        old_after, new_after = old.process.counters(), new.process.counters()
        after = await _guest_goes_on(serial, ram)

        _check_guest(before, after, serial)
        self._check_memory(new.process, ram)
        accel = accel_label(self.plan.build(number))
        self._check_counters(accel, old_before, old_after, new_after)
        await old.process.quit_cleanly()
        return _record(
            number,
            (accel_label(self.plan.build(number - 1)), accel),
            result,
            before,
            after,
            new_after,
        )

    def _check_memory(self, new: VmmProcess, ram: RamView) -> None:
        identity = memfd_identity(find_memfd(new.pid, ram.ram_bytes))
        if identity != ram.identity:
            raise CheckFailedError(
                f"RAM is another file: inode {identity.ino}, the guest was booted in inode "
                f"{ram.identity.ino}"
            )

    def _check_counters(
        self,
        accel: str,
        old_before: ProcessCounters,
        old_after: ProcessCounters,
        new_after: ProcessCounters,
    ) -> None:
        """Neither side may keep anything, and no generation may hold more than the one before."""
        expect_nothing("the old process kept", leaks(old_before, old_after))
        steady = self._steady.setdefault(accel, new_after)
        expect_nothing("the new process holds more than its predecessors", leaks(steady, new_after))
        if new_after.children:
            raise CheckFailedError(f"the new process has {new_after.children} child process(es)")

    async def _verify_ram(self, process: VmmProcess, ram: RamView, serial: HeartbeatReader) -> None:
        """Stop the guest, check every stamp and every serial line, let it go on."""
        await process.execute("stop")
        report = ram.report()
        expect_nothing("execution was lost or repeated", sequence_problems(report))
        expect_nothing("RAM", verify_stamps(ram.read, report, ram.ram_bytes))
        await serial.wait_total(report.vcpus[0].heartbeats, DRAIN_MS)
        await process.execute("cont")
        self.ram_verifications += 1


def accel_label(build: Build) -> str:
    """How a build is called in reports."""
    return build.accel or "default"


async def _guest_goes_on(serial: HeartbeatReader, ram: RamView) -> GuestReport:
    """Wait until every vCPU has gone beyond where it was when the update was complete.

    A heartbeat comes from vCPU 0 through the serial port; the others are looked at when it comes.
    Only then has each of them noted the gap that it felt. Returns the report of that moment.
    """
    at_completion = ram.report()

    def all_beyond(beat: Heartbeat) -> bool:
        progress = zip(ram.report().vcpus, at_completion.vcpus, strict=True)
        return beat.sequence > at_completion.vcpus[0].sequence and all(
            now.sequence > then.sequence for now, then in progress
        )

    await serial.wait_for("every vCPU goes on after the update", all_beyond, GUEST_PROGRESS_MS)
    return ram.report()


def _check_guest(before: GuestReport, after: GuestReport, serial: HeartbeatReader) -> None:
    problems = [
        f"vCPU {new.vcpu}: {what}"
        for old, new in zip(before.vcpus, after.vcpus, strict=True)
        for what, wrong in (
            (f"sequence {old.sequence} -> {new.sequence}", new.sequence <= old.sequence),
            (f"clock {old.last_ns} -> {new.last_ns} ns", new.last_ns <= old.last_ns),
            (f"clock went backwards {new.clock_backwards} times", new.clock_backwards > 0),
            (
                f"{new.errors} wrong stamps, the first at {new.first_bad_address:#x}",
                new.errors > 0,
            ),
            (f"booted {new.boots} times", new.boots != 1),
        )
        if wrong
    ]
    expect_nothing("guest", problems)
    expect_nothing("serial", serial.problems)


def _record(
    number: int,
    accels: tuple[str, str],
    result: UpdateResult,
    before: GuestReport,
    after: GuestReport,
    counters: ProcessCounters,
) -> UpdateRecord:
    return UpdateRecord(
        number=number,
        old_accel=accels[0],
        new_accel=accels[1],
        started_ns=result.started_ns,
        completed_ns=result.completed_ns,
        gaps=find_gaps(before, after, result),
        downtime_ns=result.downtime_ns,
        sequence_before=before.sequence,
        sequence_after=after.sequence,
        old_marks=result.old_marks,
        new_marks=result.new_marks,
        counters=counters,
    )
