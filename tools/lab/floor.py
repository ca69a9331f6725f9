"""The floor: the smallest honest hand-over of the same guest on this machine.

Two bare processes that do nothing else. Both have RAM mapped, VM and vCPUs made, memory slots
registered, every path warmed by hand-overs that are not counted. A hand-over is: kick, read the CPU
state, one CBOR message over one blocking socket, set it, run. No acknowledgement, no event loop, no
checks, no device state, no lease: what a live update must cost at least here, and nothing it needs to
be safe. The guest runs in turn in either process, so every hand-over is warm.

What the guest felt is read from its own report page, as for the real thing.

    python -m tools.lab.floor ACCEL MEM_BYTES PAGES VCPUS COUNT   -> one line of JSON, blackouts in ns
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import multiprocessing.connection
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cbor2

from guestram.layout import RamBlock, pc_layout
from guestram.memfd import MemfdIdentity, MemfdOptions, RamMemfd
from guestram.ram import GuestRam
from tools.lab.errors import LabError
from vmm.accel import open_accel
from vmm.accel.base import GuestVm, IoBus, MappedSlot, StopReason, VmOptions
from vmm.accel.kick import install_kick_handler
from vmm.accel.x86_state import CpuState
from vmm.boot.guest.report import REPORT_ADDRESS, GuestReport, parse, report_size_bytes
from vmm.boot.image import plan_boot
from vmm.config import AccelOptions, VmmConfig
from vmm.devices.bus import SystemBus
from vmm.devices.clock import Clock

BLOCK_ID = "ram0"
SIDE_DEADLINE_S = 60.0
WARM_UP_HANDOVERS = 6
# How far the guest must get between hand-overs, so that each one interrupts real work.
PROGRESS_STAMPS = 200
_MESSAGE_SIZE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class FloorSetup:
    """The same guest as the VMM's: built-in, `pages` working pages (0 = all of RAM)."""

    accel: str
    memory_bytes: int
    pages: int
    vcpus: int

    def config(self) -> VmmConfig:
        """As the VMM would be configured."""
        return VmmConfig(
            accels=(AccelOptions(self.accel),),
            memory_size_bytes=self.memory_bytes,
            vcpu_count=self.vcpus,
            append=f"pages={self.pages} heartbeat_ms=0",
        )


def measure_floor(setup: FloorSetup, count: int) -> list[int]:
    """Blackouts in ns of `count` hand-overs, as the guest felt them. Raises LabError."""
    options = MemfdOptions(size_bytes=setup.memory_bytes)
    with RamMemfd.create(BLOCK_ID, options) as memfd:
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with left, right:
            sides = _spawn(setup, memfd, (left, right))
        with _map(setup, memfd) as ram:
            try:
                return _hand_over_repeatedly(sides, ram, setup, count)
            finally:
                for side in sides:
                    side.end()


@dataclass(slots=True)
class _Side:
    """One bare process and the pipe that tells it to hand over."""

    process: multiprocessing.process.BaseProcess
    orders: multiprocessing.connection.Connection

    def wait(self, word: str) -> None:
        if not self.orders.poll(SIDE_DEADLINE_S):
            raise LabError(f"floor: no '{word}' within {SIDE_DEADLINE_S:.0f} s")
        got = self.orders.recv()
        if got != word:
            raise LabError(f"floor: expected '{word}', got {got!r}")

    def end(self) -> None:
        self.process.kill()
        self.process.join(SIDE_DEADLINE_S)
        self.process.close()
        self.orders.close()


def _spawn(
    setup: FloorSetup, memfd: RamMemfd, sockets: Sequence[socket.socket]
) -> tuple[_Side, _Side]:
    context = multiprocessing.get_context("fork")
    sides = []
    for index, sock in enumerate(sockets):
        here, there = context.Pipe()
        process = context.Process(
            target=_side_main, args=(setup, memfd.fileno(), sock, there, index == 0), daemon=True
        )
        process.start()
        there.close()
        sides.append(_Side(process, here))
    for side in sides:
        side.wait("ready")
    return sides[0], sides[1]


def _hand_over_repeatedly(
    sides: tuple[_Side, _Side], ram: GuestRam, setup: FloorSetup, count: int
) -> list[int]:
    sides[0].orders.send("start")
    _wait_for_progress(ram, setup, 0)
    blackouts = []
    for number in range(WARM_UP_HANDOVERS + count):
        began_ns = time.monotonic_ns()
        sequence = _report(ram, setup).sequence
        sides[number % 2].orders.send("hand over")
        sides[1 - number % 2].wait("running")
        report = _wait_for_progress(ram, setup, sequence)
        if number >= WARM_UP_HANDOVERS:
            gap = report.longest_gap(began_ns, time.monotonic_ns())
            if gap is None:
                raise LabError("floor: the guest noted no gap")
            blackouts.append(gap.length_ns)
    return blackouts


def _wait_for_progress(ram: GuestRam, setup: FloorSetup, since: int) -> GuestReport:
    """Watch RAM until every vCPU has gone on: a measuring instrument, so it may look repeatedly."""
    deadline = time.monotonic() + SIDE_DEADLINE_S
    while time.monotonic() < deadline:
        time.sleep(0.005)  # tidy: an outside observer of RAM has no event to wait for
        try:
            report = _report(ram, setup)
        except Exception:
            continue
        if report.sequence >= since + PROGRESS_STAMPS * setup.vcpus:
            return report
    raise LabError(f"floor: the guest made no progress within {SIDE_DEADLINE_S:.0f} s")


def _report(ram: GuestRam, setup: FloorSetup) -> GuestReport:
    return parse(ram.read(REPORT_ADDRESS, report_size_bytes(setup.vcpus)))


def _map(setup: FloorSetup, memfd: RamMemfd) -> GuestRam:
    import os

    copy = RamMemfd.adopt(os.dup(memfd.fileno()), BLOCK_ID, memfd.options, memfd.identity())
    return GuestRam(pc_layout([RamBlock(BLOCK_ID, setup.memory_bytes)]), {BLOCK_ID: copy})
