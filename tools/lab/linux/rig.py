"""The nested rig: Linux guests of our VMM on a machine whose own KVM cannot run them.

L0 is this machine. L1 is a distribution kernel in QEMU (software CPU with AMD's SVM), with this
Python and this checkout in its initramfs. L2 are the guests that our VMM runs there. L1 runs
`tools.lab.linux.inside` and reports each case as one line; everything goes through one serial port.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import shlex
import sys
import sysconfig
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Any

from tools.lab.cache import cache_folder
from tools.lab.deadlines import MS_PER_S, within
from tools.lab.errors import DeadlineError, EmulatorStalledError, LabError
from tools.lab.linux.cpio import Entry, archive
from tools.lab.linux.initramfs import boot_files, guest_initramfs
from tools.lab.linux.inside import NEWS_PREFIX, REPORT_PREFIX
from tools.lab.linux.kernels import Kernel
from tools.lab.linux.pythonbox import PROJECT, SITE, interpreter, project_files, python_files
from tools.lab.linux.vmlinux import vmlinux
from tools.lab.procfs import cpu_time_us

_PROJECT_ROOT = Path(__file__).parents[3]
L1_RAM_MIB = 3072
# With two, the emulator (QEMU 10.0, a thread for each) loses interrupts between them and delivers
# others while GIF is 0: L1's own kernel hangs, or crashes where VMRUN returns. Its guests may have
# as many vCPUs as they like.
L1_CPUS = 1
L1_MODULES = ("kvm_amd", "tun")
# From the start of QEMU to the first line of the lab in L1; some 10 s on a quiet machine.
L1_BOOT_MS = 180_000
CASE_MS = 240_000
# A machine with Linux in it has a timer every second or so, and more when something runs there. One
# that takes no processor time for as long as this has lost a timer interrupt, in the emulator.
STALL_MS = 30_000
STALL_CPU_US = 1_000
LINE_MAX_BYTES = 1 << 20
_TAIL_LINES = 30
_COMMAND_LINE = (
    "console=ttyS0 quiet panic=-1 nokaslr mitigations=off tsc=reliable random.trust_cpu=1"
)
_INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /dev /proc /sys /tmp /run /root
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
for module in $(/bin/busybox cat /modules/order); do /bin/busybox insmod "/modules/$module"; done
/bin/busybox ip link set lo up
/bin/busybox dmesg -n 1
echo always >/sys/kernel/mm/transparent_hugepage/shmem_enabled
export PATH=/bin HOME=/root TMPDIR=/tmp PYTHONPATH=/{project}:/{site}
{python} -m tools.lab.linux.inside </cases.json 2>&1
/bin/busybox poweroff -f
"""


@dataclass(frozen=True, slots=True)
class RigPlan:
    """What L1 is made of, and the cases (JSON values, see inside.py) that it runs."""

    qemu: Path
    l1_kernel: Kernel
    guests: tuple[Kernel, ...]
    cases: tuple[dict[str, Any], ...]


class Rig:
    """A process that runs cases, in L1 or on this machine (not `emulated`), read line by line."""

    def __init__(self, process: asyncio.subprocess.Process, *, emulated: bool) -> None:
        self._process = process
        self._emulated = emulated
        self._tail: list[str] = []

    async def next_report(
        self, deadline_ms: int = CASE_MS, tell: Callable[[str], object] | None = None
    ) -> dict[str, Any]:
        """The next report of a case.

        Raises LabError when the process ends, DeadlineError, EmulatorStalledError.

        `tell` hears of every update as it comes.
        """
        try:
            return await within(deadline_ms, "rig: a report", self._read(tell))
        except DeadlineError as error:
            raise DeadlineError(f"{error}; {self._last_lines()}") from error

    async def _read(self, tell: Callable[[str], object] | None) -> dict[str, Any]:
        while line := (await self._next_line()).decode(errors="replace"):
            start = line.find(REPORT_PREFIX)
            if start >= 0:
                report: dict[str, Any] = json.loads(line[start + len(REPORT_PREFIX) :])
                return report
            news = line.find(NEWS_PREFIX)
            if news >= 0 and tell is not None:
                tell(line[news + len(NEWS_PREFIX) :].rstrip())
            self._tail = [*self._tail[-_TAIL_LINES:], line.rstrip()]
        name = "L1" if self._emulated else "the lab's process"
        raise LabError(f"rig: {name} ended before the report; {self._last_lines()}")

    async def _next_line(self) -> bytes:
        assert self._process.stdout is not None
        if not self._emulated:  # it may wait as long as it likes
            return await self._process.stdout.readline()
        reading = asyncio.ensure_future(self._process.stdout.readline())
        try:
            while True:
                before_us = self._cpu_time_us()
                done, _ = await asyncio.wait({reading}, timeout=STALL_MS / MS_PER_S)
                if done:
                    return reading.result()
                if self._cpu_time_us() - before_us < STALL_CPU_US:
                    raise EmulatorStalledError(
                        f"rig: L1's emulator took no processor time for {STALL_MS} ms: it lost an "
                        f"interrupt (ARCHITECTURE.md); {self._last_lines()}"
                    )
        finally:
            reading.cancel()

    def _cpu_time_us(self) -> float:
        try:
            return cpu_time_us(self._process.pid)
        except ProcessLookupError:  # its last line is on its way
            return math.inf

    def _last_lines(self) -> str:
        return "its last lines:\n" + "\n".join(self._tail)


