"""One process that measures an accelerator alone, without a VMM around it.

    python -m tools.lab.bench.accel_side ACCEL KICKS EXITS   -> one line of JSON on stdout

`kick_us`: from the kick to the return of `Vcpu.run`, of a guest that computes and never exits by
itself. `exits_per_s`: a guest that reads a port in a loop, over EXITS_RUNS runs.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from guestram.layout import RamBlock, pc_layout
from guestram.memfd import MemfdOptions, RamMemfd
from guestram.ram import GuestRam
from tools.lab.floor_side import GIL_SWITCH_INTERVAL_S
from vmm.accel import open_accel
from vmm.accel.base import MappedSlot, StopReason, Vcpu, VcpuStop, VmOptions
from vmm.accel.kick import install_kick_handler
from vmm.accel.x86_state import CpuState
from vmm.boot.image import plan_boot
from vmm.config import AccelOptions, VmmConfig

RAM_BYTES = 16 << 20
EXITS_RUNS = 10
DEADLINE_S = 10.0
# in eax, 0x80 in a loop
EXITING_GUEST = bytes.fromhex("e5 80 eb fc")
# in eax, 0x80 once, to say that it runs; then inc rax in a loop
COMPUTING_GUEST = bytes.fromhex("e5 80 48 ff c0 eb fb")
_NS_PER_S = 1_000_000_000
_NS_PER_US = 1000


class CountingBus:
    """Kicks the vCPU at the last access, so that a run ends by itself; or tells who waits."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self._left = 0
        self._vcpu: Vcpu | None = None

    def stop_after(self, reads: int, vcpu: Vcpu) -> None:
        """Stop `vcpu` at its read number `reads`."""
        self._left, self._vcpu = reads, vcpu

    def pio_read(self, _port: int, _size: int) -> int:
        """Count."""
        self._left -= 1
        if self._left == 0 and self._vcpu is not None:
            self._vcpu.kick()
        elif self._left < 0:
            self.entered.release()
        return 0

    def pio_write(self, port: int, size: int, value: int) -> None:
        """Never used by these guests."""

    def mmio_read(self, _addr: int, size: int) -> int:
        """As of memory that is not there."""
        return (1 << 8 * size) - 1

    def mmio_write(self, addr: int, size: int, value: int) -> None:
        """Never used by these guests."""


class Runner:
    """A thread that runs the vCPU whenever it is told to, and notes when it came back."""

    def __init__(self, vcpu: Vcpu, bus: CountingBus) -> None:
        self.go, self.back = threading.Semaphore(0), threading.Semaphore(0)
        self.back_ns = 0
        self.stop: VcpuStop | None = None
        self._vcpu, self._bus = vcpu, bus
        threading.Thread(target=self._main, daemon=True).start()

    def _main(self) -> None:
        while True:
            self.go.acquire()
            self.stop = self._vcpu.run(self._bus)
            self.back_ns = time.monotonic_ns()
            self.back.release()


def kick_latencies_us(vcpu: Vcpu, bus: CountingBus, start: CpuState, count: int) -> list[float]:
    """Time `count` kicks. Raises TimeoutError when the guest does not run or does not stop."""
    runner = Runner(vcpu, bus)
    latencies = []
    for _ in range(count):
        vcpu.load(start)
        vcpu.clear_kick()
        runner.go.release()
        wait(bus.entered, "the guest's first access")
        kicked_ns = time.monotonic_ns()
        vcpu.kick()
        wait(runner.back, "the return of a kicked vCPU")
        must_be_kicked(runner.stop)
        latencies.append((runner.back_ns - kicked_ns) / _NS_PER_US)
    return latencies


def exits_per_s(vcpu: Vcpu, bus: CountingBus, start: CpuState, count: int) -> list[float]:
    """Time EXITS_RUNS runs of `count` exits together."""
    rates = []
    each = max(1, count // EXITS_RUNS)
    for _ in range(EXITS_RUNS):
        vcpu.load(start)
        vcpu.clear_kick()
        bus.stop_after(each, vcpu)
        began_ns = time.monotonic_ns()
        must_be_kicked(vcpu.run(bus))
        rates.append(each * _NS_PER_S / (time.monotonic_ns() - began_ns))
    bus.stop_after(0, vcpu)
    return rates


def must_be_kicked(stop: VcpuStop | None) -> None:
    """RuntimeError when the guest stopped for any other reason: the figure would mean nothing."""
    if stop is None or stop.reason is not StopReason.KICKED:
        raise RuntimeError(f"the vCPU should have been kicked, but stopped with {stop}")


def wait(event: threading.Semaphore, what: str) -> None:
    """Wait for `event`; TimeoutError names `what`."""
    if not event.acquire(timeout=DEADLINE_S):
        raise TimeoutError(f"{what} did not come within {DEADLINE_S:g} s")


def guest_start(ram: GuestRam, vcpu: Vcpu, code: bytes) -> CpuState:
    """Put a flat binary into RAM, and return the state in which it starts."""
    with tempfile.NamedTemporaryFile() as image:
        image.write(code)
        image.flush()
        plan = plan_boot(VmmConfig(memory_size_bytes=RAM_BYTES, kernel=Path(image.name)))
    plan.write_to(ram)
    reset = vcpu.save()
    return plan.cpu_state(0, reset) or reset


def main(argv: Sequence[str]) -> None:
    """Measure and print."""
    accel_name, kicks, exits = argv[0], int(argv[1]), int(argv[2])
    sys.setswitchinterval(GIL_SWITCH_INTERVAL_S)
    install_kick_handler()
    memfd = RamMemfd.create("ram0", MemfdOptions(size_bytes=RAM_BYTES))
    accel, _skipped = open_accel([AccelOptions(accel_name)])
    with GuestRam(pc_layout([RamBlock("ram0", RAM_BYTES)]), {"ram0": memfd}) as ram:
        slots = [MappedSlot(p.guest_start, p.size_bytes, p.host_address) for p in ram.ranges]
        figures = {}
        for name, code, measure, count in (
            ("exits_per_s", EXITING_GUEST, exits_per_s, exits),
            ("kick_us", COMPUTING_GUEST, kick_latencies_us, kicks),
        ):
            vm = accel.create_vm(VmOptions(vcpu_count=1))
            vm.map_ram(slots)
            vcpu = vm.vcpus[0]
            figures[name] = measure(vcpu, CountingBus(), guest_start(ram, vcpu, code), count)
            vm.close()
    accel.close()
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1:])
