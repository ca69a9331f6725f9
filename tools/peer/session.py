"""One VMM with the counting guest: boots once, is updated again and again, each update measured."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from qemu.qmp import ExecuteError

from tools.lab.deadlines import LAUNCH_MS, UPDATE_MS, within
from tools.lab.errors import DeadlineError, LabError, UpdateFailedError
from tools.lab.process import Event, VmmProcess, listen_unix
from tools.lab.procfs import find_memfd
from tools.lab.update import EVENTS_ON
from tools.peer.appearing import file_appears
from tools.peer.argv import Channels, PeerBuild, migrate_arguments, peer_argv
from tools.peer.gapsampling import GapSampler
from tools.peer.guest import write_floppy

NS_PER_MS = 1_000_000
NS_PER_US = 1000
US_PER_S = 1_000_000
US_PER_MS = 1000
# Firmware under paravirtual KVM hangs at about one boot in ten; four in a row are something else.
BOOT_TRIES = 4
# A unix socket's file is there a moment before it listens.
CONNECT_TRIES = 20
REFUSED = "Connection refused"


@dataclass(frozen=True, slots=True)
class GapSample:
    """One update. `gap_ms` is what the guest felt, plus or minus `resolution_ms`."""

    gap_ms: float  # the longest pause from the command to both sides' completion
    resolution_ms: float
    gap_after_stop_ms: float | None  # when it began, seen from STOP; far from 0: not the switch
    switch_ms: float | None  # the pause across STOP..RESUME: the part that the VMM's design decides
    stop_resume_ms: float | None  # RESUME of new minus STOP of old, where both events were seen
    total_ms: float  # from the command to both sides' completion
    noise_ms: float  # longest pause before the command: what the machine does to a guest by itself
    realtime: bool  # the instrument ran at real-time priority


class PeerSession:
    """Owns the processes of one chain; `start` boots, `update` replaces and measures."""

    def __init__(self, build: PeerBuild, *, ram_bytes: int, run_dir: Path) -> None:
        self.build = build
        self._ram_bytes = ram_bytes
        self._dir = run_dir
        self._floppy = run_dir / "boot.img"
        self._generation = 0
        self._current: VmmProcess | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Boot the guest and see it count; DeadlineError when it does not in BOOT_TRIES."""
        self._dir.mkdir(parents=True, exist_ok=True)
        write_floppy(self._floppy)
        for attempt in range(1, BOOT_TRIES + 1):
            self._current = await self._launch(incoming=None)
            try:
                await self._watch_settled()
            except DeadlineError:
                await self.close()
                if attempt == BOOT_TRIES:
                    raise
            else:
                return

    async def update(self) -> GapSample:
        """Replace the process; the guest must be running. Raises UpdateFailedError and others."""
        old = self._running()
        sampler = await GapSampler.start(find_memfd(old.pid, self._ram_bytes))
        try:
            await sampler.wait_settled()
            started_ns = time.monotonic_ns()
            new, stopped_us, resumed_us = await self._replace(old)
            ended_ns = time.monotonic_ns()
            seen = await sampler.finish()
        finally:
            await sampler.close()
        self._current = new
        await old.quit()
        gap = seen.longest_within(started_ns, ended_ns)
        noise = seen.longest_within(0, started_ns)
        after_stop_ms = stop_resume_ms = switch_ms = None
        if gap is not None and stopped_us is not None:
            after_stop_ms = (gap.start_ns - _monotonic_ns(stopped_us)) / NS_PER_MS
        if stopped_us is not None and resumed_us is not None:
            stop_resume_ms = (resumed_us - stopped_us) / US_PER_MS
            switch = seen.longest_within(_monotonic_ns(stopped_us), _monotonic_ns(resumed_us))
            switch_ms = (switch.length_ns if switch else 0) / NS_PER_MS
        return GapSample(
            gap_ms=(gap.length_ns if gap else 0) / NS_PER_MS,
            resolution_ms=(gap.resolution_ns if gap else seen.longest_period_ns) / NS_PER_MS,
            gap_after_stop_ms=after_stop_ms,
            switch_ms=switch_ms,
            stop_resume_ms=stop_resume_ms,
            total_ms=(ended_ns - started_ns) / NS_PER_MS,
            noise_ms=(noise.length_ns if noise else 0) / NS_PER_MS,
            realtime=seen.realtime,
        )

    async def pause(self) -> None:
        """Stop the guest while the other VMM is measured, so that it takes no core."""
        await self._running().execute("stop")

    async def resume(self) -> None:
        """Let the guest run again."""
        await self._running().execute("cont")

    async def close(self) -> None:
        """End the running process; harmless the second time."""
        if self._current is not None:
            await self._current.terminate()
            self._current = None

    def _running(self) -> VmmProcess:
        if self._current is None:
            raise LabError(f"{self.build.name}: not started")
        return self._current

    async def _watch_settled(self) -> None:
        sampler = await GapSampler.start(find_memfd(self._running().pid, self._ram_bytes))
        try:
            await sampler.wait_settled()
        finally:
            await sampler.close()

    async def _launch(self, incoming: Channels | None) -> VmmProcess:
        self._generation += 1
        name = f"{self.build.name.replace('/', '-')}-{self._generation}"
        qmp_path = self._dir / f"qmp-{self._generation}.sock"
        listener = listen_unix(qmp_path)
        argv = peer_argv(
            self.build,
            ram_bytes=self._ram_bytes,
            floppy=self._floppy,
            qmp_fd=listener.fileno(),
            incoming=incoming,
        )
        log_path = self._dir / f"{name}.log"
        process = await VmmProcess.launch(
            argv, name=name, qmp_path=qmp_path, inherited=[listener], log_path=log_path
        )
        qmp_path.unlink(missing_ok=True)
        return process

    async def _replace(self, old: VmmProcess) -> tuple[VmmProcess, int | None, int | None]:
        """Update from `old` to a new process; returns it, and STOP's and RESUME's times."""
        channels = Channels(
            self._dir / f"main-{self._generation}.sock", self._dir / f"cpr-{self._generation}.sock"
        )
        # QEMU's successor greets only once it has its first state: launch and migrate overlap.
        launching = asyncio.create_task(self._launch(incoming=channels))
        try:
            await _listens(channels.cpr, launching)
            await old.execute("migrate-set-capabilities", EVENTS_ON)
            await old.execute("migrate-set-parameters", {"mode": "cpr-transfer"})
            old.forget_events()
            await _migrate(old, channels)
            new = await launching
        except BaseException:
            launching.cancel()
            with contextlib.suppress(LabError, asyncio.CancelledError):
                await (await launching).terminate()
            raise
        try:
            what = f"{self.build.name}: update completed on both sides"
            stopped_us, resumed_us = await within(UPDATE_MS, what, _completed(old, new))
        except BaseException:
            await new.terminate()
            raise
        return new, stopped_us, resumed_us


