"""One of the two bare processes of the floor (see `tools.lab.floor`, which starts it).

The thread of vCPU 0 does the whole hand-over: it leaves the guest, waits for the other vCPUs, reads
every state, sends one CBOR message, and blocks until the guest comes back. Nothing has to be woken
for that but the peer. The main thread only listens for orders, one byte each:

    from the parent   ORDER_RUN once, ORDER_HAND_OVER whenever this side has the guest
    to the parent     READY; PROGRESS of each vCPU that has run for PROGRESS_NS

At the end of file the parent is done or gone, and so is this process.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import struct
import sys
import threading
from collections.abc import Sequence

import cbor2
import prctl

from guestram.layout import RamBlock, pc_layout
from guestram.memfd import MemfdIdentity, MemfdOptions, RamMemfd
from guestram.ram import GuestRam
from tools.lab.floor_cpu import bare_cpu
from vmm.accel import open_accel
from vmm.accel.base import GuestVm, MappedSlot, StopReason, Vcpu, VmOptions
from vmm.accel.kick import install_kick_handler
from vmm.boot.image import plan_boot
from vmm.config import AccelOptions, VmmConfig
from vmm.devices.bus import SystemBus
from vmm.devices.clock import Clock

BLOCK_ID = "ram0"
# As the VMM's (vmm.command), which would import all of it.
GIL_SWITCH_INTERVAL_S = 0.000_02
TIMER_SLACK_NS = 1_000
READY = b"r"
PROGRESS = struct.Struct("=QQ")  # a vCPU's last clock reading there and its first one here, ns
ORDER_RUN, ORDER_HAND_OVER = b"g", b"h"
STATE_SIZE_MAX_BYTES = 1 << 20  # one datagram; a vCPU's state has some 3 KiB
# Between two hand-overs the guest does some fifty pages of work of its own, and no more: a process
# that stood by for longer finds its caches cold, and the floor is of warm ones. (Ours goes through
# its rehearsal a few milliseconds before the stop.)
PROGRESS_NS = 5_000_000
NEVER_NS = 1 << 63


class PacedClock(Clock):
    """The VMM's clock, which also tells the parent what each vCPU felt and that it goes on.

    The guest measures a gap from one of its readings to the next. Both readings of a hand-over's
    gap pass through here, so they are known exactly, even where the guest's report has no room for
    them beside a longer gap of a busy machine.
    """

    def __init__(self, vcpu_count: int, orders: socket.socket) -> None:
        super().__init__(vcpu_count)
        self._orders = orders
        self._due_ns = [NEVER_NS] * vcpu_count
        self._gaps = [(0, 0)] * vcpu_count

    @property
    def latched_ns(self) -> list[int]:
        """The device's state: without it a guest between its two reads would see a wrong time."""
        return self._latched

    @latched_ns.setter
    def latched_ns(self, values: list[int]) -> None:
        self._latched = values

    def expect_progress(self) -> None:
        """Begin anew with each vCPU's next reading."""
        self._due_ns = [0] * len(self._due_ns)

    def port_read(self, offset: int, size: int) -> int:
        """As the VMM's."""
        vcpu = offset >> 3
        before_ns = self._latched[vcpu]
        value = super().port_read(offset, size)
        now_ns = self._latched[vcpu]
        if now_ns > before_ns and now_ns > self._due_ns[vcpu]:
            if not self._due_ns[vcpu]:
                self._gaps[vcpu] = (before_ns, now_ns)
                self._due_ns[vcpu] = now_ns + PROGRESS_NS
            else:
                self._due_ns[vcpu] = NEVER_NS
                self._orders.send(PROGRESS.pack(*self._gaps[vcpu]))
        return value


