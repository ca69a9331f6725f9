"""Where Linux guests can run: on this machine's own KVM, or in the nested rig."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tools.lab.errors import LabError
from tools.lab.linux.rig import LINE_MAX_BYTES, Rig, RigPlan, guest_files, running_rig
from tools.lab.options import KVM_DEVICE

# A CPU flag, and the part of KVM that uses what it stands for (linux/Documentation/virt/kvm).
_HARDWARE = {"vmx": "kvm_intel", "svm": "kvm_amd"}


def has_hardware_virtualisation(root: Path = Path("/")) -> bool:
    """Whether KVM runs guests on the processor itself.

    Where it is paravirtual the device is there and the flags or the modules are not, and a guest's
    kernel runs in an emulator of instructions that does not know all of them.
    """
    try:
        flags = (root / "proc/cpuinfo").read_text().split()
    except OSError:
        return False
    modules = root / "sys/module"
    return any(flag in flags and (modules / name).is_dir() for flag, name in _HARDWARE.items())


def why_not_here(root: Path = Path("/")) -> str | None:
    """Why Linux guests do not run directly on this machine; None when they do."""
    if not has_hardware_virtualisation(root):
        return "KVM here has no hardware virtualisation (VT-x or SVM)"
    if not os.access(KVM_DEVICE, os.R_OK | os.W_OK):
        return f"{KVM_DEVICE} cannot be opened"
    return None


@dataclass(frozen=True, slots=True)
class Pace:
    """How much a Linux guest is given to do between and during the updates."""

    load: str  # as for --load
    tick_ms: int  # of the ticker; the disk writer rests for some ticks


_DIRECT_PACE = Pace("tcp=2,udp=50", tick_ms=1)
# An emulated processor needs some 0.4 ms for each exit of the guest and 2 ms for each frame, and a
# successor starts with what the guest leaves of it: half of it took three seconds of every five.
_EMULATED_PACE = Pace("tcp=1@5,udp=3", tick_ms=40)


def pace() -> Pace:
    """What suits the processor that Linux guests get on this machine."""
    return _DIRECT_PACE if why_not_here() is None else _EMULATED_PACE


def running_linux(plan: RigPlan) -> AbstractAsyncContextManager[Rig]:
    """The plan's cases, directly where that is possible, otherwise nested.

    Raises LabError where neither is possible.
    """
    reason = why_not_here()
    if reason is None:
        return running_direct(plan)
    if not plan.qemu.exists():
        raise LabError(f"{reason}, and there is no QEMU to nest them in: tools/fetch-peer qemu")
    return running_rig(plan)


@asynccontextmanager
async def running_direct(plan: RigPlan) -> AsyncIterator[Rig]:
    """The cases in a process on this machine; it has ended when the context is left."""
    with TemporaryDirectory(prefix="cpr-guests-") as name:
        folder = Path(name)
        for kernel in plan.guests:
            for entry in guest_files(kernel)():
                path = folder / entry.path
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(entry.content)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tools.lab.linux.inside", str(folder / "guests")),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=LINE_MAX_BYTES,
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(plan.cases).encode())
        process.stdin.close()
        try:
            yield Rig(process, emulated=False)
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()