_BAD_ENDINGS = frozenset({"failed", "cancelled"})


async def _listens(path: Path, launching: asyncio.Task[VmmProcess]) -> None:
    """Wait for a successor's socket; raises at once what ended its launch before that."""
    appearing = asyncio.create_task(file_appears(path, LAUNCH_MS))
    try:
        done, _ = await asyncio.wait({appearing, launching}, return_when=asyncio.FIRST_COMPLETED)
        if launching in done:
            launching.result()
        await appearing
    finally:
        appearing.cancel()


async def _migrate(old: VmmProcess, channels: Channels) -> None:
    """Start the update; again while the successor's socket does not listen yet."""
    for attempt in range(1, CONNECT_TRIES + 1):
        try:
            await old.execute("migrate", migrate_arguments(channels))
        except ExecuteError as error:
            if REFUSED not in str(error) or attempt == CONNECT_TRIES:
                raise UpdateFailedError(f"{old.name}: migrate: {error}") from error
        else:
            return


async def _completed(old: VmmProcess, new: VmmProcess) -> tuple[int | None, int | None]:
    """Wait for `completed` on old and a running guest in new; their STOP and RESUME times, us."""
    stopped_us = resumed_us = None
    completed = False
    while not completed:
        event = await old.next_event()
        if event["event"] == "STOP":
            stopped_us = _timestamp_us(event)
        elif event["event"] == "MIGRATION":
            completed = await _is_completed(old, str(event["data"]["status"]))
    # RESUME may have come before this client was let in; then only the status says so.
    running = bool((await new.execute("query-status"))["running"])
    while resumed_us is None and (event_or_none := await _next_event(new, wait=not running)):
        if event_or_none["event"] == "RESUME":
            resumed_us = _timestamp_us(event_or_none)
    return stopped_us, resumed_us


async def _next_event(process: VmmProcess, *, wait: bool) -> Event | None:
    """Return the next event; with `wait` off, None when none has come yet."""
    try:
        async with asyncio.timeout(None if wait else 0):
            return await process.next_event()
    except TimeoutError:
        return None


async def _is_completed(old: VmmProcess, status: str) -> bool:
    """Judge one MIGRATION event; UpdateFailedError with the reason when it is the end."""
    if status in _BAD_ENDINGS:
        # It may be the echo of a try whose connection was refused; the newest one's state decides.
        info = await old.execute("query-migrate")
        if info.get("status") in _BAD_ENDINGS:
            reason = info.get("error-desc", "no reason given")
            raise UpdateFailedError(f"{old.name}: migration {status}: {reason}")
    return status == "completed"


def _timestamp_us(event: Event) -> int:
    stamp = event["timestamp"]
    return int(stamp["seconds"]) * US_PER_S + int(stamp["microseconds"])


def _monotonic_ns(realtime_us: int) -> int:
    """The instrument's clock at the time stamp of a QMP event."""
    return realtime_us * NS_PER_US - (time.time_ns() - time.monotonic_ns())
