"""`cpr-drill --guest linux`: live updates of a Linux guest, here or in an emulated machine."""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

from tools.lab.cache import peer_qemu
from tools.lab.errors import OptionError
from tools.lab.linux.host import pace, running_linux, why_not_here
from tools.lab.linux.kernels import fetch_linux, find_kernels, own_kernel
from tools.lab.linux.rig import L1_BOOT_MS, RigPlan

# Starting, booting and ending, and each update, on an emulated processor of a busy machine.
CASE_MS, UPDATE_MS = 300_000, 60_000
# What belongs to the built-in guest: option -> its default.
_NOT_FOR_LINUX = {
    "pages": 0, "cliff": False, "faults": None, "html": None, "old": None, "new": None,
}  # fmt: skip


def check_options(options: argparse.Namespace) -> None:
    """Raise OptionError for what does not go together."""
    if options.guest != "linux":
        for name in ("kernel", "initrd"):
            if getattr(options, name) is not None:
                raise OptionError(f"--{name} needs --guest linux")
        return
    for name, default in _NOT_FOR_LINUX.items():
        if getattr(options, name) != default:
            raise OptionError(f"--{name} is for the built-in guest, not for --guest linux")
    if options.accel == "unicorn":
        raise OptionError("--accel unicorn: Linux needs kvm")
    if options.initrd is not None and options.kernel is None:
        raise OptionError("--initrd needs --kernel")


def linux_drill(options: argparse.Namespace) -> int:
    """Run it and say how it went; 0 = every check held. Raises LabError when it cannot run."""
    plan = make_plan(options)
    if (reason := why_not_here()) is not None:
        print(f"{reason}: Linux runs in an emulated machine here (some 10 times slower)")
    report = asyncio.run(_run(plan, CASE_MS + options.count * UPDATE_MS))
    _show(report)
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
    return 0 if report["passed"] else 1


def make_plan(options: argparse.Namespace) -> RigPlan:
    """One case. Raises LabError when kernel, modules or busybox are missing."""
    packaged = find_kernels(fetch_linux())
    guest = packaged[0]
    if options.kernel is not None:
        guest = own_kernel(options.kernel, options.initrd, packaged[0].busybox)
    usual = pace()
    case = {
        "name": f"Linux {guest.version}",
        "kernel": guest.version,
        "image": "bzImage",
        "ram_mib": options.mem >> 20,
        "vcpu_count": options.vcpus,
        "count": options.count,
        "load": str(options.load or usual.load),
        "tick_ms": usual.tick_ms,
    }
    return RigPlan(qemu=peer_qemu(), l1_kernel=packaged[-1], guests=(guest,), cases=(case,))


async def _run(plan: RigPlan, deadline_ms: int) -> dict[str, Any]:
    async with running_linux(plan) as rig:
        return await rig.next_report(L1_BOOT_MS + deadline_ms, tell=print)


def _show(report: dict[str, Any]) -> None:
    gaps = sorted(update["longest_gap_ms"] for update in report["updates"])
    for name in ("baseline", "ledger"):
        if report[name]:
            print(f"{'without updates' if name == 'baseline' else 'updates'}: {report[name]}")
    if not report["passed"]:
        print(f"FAIL {report['name']}: {report['failure']}")
        return
    print(
        f"PASS {report['name']}, {len(gaps)} live updates: longest gap of its ticker p50 "
        f"{gaps[len(gaps) // 2]:.1f}, max {gaps[-1]:.1f} ms; {report['blocks_written']} disk "
        "blocks right, TCP byte-exact, no frame lost, no new kernel warning, clocks monotone, "
        "power-off"
    )
