"""A virtio driver for tests: it owns the guest's RAM, sets a device up and posts chains.

Everything goes through registers and RAM, as a guest's driver would do it, and nothing is checked
here: a test may write any nonsense into a ring.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

from guestram.ram import MappedRange
from vmm.devices.virtio import mmio
from vmm.devices.virtio.chain import DESC_INDIRECT, DESC_NEXT, DESC_WRITE
from vmm.devices.virtio.device import VirtioDevice
from vmm.devices.virtio.features import VERSION_1
from vmm.devices.virtio.memory import GuestMemory

RED_ZONE = 4096
RED = 0xA5
DESC = struct.Struct("<QIHH")
ACKNOWLEDGED, FEATURES_OK, DRIVER_OK = 3, 11, 15


class FakeRam:
    """Guest RAM between two red zones: ranges at 0x1000 and, with `high`, behind a hole."""

    def __init__(self, size_bytes: int = 1 << 20, *, high: int = 0) -> None:
        self.start = 0x1000
        self.size = size_bytes
        self._high = high
        self._host = (ctypes.c_ubyte * (2 * RED_ZONE + size_bytes + high))()
        ctypes.memset(self._host, RED, RED_ZONE)
        ctypes.memset(ctypes.addressof(self._host) + RED_ZONE + size_bytes + high, RED, RED_ZONE)
        self.bytes = memoryview(self._host).cast("B")[RED_ZONE : RED_ZONE + size_bytes]

    def memory(self) -> GuestMemory:
        """A new view of it, as each process has its own."""
        host = ctypes.addressof(self._host) + RED_ZONE
        ranges = [MappedRange(self.start, self.size, host)]
        if self._high:
            ranges.append(MappedRange(1 << 32, self._high, host + self.size))
        return GuestMemory(ranges)

    def write(self, gpa: int, data: bytes) -> None:
        self.bytes[gpa - self.start : gpa - self.start + len(data)] = data

    def read(self, gpa: int, size: int) -> bytes:
        return bytes(self.bytes[gpa - self.start : gpa - self.start + size])

    def red_zones_are_intact(self) -> bool:
        whole = memoryview(self._host).cast("B")
        zone = bytes([RED]) * RED_ZONE
        return bytes(whole[:RED_ZONE]) == zone and bytes(whole[-RED_ZONE:]) == zone


class Buffer(NamedTuple):
    """One descriptor."""

    gpa: int
    size: int
    device_writes: bool = False


class Used(NamedTuple):
    """One entry of the used ring."""

    head: int
    written: int


class Line:
    """An interrupt line that remembers."""

    def __init__(self) -> None:
        self.level = False
        self.rises = 0

    def __call__(self, level: bool) -> None:
        self.rises += level and not self.level
        self.level = level


class Deferred:
    """Stands for the loop: runs deferred functions when told to."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def __call__(self, function: Callable[[], None]) -> None:
        self.waiting.append(function)

    def run(self) -> int:
        """Run what waits now; returns how many."""
        ready, self.waiting = self.waiting, []
        for function in ready:
            function()
        return len(ready)


class QueueDriver:
    """The driver's side of one split virtqueue at a fixed place in RAM."""

    def __init__(self, ram: FakeRam, index: int, size: int, base: int) -> None:
        self.ram, self.index, self.size = ram, index, size
        self.desc = base
        self.avail = base + 16 * size
        self.used = (self.avail + 6 + 2 * size + 3) & ~3
        self.end = self.used + 8 + 8 * size
        self.next_desc = 0
        self.seen_used = 0

    def put_desc(self, index: int, gpa: int, size: int, flags: int, following: int) -> None:
        self.ram.write(self.desc + 16 * index, DESC.pack(gpa, size, flags, following))

    def u16(self, gpa: int) -> int:
        return int.from_bytes(self.ram.read(gpa, 2), "little")

    def put_u16(self, gpa: int, value: int) -> None:
        self.ram.write(gpa, (value & 0xFFFF).to_bytes(2, "little"))

    @property
    def avail_idx(self) -> int:
        return self.u16(self.avail + 2)

    @property
    def used_idx(self) -> int:
        return self.u16(self.used + 2)

    @property
    def avail_event(self) -> int:
        return self.u16(self.used + 4 + 8 * self.size)

    def set_used_event(self, value: int) -> None:
        self.put_u16(self.avail + 4 + 2 * self.size, value)

    def add(self, *buffers: Buffer) -> int:
        """Post one chain; returns its head. Descriptors are taken round robin."""
        head = self.next_desc % self.size
        for number, buffer in enumerate(buffers):
            index = self.next_desc % self.size
            self.next_desc += 1
            last = number == len(buffers) - 1
            flags = (DESC_WRITE if buffer.device_writes else 0) | (0 if last else DESC_NEXT)
            self.put_desc(index, buffer.gpa, buffer.size, flags, self.next_desc % self.size)
        self.offer(head)
        return head

    def add_indirect(self, table_gpa: int, buffers: Sequence[Buffer]) -> int:
        """Post one chain through an indirect table at `table_gpa`."""
        for number, buffer in enumerate(buffers):
            last = number == len(buffers) - 1
            flags = (DESC_WRITE if buffer.device_writes else 0) | (0 if last else DESC_NEXT)
            entry = DESC.pack(buffer.gpa, buffer.size, flags, 0 if last else number + 1)
            self.ram.write(table_gpa + 16 * number, entry)
        head = self.next_desc % self.size
        self.next_desc += 1
        self.put_desc(head, table_gpa, 16 * len(buffers), DESC_INDIRECT, 0)
        self.offer(head)
        return head

    def offer(self, head: int) -> None:
        index = self.avail_idx
        self.put_u16(self.avail + 4 + 2 * (index % self.size), head)
        self.put_u16(self.avail + 2, index + 1)

    def reap(self) -> list[Used]:
        """What the device published since the last call."""
        found = []
        while self.seen_used != self.used_idx:
            at = self.used + 4 + 8 * (self.seen_used % self.size)
            found.append(Used(*struct.unpack("<II", self.ram.read(at, 8))))
            self.seen_used = (self.seen_used + 1) & 0xFFFF
        return found