@asynccontextmanager
async def running_rig(plan: RigPlan) -> AsyncIterator[Rig]:
    """Boot L1; QEMU has ended when the context is left. Raises LabError."""
    with TemporaryDirectory(prefix="cpr-rig-") as folder:
        kernel, initrd = Path(folder) / "vmlinux", Path(folder) / "initrd"
        kernel.write_bytes(vmlinux(plan.l1_kernel))
        initrd.write_bytes(b"".join(_segments(plan)))
        process = await asyncio.create_subprocess_exec(
            *_qemu_argv(plan.qemu, kernel, initrd),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=LINE_MAX_BYTES,
        )
        try:
            yield Rig(process, emulated=True)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


def _qemu_argv(qemu: Path, kernel: Path, initrd: Path) -> Sequence[str]:
    return (
        str(qemu),
        *("-M", "q35,hpet=off,smbus=off,sata=off", "-accel", "tcg,thread=multi,tb-size=512"),
        *("-cpu", "EPYC,+svm", "-smp", str(L1_CPUS), "-m", str(L1_RAM_MIB)),
        *("-nodefaults", "-no-user-config", "-nographic", "-no-reboot"),
        *("-serial", "stdio", "-net", "none"),
        *("-kernel", str(kernel), "-initrd", str(initrd), "-append", _COMMAND_LINE),
    )


def _segments(plan: RigPlan) -> list[bytes]:
    """The parts of L1's initramfs: what changes last comes last and is built each time."""
    guests = [_cached(f"guest-{k.version}", _guest_stamp(k), guest_files(k)) for k in plan.guests]
    return [_cached("python", _python_stamp(), python_files), *guests, archive(_l1_files(plan))]


def _l1_files(plan: RigPlan) -> list[Entry]:
    """L1's own init, the checkout and the cases."""
    init = _INIT.format(project=PROJECT, site=SITE, python=shlex.quote(interpreter()))
    return [
        *boot_files(plan.l1_kernel, L1_MODULES, init.encode()),
        Entry.link("bin/sh", "busybox"),
        *project_files(_PROJECT_ROOT),
        Entry.file("cases.json", json.dumps(plan.cases).encode()),
    ]


def guest_files(kernel: Kernel) -> Callable[[], Iterable[Entry]]:
    """A guest's kernel in both forms, and its initramfs, under guests/VERSION."""

    def files() -> Iterable[Entry]:
        folder = f"guests/{kernel.version}"
        yield Entry.file(f"{folder}/bzImage", kernel.image.read_bytes())
        if "vmlinux" in kernel.forms:
            yield Entry.file(f"{folder}/vmlinux", vmlinux(kernel))
        yield Entry.file(f"{folder}/initrd", guest_initramfs(kernel))

    return files


def _python_stamp() -> str:
    """Changes with the interpreter and with any installed package."""
    site = Path(sysconfig.get_path("purelib"))
    packages = sorted(path.name for path in site.glob("*.dist-info"))
    return _digest(sys.version, interpreter(), *packages, _text_of("pythonbox.py"))


def _guest_stamp(kernel: Kernel) -> str:
    """Changes with the kernel, with an initramfs of the user's, and with the sources of ours."""
    names = ("guest/init", "guest/agent.c", "initramfs.py")
    files = [path for path in (kernel.image, kernel.initrd) if path is not None]
    times = (f"{path.resolve()} {path.stat().st_mtime_ns}" for path in files)
    return _digest(*(_text_of(name) for name in names), *times, *kernel.forms)


def _text_of(name: str) -> str:
    return resources.files("tools.lab.linux").joinpath(name).read_text()


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def _cached(name: str, stamp: str, entries: Callable[[], Iterable[Entry]]) -> bytes:
    """The archive of this name and stamp; an older one of the same name is replaced."""
    folder = cache_folder() / "rig"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{stamp}.cpio"
    if path.exists():
        return path.read_bytes()
    content = archive(entries())
    for old in folder.glob(f"{name}-*.cpio"):
        old.unlink(missing_ok=True)
    with NamedTemporaryFile(dir=folder, delete=False) as file:
        file.write(content)
    Path(file.name).rename(path)  # whole or not at all
    return content
