"""Stock Debian kernels under our VMM, live-updated while they work.

Where this machine's KVM cannot run them, inside the nested rig: one emulated machine, all cases.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.needs import peer_qemu
from tools.lab.linux.kernels import Kernel, fetch_linux, find_kernels
from tools.lab.linux.rig import L1_BOOT_MS, RigPlan, running_rig

# Emulated processors on a shared machine; a quiet one needs two minutes for all.
DEADLINE_S = 900


def _cases(old: Kernel, new: Kernel) -> tuple[dict[str, Any], ...]:
    """The distribution's own kernel and a newer one, by both boot protocols."""
    return (
        {
            "name": "2 vCPUs, bzImage",
            "kernel": old.version,
            "image": "bzImage",
            "ram_mib": 256,
            "vcpu_count": 2,
            "count": 10,
            "load": "tcp=1,udp=5",  # more, and the answers pile up: two emulated vCPUs carry little
        },
        {
            "name": "1 vCPU, 128 MiB, vmlinux",
            "kernel": new.version,
            "image": "vmlinux",
            "ram_mib": 128,
            "vcpu_count": 1,
            "count": 3,
        },
    )


@pytest.mark.nested
@pytest.mark.needs_peer_qemu
@pytest.mark.timeout(DEADLINE_S)
async def test_linux_works_on_over_live_updates() -> None:
    kernels = find_kernels(await asyncio.to_thread(fetch_linux))
    cases = _cases(kernels[0], kernels[-1])
    plan = RigPlan(qemu=peer_qemu(), l1_kernel=kernels[-1], guests=kernels, cases=cases)
    async with running_rig(plan) as rig:
        for case in cases:
            report = await rig.next_report(L1_BOOT_MS + DEADLINE_S * 1000)
            print(report)  # noqa: T201 - the gap of each update is what one wants to see
            assert report["failure"] is None
            assert report["name"] == case["name"]
            assert len(report["updates"]) == case["count"]
            assert report["streams"] == (1 if "load" in case else 2)
            assert report["blocks_written"] > 0