class Driver:
    """Sets one device up through its register page."""

    def __init__(self, ram: FakeRam, device: VirtioDevice, line: Line, loop: Deferred) -> None:
        self.ram, self.device, self.line, self.loop = ram, device, line, loop
        self.queues: list[QueueDriver] = []
        self.free = ram.start

    def read(self, offset: int, size: int = 4) -> int:
        return self.device.mmio_read(offset, size)

    def write(self, offset: int, value: int) -> None:
        self.device.mmio_write(offset, 4, value)

    def offered(self) -> int:
        features = 0
        for half in range(2):
            self.write(mmio.DEVICE_FEATURES_SEL, half)
            features |= self.read(mmio.DEVICE_FEATURES) << 32 * half
        return features

    def negotiate(self, features: int) -> bool:
        """Steps 1 to 6 of 3.1.1; True if the device took the features."""
        self.write(mmio.STATUS, 0)
        self.write(mmio.STATUS, ACKNOWLEDGED)
        for half in range(2):
            self.write(mmio.DRIVER_FEATURES_SEL, half)
            self.write(mmio.DRIVER_FEATURES, features >> 32 * half & 0xFFFF_FFFF)
        self.write(mmio.STATUS, FEATURES_OK)
        return self.read(mmio.STATUS) == FEATURES_OK

    def set_up_queue(self, index: int, size: int) -> QueueDriver:
        queue = QueueDriver(self.ram, index, size, self.take(16 * size + 10 * size + 32, 4096))
        self.write(mmio.QUEUE_SEL, index)
        self.write(mmio.QUEUE_NUM, size)
        for register, gpa in (
            (mmio.QUEUE_DESC_LOW, queue.desc),
            (mmio.QUEUE_DRIVER_LOW, queue.avail),
            (mmio.QUEUE_DEVICE_LOW, queue.used),
        ):
            self.write(register, gpa & 0xFFFF_FFFF)
            self.write(register + 4, gpa >> 32)
        self.write(mmio.QUEUE_READY, 1)
        self.queues.append(queue)
        return queue

    def set_up(self, features: int = VERSION_1, size: int = 16) -> list[QueueDriver]:
        """All of 3.1.1, with every queue the device has."""
        assert self.negotiate(features)
        self.queues = []
        for index in range(len(self.device.queues)):
            self.set_up_queue(index, min(size, self.device.queues[index].size_max))
        self.write(mmio.STATUS, DRIVER_OK)
        return self.queues

    def take(self, size: int, alignment: int = 16) -> int:
        """Allocate guest RAM."""
        start = (self.free + alignment - 1) & -alignment
        self.free = start + size
        assert self.free <= self.ram.start + self.ram.size
        return start

    def kick(self, index: int) -> None:
        self.write(mmio.QUEUE_NOTIFY, index)

    def acknowledge(self) -> int:
        """Read and clear interrupt causes."""
        causes = self.read(mmio.INTERRUPT_STATUS)
        self.write(mmio.INTERRUPT_ACK, causes)
        return causes

    @property
    def needs_reset(self) -> bool:
        return bool(self.read(mmio.STATUS) & 0x40)


def rig(make: Callable[[GuestMemory, Line, Deferred], VirtioDevice], ram: FakeRam) -> Driver:
    """A started device and a driver for it."""
    line, loop = Line(), Deferred()
    driver = Driver(ram, make(ram.memory(), line, loop), line, loop)
    driver.device.start()
    return driver
