"""One update in which one side fails, until both have said their last word; for any guest."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from qemu.qmp import ExecuteError

from tools.lab.deadlines import EXIT_MS, MS_PER_S, UPDATE_MS, within
from tools.lab.errors import CheckFailedError
from tools.lab.faults.cases import Case
from tools.lab.launcher import Launched
from tools.lab.process import VmmProcess
from tools.lab.update import EVENTS_ON
from vmm.update.faults import Fault

# Of every phase. A hung process is given up after it, so it sets the pace of those cases; a busy
# machine must not reach it in a phase that only works.
PHASE_TIMEOUT_MS = 2_000
# How long a process may be in doubt before the documented way out is taken, in phases: longer than
# any chain of deadlines that ends by itself.
DOUBT_PHASES = 4
_TERMINAL = frozenset({"completed", "failed", "cancelled"})


async def faulted_update(
    case: Case, old: Launched, new: Launched, phase_timeout_ms: int = PHASE_TIMEOUT_MS
) -> None:
    """Let `old` migrate to `new`, one of which fails as `case` says, and wait for how it ends.

    Raises CheckFailedError when it does not end, DeadlineError.
    """
    duel = _Duel(case, old, new, phase_timeout_ms)
    async with duel.listening():
        victim = await duel.update()
        if case.plan.fault is Fault.KILL:
            await within(EXIT_MS, f"{victim.name}: the end by SIGKILL", victim.wait_exit())
        await duel.settle()


@dataclass(slots=True)
class _Watch:
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


class _Duel:
    def __init__(self, case: Case, old: Launched, new: Launched, phase_timeout_ms: int) -> None:
        self._case, self._old, self._new = case, old, new
        self._phase_timeout_ms = phase_timeout_ms
        self._watches = _Watch(old.process), _Watch(new.process)

    @property
    def _doubt_ms(self) -> int:
        return DOUBT_PHASES * self._phase_timeout_ms

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Both are heard while the context lasts."""
        for watch in self._watches:
            watch.process.forget_events()
        tasks = [asyncio.ensure_future(watch.listen()) for watch in self._watches]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def update(self) -> VmmProcess:
        """Returns the one that failed."""
        case, old, new = self._case, self._old.process, self._new.process
        for process in (old, new):
            await process.execute("migrate-set-capabilities", EVENTS_ON)
            timeout = {"x-cpr-timeout-ms": self._phase_timeout_ms}
            await process.execute("migrate-set-parameters", timeout)
        await old.execute("migrate-set-parameters", {"mode": "cpr-transfer"})
        role = case.plan.role.value
        victim = old if role == "source" else new
        other_watch = self._watches[1] if role == "source" else self._watches[0]
        await victim.execute("migrate-set-parameters", {"x-cpr-fault": str(case.plan)})
        # The command may never be answered: its process dies or hangs.
        migrate = asyncio.ensure_future(
            old.execute("migrate", self._new.sockets.migrate_arguments())
        )
        migrate.add_done_callback(lambda done: done.cancelled() or done.exception())
        if case.plan.fault is Fault.HANG:
            await _hung(victim)
            if not case.wakes:
                await other_watch.wait(self._doubt_ms)
            os.kill(victim.pid, signal.SIGCONT)
        await asyncio.wait([migrate], timeout=UPDATE_MS / MS_PER_S)
        return victim

    async def settle(self) -> None:
        """Wait for the last word of both; one in doubt is helped as the documentation says."""
        old, new = self._watches
        await asyncio.gather(old.wait(self._doubt_ms), new.wait(self._doubt_ms))
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


async def _hung(process: VmmProcess) -> None:
    """Wait until SIGSTOP took effect (it is our child)."""
    wait = asyncio.to_thread(os.waitid, os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    try:
        await within(UPDATE_MS, f"{process.name}: stopped by SIGSTOP", wait)
    except ChildProcessError as error:
        raise CheckFailedError(f"{process.name} ended before it reached its step") from error
