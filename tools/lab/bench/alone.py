"""What is measured without an update: an accelerator by itself, a process by itself."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

from tools.lab.argv import GuestSpec
from tools.lab.bench.plan import HEADLINE_RAM_BYTES, Group
from tools.lab.bench.results import GroupResult, Row
from tools.lab.bench.rounds import Progress
from tools.lab.bench.suite import STANDARD_DEVICES, Setting, guest_conditions
from tools.lab.deadlines import within
from tools.lab.errors import LaunchError
from tools.lab.launcher import Launcher
from tools.lab.results import NS_PER_MS
from tools.lab.stats import Summary

ACCEL_SIDE = "tools.lab.bench.accel_side"
ACCEL_MS = 120_000  # tens of thousands of exits on an emulating host
KIB_PER_MIB = 1024


async def measure_accels(setting: Setting, progress: Progress) -> GroupResult:
    """Kick latency and exits per second, in a process of their own for each accelerator."""
    rows = []
    for accel in setting.accels:
        progress(f"{accel}: kicks and exits")
        figures = await _accel_figures(accel, setting.scale.kicks, setting.scale.exits)
        rows.append(
            Row(
                Group.ACCEL.value,
                accel,
                {
                    "guest": "kicks: computes, never exits; exits: reads a port in a loop",
                    "accel": accel,
                    "RAM": "16M",
                    "vCPUs": "1",
                    "devices": "none",
                },
                {name: Summary.of(values) for name, values in figures.items()},
            )
        )
    return GroupResult(tuple(rows))


async def _accel_figures(accel: str, kicks: int, exits: int) -> dict[str, list[float]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", ACCEL_SIDE, accel, str(kicks), str(exits)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await within(ACCEL_MS, f"{accel} measured by itself", process.communicate())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise LaunchError(f"{ACCEL_SIDE} {accel} failed: {err.decode(errors='replace').strip()}")
    figures: dict[str, list[float]] = json.loads(out)
    return figures


async def measure_process(setting: Setting, progress: Progress) -> GroupResult:
    """From exec to the QMP session, and the memory of a VMM whose guest runs."""
    rows = []
    for accel in setting.accels:
        guest = GuestSpec(HEADLINE_RAM_BYTES)
        starts_ms: list[float] = []
        memory: dict[str, list[float]] = {}
        for number in range(setting.scale.starts):
            progress(f"{accel}: start {number + 1}/{setting.scale.starts}")
            async with Launcher(guest) as launcher:
                began_ns = time.monotonic_ns()
                launched, serial = await launcher.start_first(setting.build(accel))
                starts_ms.append((time.monotonic_ns() - began_ns) / NS_PER_MS)
                await serial.wait_lines(1)
                for name, value in own_memory_mib(launched.process.pid).items():
                    memory.setdefault(name, []).append(value)
        rows.append(
            Row(
                Group.PROCESS.value,
                f"one VMM/{accel}",
                guest_conditions(accel, guest, STANDARD_DEVICES),
                {
                    "exec_to_qmp_ms": Summary.of(starts_ms),
                    **{name: Summary.of(values) for name, values in memory.items()},
                },
            )
        )
    return GroupResult(tuple(rows))


def own_memory_mib(pid: int) -> dict[str, float]:
    """Memory of a process without guest RAM, which is shared memory.

    `rss_mib` counts pages shared with other processes fully, `pss_mib` by their share.
    """
    rss = _kib(Path(f"/proc/{pid}/status"), ("RssAnon", "RssFile"))
    pss = _kib(Path(f"/proc/{pid}/smaps_rollup"), ("Pss_Anon", "Pss_File"))
    return {"rss_mib": rss / KIB_PER_MIB, "pss_mib": pss / KIB_PER_MIB}


def _kib(path: Path, names: tuple[str, ...]) -> int:
    lines = (line.partition(":") for line in path.read_text().splitlines())
    return sum(int(value.split()[0]) for name, _, value in lines if name in names)