class Side:
    """The guest in this process: there or not."""

    def __init__(
        self, vm: GuestVm, bus: SystemBus, clock: PacedClock, handover: socket.socket
    ) -> None:
        self._vm = vm
        self._bus = bus
        self._clock = clock
        self._handover = handover
        self._cpus = tuple(bare_cpu(vcpu) for vcpu in vm.vcpus)
        self._others = tuple(OtherVcpu(vcpu, bus) for vcpu in vm.vcpus[1:])

    def start(self, *, has_guest: bool) -> None:
        """Run vCPU 0's thread."""
        threading.Thread(target=self._main, args=(has_guest,), daemon=True).start()

    def kick(self) -> None:
        """Make every vCPU leave the guest."""
        for vcpu in self._vm.vcpus:
            vcpu.kick()

    def _main(self, has_guest: bool) -> None:
        try:
            if has_guest:
                self._run()
            while True:
                self._receive()
                self._run()
        except Exception:
            sys.excepthook(*sys.exc_info())
            os._exit(1)

    def _run(self) -> None:
        """Run the guest until the kick, and give it away."""
        self._clock.expect_progress()
        for vcpu in self._vm.vcpus:
            vcpu.clear_kick()
        for other in self._others:
            other.go.release()
        run_until_kicked(self._vm.vcpus[0], self._bus)
        for other in self._others:
            other.parked.acquire()
        cpus = [cpu.read() for cpu in self._cpus]
        self._handover.send(cbor2.dumps([self._clock.latched_ns, *cpus]))

    def _receive(self) -> None:
        self._clock.latched_ns, *cpus = cbor2.loads(self._handover.recv(STATE_SIZE_MAX_BYTES))
        for cpu, fields in zip(self._cpus, cpus, strict=True):
            cpu.write(fields)


class OtherVcpu:
    """A vCPU beside the first; runs when told to."""

    def __init__(self, vcpu: Vcpu, bus: SystemBus) -> None:
        self.go, self.parked = threading.Semaphore(0), threading.Semaphore(0)
        self._vcpu, self._bus = vcpu, bus
        threading.Thread(target=self._main, daemon=True).start()

    def _main(self) -> None:
        while True:
            self.go.acquire()
            run_until_kicked(self._vcpu, self._bus)
            self.parked.release()


def run_until_kicked(vcpu: Vcpu, bus: SystemBus) -> None:
    """Run the guest; ends the process when anything but a kick stops it."""
    stop = vcpu.run(bus)
    if stop.reason is not StopReason.KICKED:
        print(f"floor: vCPU {vcpu.index} stopped: {stop}", file=sys.stderr, flush=True)
        os._exit(1)


def main(argv: Sequence[str]) -> None:
    """Serve orders until the parent hangs up."""
    order = json.loads(argv[0])
    orders = socket.socket(fileno=order["orders_fd"])
    handover = socket.socket(fileno=order["handover_fd"])
    config = VmmConfig(
        accels=(AccelOptions(order["accel"]),),
        memory_size_bytes=order["ram_bytes"],
        vcpu_count=order["vcpu_count"],
        append=order["append"],
    )
    prctl.set_timerslack(TIMER_SLACK_NS)
    sys.setswitchinterval(GIL_SWITCH_INTERVAL_S)
    install_kick_handler()
    memfd = RamMemfd.adopt(
        order["ram_fd"],
        BLOCK_ID,
        MemfdOptions(size_bytes=config.memory_size_bytes),
        MemfdIdentity.from_map(order["ram_identity"]),
    )
    ram = GuestRam(pc_layout([RamBlock(BLOCK_ID, config.memory_size_bytes)]), {BLOCK_ID: memfd})
    accel, _skipped = open_accel(config.accels)
    vm = accel.create_vm(VmOptions(vcpu_count=config.vcpu_count))
    vm.map_ram(
        [MappedSlot(part.guest_start, part.size_bytes, part.host_address) for part in ram.ranges]
    )
    bus, clock = SystemBus(), PacedClock(config.vcpu_count, orders)
    bus.attach(clock)
    if order["has_guest"]:
        boot(config, ram, vm)
    side = Side(vm, bus, clock, handover)
    gc.collect()
    gc.freeze()
    gc.disable()
    orders.send(READY)
    while word := orders.recv(1):
        if word == ORDER_RUN:
            side.start(has_guest=order["has_guest"])
        else:
            side.kick()
    os._exit(0)  # the parent has hung up; the kernel takes everything back


def boot(config: VmmConfig, ram: GuestRam, vm: GuestVm) -> None:
    """Put the built-in guest into RAM and the vCPUs at its start."""
    plan = plan_boot(config)
    plan.write_to(ram)
    for vcpu in vm.vcpus:
        reset = vcpu.save()
        vcpu.load(plan.cpu_state(vcpu.index, reset) or reset)


if __name__ == "__main__":
    main(sys.argv[1:])
