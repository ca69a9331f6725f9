"""One live update, driven from outside over QMP exactly as QEMU's clients do it.

old: migrate-set-capabilities events        new: already waiting (-incoming …)
old: migrate-set-parameters mode=cpr-transfer
old: migrate channels=[main, cpr]
old: STOP, MIGRATION …, MIGRATION completed     new: RESUME, MIGRATION completed
old: query-status = postmigrate                 new: query-status = running
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from qemu.qmp import ExecuteError

from tools.lab.deadlines import UPDATE_MS, all_or_first_failure, within
from tools.lab.errors import LabError, UpdateFailedError
from tools.lab.process import Event, VmmProcess
from tools.lab.timeline import Mark, parse_marks

NS_PER_US = 1000
US_PER_S = 1_000_000
_BAD_ENDINGS = frozenset({"failed", "cancelled"})
COMMAND_NOT_FOUND = "CommandNotFound"


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """What one successful update looked like from outside. Times: CLOCK_MONOTONIC, ns."""

    started_ns: int  # just before `migrate`
    completed_ns: int  # both sides said completed, and the successor RESUME
    downtime_ns: int  # RESUME of new minus STOP of old, from the QMP events' time stamps
    old_marks: tuple[Mark, ...]
    new_marks: tuple[Mark, ...]

    @property
    def total_ns(self) -> int:
        """From the command to the last event."""
        return self.completed_ns - self.started_ns


@dataclass(slots=True)
class _Story:
    """The events of one side, as they come."""

    process: VmmProcess
    times_us: dict[str, int] = field(default_factory=dict)
    status: str = "none"

    def take(self, event: Event) -> None:
        name = str(event["event"])
        if name == "MIGRATION":
            self.status = str(event["data"]["status"])
        else:
            self.times_us[name] = _timestamp_us(event)

    async def until(self, event_name: str) -> None:
        """Read events until `event_name` and `completed` were both seen."""
        while not (self.status == "completed" and event_name in self.times_us):
            if self.status in _BAD_ENDINGS:
                raise UpdateFailedError(f"{self.process.name}: migration {self.status}")
            self.take(await self.process.next_event())


async def live_update(
    old: VmmProcess, new: VmmProcess, migrate_arguments: Mapping[str, object]
) -> UpdateResult:
    """Move the running guest from `old` to `new`; both stay alive, `old` in postmigrate.

    Raises UpdateFailedError with the reasons of both sides, or DeadlineError.
    """
    old.forget_events()
    new.forget_events()
    old_story, new_story = _Story(old), _Story(new)
    try:
        await old.execute("migrate-set-capabilities", EVENTS_ON)
        await old.execute("migrate-set-parameters", {"mode": "cpr-transfer"})
        started_ns = time.monotonic_ns()
        await old.execute("migrate", migrate_arguments)
        await within(
            UPDATE_MS,
            f"update {old.name} -> {new.name}: STOP, RESUME and completed",
            all_or_first_failure(
                old_story.until("STOP"),
                new_story.until("RESUME"),
                old.must_not_exit("during the update"),
                new.must_not_exit("during the update"),
                needed=2,
            ),
        )
        completed_ns = time.monotonic_ns()
        await _expect_status(old, "postmigrate")
        await _expect_status(new, "running")
    except (LabError, ExecuteError) as error:
        raise UpdateFailedError(await _reasons(error, old, new)) from error
    return UpdateResult(
        started_ns=started_ns,
        completed_ns=completed_ns,
        downtime_ns=(new_story.times_us["RESUME"] - old_story.times_us["STOP"]) * NS_PER_US,
        old_marks=await query_marks(old),
        new_marks=await query_marks(new),
    )


EVENTS_ON = {"capabilities": [{"capability": "events", "state": True}]}


async def query_marks(process: VmmProcess) -> tuple[Mark, ...]:
    """Ask for the process's own timeline of its last update; () from a VMM without that command."""
    try:
        return parse_marks(await process.execute("x-query-cpr-timeline"))
    except ExecuteError as error:
        if error.error_class != COMMAND_NOT_FOUND:
            raise
        return ()


async def _expect_status(process: VmmProcess, expected: str) -> None:
    reply = await process.execute("query-status")
    if reply["status"] != expected:
        raise UpdateFailedError(
            f"{process.name}: query-status is {reply['status']}, expected {expected}"
        )


async def _reasons(error: Exception, old: VmmProcess, new: VmmProcess) -> str:
    """Everything that both sides say about a failed update, in one line."""
    parts = [str(error)]
    for side, process in (("old", old), ("new", new)):
        if not process.alive:
            parts.append(f"{side} ({process.name}) has ended; stderr: {process.log_tail()}")
            continue
        with contextlib.suppress(LabError, ExecuteError):
            info = await process.execute("query-migrate")
            state = await process.execute("query-status")
            parts.append(
                f"{side} ({process.name}): {state['status']}, migration {info.get('status')}, "
                f"{info.get('error-desc', 'no reason given')}"
            )
    return "; ".join(parts)


def _timestamp_us(event: Event) -> int:
    stamp = event["timestamp"]
    return int(stamp["seconds"]) * US_PER_S + int(stamp["microseconds"])
