"""What must be true after every fault, whatever it was."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from qemu.qmp import ExecuteError

from cpr.handshake import Action, Role
from tools.lab.errors import CheckFailedError
from tools.lab.faults.cases import Case, successful_actions
from tools.lab.faults.witness import Witness
from tools.lab.process import VmmProcess
from tools.lab.procfs import ProcessCounters, leaks
from vmm.update.faults import Fault, When


class Ending(Enum):
    """How a case may end."""

    ROLLED_BACK = "rolled back"
    WENT_ON = "went on in the successor"
    EXCUSED = "the only process with the guest was killed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A case that ended as it must."""

    case: Case
    ending: Ending
    reason: str  # as the surviving side says it
    owner: VmmProcess | None


@dataclass(frozen=True, slots=True)
class Before:
    """What was so before the fault."""

    counters: ProcessCounters
    progress: int


class Oracle:
    """Judges the processes of one guest."""

    def __init__(self, guest: Witness) -> None:
        self.guest = guest
        self._steady: ProcessCounters | None = None

    def learn(self, process: VmmProcess) -> None:
        """What a successor holds after an update without a fault."""
        self._steady = process.counters()

    def before(self, process: VmmProcess) -> Before:
        """Note what is so."""
        return Before(process.counters(), self.guest.progress())

    async def judge(self, case: Case, old: VmmProcess, new: VmmProcess, before: Before) -> Outcome:
        """Raises CheckFailedError when something that must hold does not."""
        owners = [process for process in (old, new) if await _runs(process)]
        self._require_injected(case, old, new)  # after a word with each: its log is written then
        if len(owners) > 1:
            raise CheckFailedError("two processes say that they run the guest")
        if not owners:
            return await self._excused(case, old, new)
        (owner,) = owners
        await self.guest.check(owner)
        if self.guest.progress() <= before.progress:
            raise CheckFailedError("the guest did not go on")
        if owner is old:
            reason = await self._rolled_back(case, old, new, before)
            return Outcome(case, Ending.ROLLED_BACK, reason, owner)
        reason = await self._went_on(old, new)
        return Outcome(case, Ending.WENT_ON, reason, owner)

    def _require_injected(self, case: Case, old: VmmProcess, new: VmmProcess) -> None:
        victim = old if case.plan.role is Role.SOURCE else new
        if f"x-cpr-fault: {case.plan}" not in victim.log_path.read_text(errors="replace"):
            raise CheckFailedError(f"the step was never reached; {victim.log_tail()}")

    async def _excused(self, case: Case, old: VmmProcess, new: VmmProcess) -> Outcome:
        if not may_lose_guest(case):
            raise CheckFailedError(f"nobody runs the guest; the successor: {new.log_tail()}")
        if new.alive:
            raise CheckFailedError("the successor waits for a source that is dead")
        if old.alive:
            await self._stays_away(old)
        return Outcome(case, Ending.EXCUSED, new.log_tail(), None)

    async def _stays_away(self, old: VmmProcess) -> None:
        """The successor ran and died: the old process's state is older than the RAM."""
        try:
            await old.execute("cont")
        except ExecuteError:
            return
        raise CheckFailedError("the old process ran a CPU state that is older than the RAM")

    async def _rolled_back(
        self, case: Case, old: VmmProcess, new: VmmProcess, before: Before
    ) -> str:
        info = await old.execute("query-migrate")
        reason = str(info.get("error-desc", ""))
        if info.get("status") != "failed" or not reason:
            raise CheckFailedError(f"rolled back without a reason: {info}")
        if new.alive:
            raise CheckFailedError(f"the successor that failed lives on: {new.log_tail()}")
        killed = case.plan.role is Role.TARGET and case.plan.fault is Fault.KILL
        if not killed and "load of migration failed" not in new.log_path.read_text():
            raise CheckFailedError(f"the successor does not say why it ended: {new.log_tail()}")
        if found := leaks(before.counters, old.counters()):
            raise CheckFailedError(f"the old process kept {'; '.join(found)}")
        return reason

    async def _went_on(self, old: VmmProcess, new: VmmProcess) -> str:
        info = await new.execute("query-migrate")
        if info.get("status") != "completed":
            raise CheckFailedError(f"the successor runs the guest and says {info}")
        if self._steady is not None and (found := leaks(self._steady, new.counters())):
            raise CheckFailedError(f"the new process holds more than another: {'; '.join(found)}")
        if not old.alive:
            return old.log_tail()
        status = (await old.execute("query-status"))["status"]
        if status != "postmigrate":
            raise CheckFailedError(f"the guest runs in the successor; the old process: {status}")
        return "the old process is in postmigrate"


def may_lose_guest(case: Case) -> bool:
    """Whether the only process that could have the guest is killed.

    That is the source before its STATE is out, and the target once it has run the guest.
    """
    plan = case.plan
    if plan.fault is not Fault.KILL:
        return False
    last_step = Action.SEND_STATE if plan.role is Role.SOURCE else Action.RUN_GUEST
    order = successful_actions(plan.role)
    place, last = order.index(plan.action), order.index(last_step)
    comes_before = place < last or (place == last and plan.when is When.BEFORE)
    return comes_before if plan.role is Role.SOURCE else not comes_before


async def _runs(process: VmmProcess) -> bool:
    if not process.alive:
        return False
    return bool((await process.execute("query-status"))["status"] == "running")
