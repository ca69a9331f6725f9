"""Stock Debian kernels under our VMM, live-updated while they work, and with faults.

Where this machine's KVM cannot run them, inside the nested rig. An emulated machine there has one
processor, so two of them share the cases.
"""

from __future__ import annotations

import asyncio
import faulthandler
from collections.abc import Mapping
from typing import Any

import pytest

from tools.lab.cache import peer_qemu
from tools.lab.errors import EmulatorStalledError
from tools.lab.linux.host import pace, running_linux, why_not_here
from tools.lab.linux.kernels import Kernel, fetch_linux, find_kernels
from tools.lab.linux.rig import L1_BOOT_MS, RigPlan

# Emulated processors on a shared machine; a quiet one needs four minutes for all.
DEADLINE_S = 1200
ROLLED_BACK, WENT_ON = "rolled back", "went on in the successor"
# The successor or the source killed, hung, cut off or lying -> who has the guest then.
FAULTS: Mapping[str, str] = {
    "target/before/BUILD/no-memory": ROLLED_BACK,
    "target/after/SEND_PREPARED/kill": ROLLED_BACK,
    "target/before/SEND_LOADED/kill": ROLLED_BACK,
    "target/before/SEND_ACCEPT/hang": ROLLED_BACK,
    "target/before/SEND_LOADED/hang": ROLLED_BACK,
    "target/after/LOAD_STATE/half-close": ROLLED_BACK,
    "source/before/SEND_FDS/fd-wrong": ROLLED_BACK,
    "source/before/SEND_STATE/flip": ROLLED_BACK,
    "source/after/SEND_STATE/reset": ROLLED_BACK,
    "target/before/SEND_LOADED/pause": WENT_ON,
    "target/before/SEND_RUNNING/duplicate": WENT_ON,
    "source/before/SEND_COMMIT/kill": WENT_ON,
}


def _shares(old: str, new: str) -> tuple[tuple[dict[str, Any], ...], ...]:
    """The distribution's own kernel and a newer one, by both boot protocols, small and large.

    Two shares of cases that take about as long.
    """

    usual = pace()

    def case(
        kernel: str, image: str, vcpu_count: int, ram_mib: int, count: int, **rest: Any
    ) -> dict[str, Any]:
        size = {"vcpu_count": vcpu_count, "ram_mib": ram_mib, "count": count}
        name = f"{kernel.partition('-')[0]} {image}, {vcpu_count} vCPUs, {ram_mib} MiB"
        return {
            "name": name,
            "kernel": kernel,
            "image": image,
            "load": usual.load,
            "tick_ms": usual.tick_ms,
            **size,
            **rest,
        }

    return (
        (
            case(old, "bzImage", 2, 256, 10),
            case(new, "vmlinux", 1, 128, 1, load="tcp=2@10,udp=20", reboots=True),
            case(old, "vmlinux", 4, 128, 1),
        ),
        (
            case(old, "bzImage", 1, 4096, 1, faults=tuple(FAULTS)),
            case(new, "bzImage", 4, 4096, 1),
        ),
    )


@pytest.mark.nested
@pytest.mark.needs_linux_host
@pytest.mark.timeout(DEADLINE_S)
async def test_linux_works_on_over_live_updates_and_faults() -> None:
    faulthandler.cancel_dump_traceback_later()  # minutes are no sign of hanging here
    kernels: tuple[Kernel, ...] = find_kernels(await asyncio.to_thread(fetch_linux))
    shares = _shares(kernels[0].version, kernels[-1].version)
    if why_not_here() is None:  # one machine with all its processors
        shares = (tuple(case for cases in shares for case in cases),)
    async with asyncio.TaskGroup() as group:
        for cases in shares:
            group.create_task(_all_pass(kernels, cases))


async def _all_pass(
    kernels: tuple[Kernel, ...], cases: tuple[dict[str, Any], ...], stalls_max: int = 1
) -> None:
    """A machine whose emulator fails is no answer: what it had not done is for another one."""
    left = list(cases)
    plan = RigPlan(qemu=peer_qemu(), l1_kernel=kernels[-1], guests=kernels, cases=cases)
    try:
        async with running_linux(plan) as rig:
            while left:
                report = await rig.next_report(L1_BOOT_MS + DEADLINE_S * 1000, tell=print)
                print(report)  # noqa: T201 - the gap of each update is what one wants to see
                _check(report, left.pop(0))
    except EmulatorStalledError as stall:
        if not stalls_max:
            raise
        print(f"{stall}; the rest runs in another machine")  # noqa: T201 - it must not go unseen
        await _all_pass(kernels, tuple(left), stalls_max - 1)


def _check(report: dict[str, Any], case: dict[str, Any]) -> None:
    assert report["failure"] is None
    assert report["name"] == case["name"]
    assert len(report["updates"]) == case["count"]
    assert report["streams"] == int(case["load"].partition("tcp=")[2][0])
    assert report["blocks_written"] > 0
    assert report["faults"] == (FAULTS if "faults" in case else {})
