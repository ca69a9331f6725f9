"""A chain of live updates under a Linux guest that works: TCP, ping, disk, clocks.

After every update the guest itself says what it felt (see agentlink), and from outside: the streams
are byte-exact, the disk holds what was written, the old process ended cleanly. At the end Linux
switches its machine off, and the last process ends with it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from qemu.qmp import ExecuteError

from tools.lab.argv import Build
from tools.lab.checks import expect_nothing
from tools.lab.deadlines import all_or_first_failure, within
from tools.lab.errors import CheckFailedError, LabError, LaunchError
from tools.lab.faults.cases import Case
from tools.lab.faults.duel import faulted_update
from tools.lab.faults.oracle import Oracle, Outcome
from tools.lab.launcher import Launched, Launcher
from tools.lab.linux.agentlink import AgentLink, AgentWitness
from tools.lab.linux.disk import check_disk, check_numbers
from tools.lab.linux.guest_spec import DISK_SIZE_BYTES, LinuxGuest
from tools.lab.load import LoadSpec
from tools.lab.load_ledger import LoadResult
from tools.lab.process import VmmProcess
from tools.lab.procfs import leaks
from tools.lab.traffic import Traffic
from tools.lab.update import live_update
from vmm.boot.guest.net_report import NetReport
from vmm.update.faults import Fault

NS_PER_MS = 1_000_000
POWER_OFF_MS = 60_000  # Linux stops its devices first
# Of a faulted update: emulated processors need seconds for what takes milliseconds elsewhere.
PHASE_TIMEOUT_MS = 5_000
_CONSOLE_TAIL_BYTES = 2000


@dataclass(frozen=True, slots=True)
class LinuxPlan:
    """What to run."""

    name: str
    build: Build
    guest: LinuxGuest
    count: int
    load: LoadSpec
    faults: tuple[Case, ...] = ()  # one update each, after the others
    reboots: bool = False  # at the end, before it is switched off


@dataclass(frozen=True, slots=True)
class LinuxUpdate:
    """One update as Linux and its clients saw it."""

    number: int
    longest_gap_ms: float  # of the ticker, from before `migrate` to after the last event
    downtime_ms: float  # RESUME of new minus STOP of old
    total_ms: float  # command to last event


@dataclass(frozen=True, slots=True)
class LinuxResult:
    """A whole chain."""

    name: str
    planned: int
    boot_warnings: int  # before the first update; nothing of ours
    updates: tuple[LinuxUpdate, ...]
    outcomes: tuple[Outcome, ...]  # of the faults
    blocks_written: int
    baseline: LoadResult | None
    ledger: LoadResult | None
    failure: str | None = None

    @property
    def passed(self) -> bool:
        """Every update happened and every check held."""
        return self.failure is None and len(self.updates) == self.planned


OnUpdate = Callable[[LinuxUpdate | Outcome], None]


async def run_linux_chain(plan: LinuxPlan, on_update: OnUpdate) -> LinuxResult:
    """Run the whole chain; a failure is part of the result, not an exception."""
    failure: str | None = None
    with contextlib.ExitStack() as stack:
        traffic = Traffic.prepare(plan.load, stack)
        chain = LinuxChain(plan, traffic)
        try:
            async with chain.booted(stack) as first:
                await chain.run(first, on_update)
        except (LabError, ExecuteError) as error:
            failure = f"{chain.where}: {error}{chain.console_tail()}"
        finally:
            await traffic.end()
    return LinuxResult(
        name=plan.name,
        planned=plan.count,
        boot_warnings=chain.boot_warnings,
        updates=tuple(chain.updates),
        outcomes=tuple(chain.outcomes),
        blocks_written=chain.blocks_written,
        baseline=traffic.baseline,
        ledger=traffic.ledger,
        failure=failure,
    )


@dataclass(slots=True)
class LinuxChain:
    """The state of a running chain."""

    plan: LinuxPlan
    traffic: Traffic
    updates: list[LinuxUpdate] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    boot_warnings: int = 0
    blocks_written: int = 0
    where: str = "boot"
    _files: Path = field(init=False)
    _link: AgentLink = field(init=False)
    _guest: AgentWitness = field(init=False)
    _launcher: Launcher = field(init=False)

    @contextlib.asynccontextmanager
    async def booted(self, stack: contextlib.ExitStack) -> AsyncIterator[Launched]:
        """Boot Linux and wait for its agent; everything has ended when the context is left."""
        guest = replace(self.plan.guest, nic=self.traffic.nic)
        self._files = Path(stack.enter_context(TemporaryDirectory(prefix="cpr-linux-")))
        self._disk.touch()
        os.truncate(self._disk, DISK_SIZE_BYTES)
        self._link = AgentLink.listen(self.traffic.namespace, guest.nic.host_address)
        stack.callback(self._link.close)
        extra = guest.argv(self._disk, self._console, self._numbers)
        async with Launcher(guest, extra=extra, first=self.traffic.child) as self._launcher:
            first = await self._launcher.start_plain(self.plan.build)
            await self._wait_for_agent(first.process)
            yield first

    async def _wait_for_agent(self, process: VmmProcess) -> None:
        try:
            await all_or_first_failure(
                self._link.accept(), process.must_not_exit("before Linux was up"), needed=1
            )
        except LabError as error:
            raise LaunchError(f"{error}; stderr: {process.log_tail()}") from error

    async def run(self, current: Launched, on_update: OnUpdate) -> None:
        """All updates under load, then the end of the guest."""
        processors = len(os.sched_getaffinity(0))
        crowded = processors <= self.plan.guest.vcpu_count  # one is the VMM's
        self._guest = AgentWitness(self._link, self._link.report(), crowded=crowded)
        self.boot_warnings = len(self._guest.seen.warnings)
        self.where = "the load without updates"
        await self.traffic.start(self.net_report)
        for number in range(1, self.plan.count + 1):
            self.where = f"update {number}"
            current, update = await self.update(number, current)
            self.updates.append(update)
            on_update(update)
        for case in self.plan.faults:
            self.where = case.name
            current, outcome = await self.suffer(case, current)
            self.outcomes.append(outcome)
            on_update(outcome)
        self.where = "the load over all updates"
        await self.end_load()
        self.where = "the end"
        self.check_files()
        if self.plan.reboots:
            self.where = "the reboot"
            await self.reboot(current.process)
        await self.power_off(current.process)

    async def end_load(self) -> None:
        """Check the ledger; a loss is told with what Linux says that it dropped itself."""
        try:
            await self.traffic.stop(self.net_report)
        except CheckFailedError as loss:
            try:
                self._guest.look()
            except CheckFailedError as own:
                raise CheckFailedError(f"{loss}; {own}") from own
            raise

    async def update(self, number: int, old: Launched) -> tuple[Launched, LinuxUpdate]:
        """One update with all its checks; `old` has ended when it returns."""
        new = await self._launcher.start_successor(self.plan.build)
        self._guest.look()  # and the longest gap begins anew
        counters = old.process.counters()
        result = await live_update(old.process, new.process, new.sockets.migrate_arguments())
        after = self._guest.look()
        expect_nothing("the old process kept", leaks(counters, old.process.counters()))
        await old.process.quit_cleanly()
        return new, LinuxUpdate(
            number=number,
            longest_gap_ms=after.longest_gap_ns / NS_PER_MS,
            downtime_ms=result.downtime_ns / NS_PER_MS,
            total_ms=result.total_ns / NS_PER_MS,
        )

    async def suffer(self, case: Case, old: Launched) -> tuple[Launched, Outcome]:
        """One update with a fault, and all that must hold after it; who has the guest then."""
        new = await self._launcher.start_successor(self.plan.build)
        oracle = Oracle(self._guest)
        self._guest.look()
        self._guest.long_pause = case.plan.fault is Fault.HANG
        before = oracle.before(old.process)
        await faulted_update(case, old, new, PHASE_TIMEOUT_MS)
        outcome = await oracle.judge(case, old.process, new.process, before)
        self._guest.long_pause = False
        if outcome.owner is None:
            raise CheckFailedError(f"the guest is lost: {outcome.reason}")
        owner, loser = (new, old) if outcome.owner is new.process else (old, new)
        if loser.process.alive:
            await loser.process.quit_cleanly()
        return owner, outcome

    def check_files(self) -> None:
        """What Linux wrote is where it belongs; it writes no more."""
        stopped = self._guest.judge(self._link.ask("stop-disk"))
        self.blocks_written = stopped.blocks_written
        check_disk(self._disk, stopped.blocks_written)
        check_numbers(self._numbers, stopped.blocks_written)

    async def reboot(self, process: VmmProcess) -> None:
        """Linux restarts the machine, which a successor boots by itself."""
        process.forget_events()
        self._link.tell("reboot")
        reset = await within(POWER_OFF_MS, "Linux resets its machine", process.next_event())
        if reset["event"] != "RESET" or not reset["data"]["guest"]:
            raise CheckFailedError(f"{process.name}: {reset} instead of the guest's RESET")
        await self._wait_for_agent(process)
        self._link.report()

    async def power_off(self, process: VmmProcess) -> None:
        """Linux switches itself off, and its process ends by itself."""
        process.forget_events()
        self._link.tell("poweroff")
        status = await within(POWER_OFF_MS, "the process ends with Linux", process.wait_exit())
        if status != 0:
            raise CheckFailedError(f"{process.name}: exit status {status} after Linux's power-off")
        await process.hang_up()

    def net_report(self) -> NetReport:
        """The agent's counts, for the ledger."""
        return self._link.report().net_report()

    def console_tail(self) -> str:
        """The end of what Linux said on its console, for a failure."""
        with contextlib.suppress(OSError):
            tail = self._console.read_bytes()[-_CONSOLE_TAIL_BYTES:].decode(errors="replace")
            return f"; the console ends with:\n{tail}"
        return ""

    @property
    def _disk(self) -> Path:
        return self._files / "disk"

    @property
    def _numbers(self) -> Path:
        return self._files / "numbers"

    @property
    def _console(self) -> Path:
        return self._files / "console"
