"""Client of the sampler: start it on a guest's RAM, wait until the guest runs, get the pauses."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.lab.deadlines import within
from tools.lab.errors import LabError
from tools.peer.guest import COUNTER_ADDRESS
from tools.peer.sampler import Pause

# Often enough for a gap of a few milliseconds, seldom enough to cost about a hundredth of a core.
PERIOD_US = 200
RESULT_MS = 20_000  # the sampler itself waits up to 10 s for the guest's last sign of life
# Firmware under paravirtual KVM takes about 9 s to the boot sector, several times that on a busy
# machine, and sometimes hangs; see session.BOOT_TRIES.
SETTLED_MS = 40_000


@dataclass(frozen=True, slots=True)
class Observation:
    """What the instrument saw, longest pause first."""

    pauses: tuple[Pause, ...]
    samples: int
    longest_period_ns: int
    realtime: bool

    def longest_within(self, start_ns: int, end_ns: int) -> Pause | None:
        """Return the longest pause that touches the interval, CLOCK_MONOTONIC."""
        return next((p for p in self.pauses if p.end_ns > start_ns and p.start_ns < end_ns), None)


class GapSampler:
    """A running sampler; `close` ends it whatever state it is in."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, ram_path: Path) -> GapSampler:
        """Start on the memfd at `ram_path` (/proc/PID/fd/N)."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tools.peer.sampler"),
            *(str(ram_path), str(COUNTER_ADDRESS), str(PERIOD_US)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 20,  # the result is one line: at most PAUSES_KEPT pauses of ~120 bytes
        )
        return cls(process)

    async def wait_settled(self) -> None:
        """Wait until the guest has been counting undisturbed; DeadlineError if it never does."""
        await within(SETTLED_MS, "the guest counting undisturbed", self._next("settled"))

    async def finish(self) -> Observation:
        """End the sampling; LabError when the guest is not counting then."""
        self._end_input()
        result = await within(RESULT_MS, "the sampler's result", self._next("result"))
        await within(RESULT_MS, "the sampler's exit", self._process.wait())
        if not result["counting"]:
            raise LabError("the guest's counter stands still after the update")
        return Observation(
            pauses=tuple(Pause(**pause) for pause in result["pauses"]),
            samples=result["samples"],
            longest_period_ns=result["longest_period_ns"],
            realtime=result["realtime"],
        )

    async def close(self) -> None:
        """End the process; harmless the second time."""
        self._end_input()
        if self._process.returncode is None:
            # Not Process.kill(): it may reap the child that asyncio waits for.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
        await self._process.wait()

    def _end_input(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    async def _next(self, event: str) -> Mapping[str, Any]:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            message: dict[str, Any] = json.loads(line)
            if message["event"] == event:
                return message
        raise LabError(f"the sampler ended before it said {event!r}")
