"""A guest that can be handed over again and again, and stands still while others are measured.

Several subjects live at the same time and are sampled in turn. Only the one being sampled runs its
guest, because a guest that spins takes a core from the others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from tools.lab.argv import Build, GuestSpec
from tools.lab.child import PLAIN_CHILD, ChildSetup
from tools.lab.errors import CheckFailedError
from tools.lab.floor import Floor
from tools.lab.gaps import whole_buckets
from tools.lab.heartbeat import HeartbeatReader
from tools.lab.launcher import Launched, Launcher
from tools.lab.ramview import RamView
from tools.lab.timeline import Phase, Side, blackout_phases
from tools.lab.update import UpdateResult, live_update
from vmm.boot.guest.report import GuestReport

# The guest keeps the longest gap of every 34 ms. Its long stop between two samples must not share
# an entry with the blackout, so it runs for some heartbeats (20 ms each) before and after.
SETTLE_HEARTBEATS = 3
WARM_UP_AGAIN = 2


@dataclass(frozen=True, slots=True)
class Sample:
    """One hand-over. Times in nanoseconds of CLOCK_MONOTONIC."""

    blackout_ns: int  # the longest gap of the whole update, as the guest felt it
    switch_ns: int | None = None  # the gap at the switch alone; None where a longer one hid it
    downtime_ns: int | None = None  # RESUME of new minus STOP of old; the floor has no such events
    phases: tuple[Phase, ...] = ()


class Subject(Protocol):
    """Something whose guest can be handed over."""

    @property
    def name(self) -> str:
        """What the subject is called in the results; unique in a run."""
        ...

    async def __aenter__(self) -> Self:
        """Boot the guest and leave it standing still."""
        ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End every process."""
        ...

    async def sample(self) -> Sample:
        """Let the guest run, hand it over once, and stop it again."""
        ...


class OursSubject:
    """Our VMM: every hand-over is a live update into a fresh process, driven over QMP."""

    def __init__(
        self,
        name: str,
        build: Build,
        guest: GuestSpec,
        *,
        extra: Sequence[str] = (),
        first: ChildSetup = PLAIN_CHILD,
    ) -> None:
        self.name = name
        self._build = build
        self._guest = guest
        self._launcher = Launcher(guest, extra=extra, first=first)
        self._owned = contextlib.AsyncExitStack()
        self._current: Launched
        self._serial: HeartbeatReader
        self._ram: RamView

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as undo:
            launcher = await undo.enter_async_context(self._launcher)
            self._current, self._serial = await launcher.start_first(self._build)
            await self._serial.wait_lines(1)
            self._ram = undo.enter_context(
                RamView(self._current.process.pid, self._guest.ram_bytes, self._guest.vcpu_count)
            )
            await self._current.process.execute("stop")
            self._owned = undo.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._owned.__aexit__(kind, error, trace)

    @property
    def pid(self) -> int:
        """The process that has the guest."""
        return self._current.process.pid

    async def sample(self) -> Sample:
        """One live update; raises UpdateFailedError or CheckFailedError."""
        old = self._current
        new = await self._launcher.start_successor(self._build)
        await old.process.execute("cont")
        await self._serial.wait_lines(SETTLE_HEARTBEATS)
        result = await live_update(old.process, new.process, new.sockets.migrate_arguments())
        self._current = new
        await self._serial.wait_lines(SETTLE_HEARTBEATS)
        report = self._ram.report()
        await new.process.execute("stop")
        await old.process.quit()
        self._launcher.remove_sockets(new)
        self._check(report)
        phases = blackout_phases({Side.OLD: result.old_marks, Side.NEW: result.new_marks})
        switch = None
        if phases:
            switch = report.longest_gap(phases[0].end_ns, phases[0].end_ns)
        return Sample(
            blackout_ns=_blackout_ns(report, result, hidden=bool(phases) and switch is None),
            switch_ns=None if switch is None else switch.length_ns,
            downtime_ns=result.downtime_ns,
            phases=phases,
        )

    def _check(self, report: GuestReport) -> None:
        if report.errors or self._serial.problems:
            raise CheckFailedError(
                f"{self.name}: the guest counts {report.errors} errors; its serial port: "
                f"{'; '.join(self._serial.problems) or 'in order'}"
            )


class FloorSubject:
    """The floor of the same guest: see `tools.lab.floor`."""

    def __init__(self, name: str, guest: GuestSpec, accel: str) -> None:
        self.name = name
        self._floor = Floor(guest, accel)

    async def __aenter__(self) -> Self:
        await self._floor.__aenter__()
        self._floor.pause()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._floor.__aexit__(kind, error, trace)

    async def sample(self) -> Sample:
        """Three hand-overs: there and back warms both halves in both processes; one counts."""
        self._floor.resume()
        for _ in range(WARM_UP_AGAIN):
            await self._floor.hand_over()
        blackout_ns = await self._floor.hand_over()
        self._floor.pause()
        return Sample(blackout_ns=blackout_ns, switch_ns=blackout_ns)


def _blackout_ns(report: GuestReport, result: UpdateResult, *, hidden: bool) -> int:
    """Find the longest gap during the update.

    On a busy machine a longer gap just before or after the update can hide the blackout, because
    they share an entry of the guest's report. Then that longer one counts, so that no blackout
    looks shorter than it was.
    """
    gap = report.longest_gap(result.started_ns, result.completed_ns)
    if hidden or gap is None:
        gap = report.longest_gap(*whole_buckets(result.started_ns, result.completed_ns))
    if gap is None:
        raise CheckFailedError("the guest noted no gap during the update; its report is damaged")
    return gap.length_ns
