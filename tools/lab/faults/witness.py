"""What a guest itself can say of a fault: that it went on, and that nothing of it is wrong."""

from __future__ import annotations

from typing import Protocol

from tools.lab.errors import CheckFailedError
from tools.lab.heartbeat import HeartbeatReader
from tools.lab.process import VmmProcess
from tools.lab.procfs import find_memfd, memfd_identity
from tools.lab.ramview import RamView
from vmm.boot.guest.report import sequence_problems, verify_stamps

HEARTBEATS = 5  # more than can be under way in the socket when the guest stops


class Witness(Protocol):
    """A guest, seen from the lab."""

    def progress(self) -> int:
        """A number that grows as long as the guest runs."""
        ...

    async def check(self, owner: VmmProcess) -> None:
        """Raise CheckFailedError when the guest in `owner` is not as it was; it runs afterwards."""
        ...


class StampingGuest:
    """The built-in guest: its report and its stamps in RAM, and its heartbeats."""

    def __init__(self, ram: RamView, serial: HeartbeatReader) -> None:
        self._ram = ram
        self._serial = serial

    def progress(self) -> int:
        """Its sequence number."""
        return self._ram.report().sequence

    async def check(self, owner: VmmProcess) -> None:
        """It speaks, in order, its RAM is where and what it was, and its clock goes forward."""
        await self._serial.wait_lines(HEARTBEATS)
        problems = list(self._serial.problems)
        identity = memfd_identity(find_memfd(owner.pid, self._ram.ram_bytes))
        if identity != self._ram.identity:
            problems.append(f"RAM is inode {identity.ino}, it was {self._ram.identity.ino}")
        await owner.execute("stop")
        report = self._ram.report()
        problems += sequence_problems(report)
        problems += verify_stamps(self._ram.read, report, self._ram.ram_bytes)
        problems += [
            f"vCPU {vcpu.vcpu}: {vcpu.errors} wrong stamps, clock back {vcpu.clock_backwards} "
            f"times, booted {vcpu.boots} times"
            for vcpu in report.vcpus
            if vcpu.errors or vcpu.clock_backwards or vcpu.boots != 1
        ]
        await owner.execute("cont")
        if problems:
            raise CheckFailedError("; ".join(problems))
