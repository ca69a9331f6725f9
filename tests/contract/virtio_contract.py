"""What every virtio device promises, and the list of devices that are held to it.

A new device adopts the contract with one line in CASES. The driver of these tests knows nothing of
the device type: it sets up every queue, posts chains of any shape and touches any register.
"""

from __future__ import annotations

import random
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hypothesis import strategies as st

from tests.framework.fake_char import FakeChar
from tests.framework.fake_net import FakeNet
from tests.framework.virtio_driver import Deferred, Driver, FakeRam, Line, QueueDriver, rig
from vmm.devices.virtio.blk import VirtioBlk
from vmm.devices.virtio.blk_image import RawImage
from vmm.devices.virtio.console import VirtioConsole
from vmm.devices.virtio.device import VirtioDevice
from vmm.devices.virtio.memory import GuestMemory
from vmm.devices.virtio.net import VirtioNet
from vmm.devices.virtio.net_backend import NetOffloads
from vmm.devices.virtio.rng import VirtioRng

MAC = bytes.fromhex("525400123456")
DISK_SIZE_BYTES = 64 << 10
QUEUE_SIZE = 16
RAM_SIZE_BYTES = 256 << 10
ALL_OFFLOADS = NetOffloads(csum=True, tso4=True, tso6=True, tso_ecn=True)

Make = Callable[[GuestMemory, Line, Deferred], VirtioDevice]


@dataclass(frozen=True, slots=True)
class VirtioCase:
    """How to make a device; `made` closes what it needs beside."""

    name: str
    made: Callable[[], Iterator[Make]]

    @contextmanager
    def maker(self) -> Iterator[Make]:
        yield from self.made()


def _net(backend: Callable[[], FakeNet]) -> Callable[[], Iterator[Make]]:
    def made() -> Iterator[Make]:
        yield lambda memory, line, loop: VirtioNet(backend(), MAC, memory, line, loop)

    return made


def _blocked() -> FakeNet:
    backend = FakeNet()
    backend.room = 0
    return backend


def _disk(*, read_only: bool) -> Callable[[], Iterator[Make]]:
    def made() -> Iterator[Make]:
        with tempfile.NamedTemporaryFile() as file:
            file.truncate(DISK_SIZE_BYTES)
            image = RawImage.open(file.name, "d0", read_only=read_only)
            yield lambda memory, line, loop: VirtioBlk(image, memory, line, loop)
            image.close()

    return made


def _rng() -> Iterator[Make]:
    yield VirtioRng


def _console(accepts: int | None) -> Callable[[], Iterator[Make]]:
    def made() -> Iterator[Make]:
        def make(memory: GuestMemory, line: Line, loop: Deferred) -> VirtioDevice:
            backend = FakeChar()
            backend.accepts = accepts
            return VirtioConsole(backend, memory, line, loop)

        yield make

    return made


CASES = (
    VirtioCase("net", _net(FakeNet)),
    VirtioCase("net, tap with header", _net(lambda: FakeNet(12, ALL_OFFLOADS))),
    VirtioCase("net, full tap", _net(_blocked)),
    VirtioCase("rng", _rng),
    VirtioCase("console", _console(None)),
    VirtioCase("console, client that does not read", _console(0)),
    VirtioCase("blk", _disk(read_only=False)),
    VirtioCase("blk, read-only", _disk(read_only=True)),
)


@dataclass(frozen=True, slots=True)
class Access:
    """One access to the register page; `value` None is a read."""

    offset: int
    size: int
    value: int | None

    def apply(self, device: VirtioDevice) -> int | None:
        if self.value is None:
            return device.mmio_read(self.offset, self.size)
        device.mmio_write(self.offset, self.size, self.value & ((1 << 8 * self.size) - 1))
        return None


_REGISTERS = st.integers(0, 0x4F).map(lambda index: 4 * index)
ACCESSES = st.lists(
    st.builds(
        Access,
        _REGISTERS | st.integers(0, 0xFFF),
        st.sampled_from((4, 4, 4, 1, 2, 8)),
        st.none() | st.sampled_from((0, 1, 3, 11, 15, 16)) | st.integers(0, (1 << 64) - 1),
    ),
    max_size=60,
)


def set_up(make: Make, ram: FakeRam) -> Driver:
    """A device with all its features and queues."""
    driver = rig(make, ram)
    driver.set_up(driver.offered(), size=QUEUE_SIZE)
    return driver


def used_part(ram: FakeRam, queue: QueueDriver) -> bytes:
    return ram.read(queue.used, queue.end - queue.used)


def something_arrives(device: VirtioDevice, number: int) -> None:
    """What can happen to this device from outside: frames or keys in several sizes."""
    if isinstance(device, VirtioConsole):
        keyboard = device._backend
        assert isinstance(keyboard, FakeChar)
        keyboard.feed(b"x" * (1, 80, 5000)[number % 3])
    if isinstance(device, VirtioNet):
        backend = device._backend
        assert isinstance(backend, FakeNet)
        backend.waiting.append(MAC * 3 + bytes((20, 1500, 5000)[number % 3]))
        backend.poll()


class RingFuzzer:
    """Writes chains that are almost right, or not at all, from a seed."""

    _GOOD_SIZES = (1, 12, 16, 64, 512, 513, 1526)
    _BAD_SIZES = (0, 0xFFFF_FFFF, 0x8000_0000, 1 << 20)

    def __init__(self, driver: Driver, seed: int) -> None:
        self.driver = driver
        self.random = random.Random(seed)
        self.data = driver.take(64 << 10)
        self.data_size = 64 << 10
        self.table = driver.take(16 * 64)

    def post(self, queue: QueueDriver) -> None:
        """Offer one chain that is right, or wrong in one place; sometimes jump with the index."""
        pick = self.random
        indirect = pick.random() < 0.2
        entries = self._right_chain(64 if indirect else queue.size)
        first = 0 if indirect else pick.randrange(queue.size - len(entries))
        if not indirect:
            entries = [
                (gpa, size, flags, following + first) for gpa, size, flags, following in entries
            ]
        packed = [struct.pack("<QIHH", *entry) for entry in entries]
        if pick.random() < 0.4:
            packed[pick.randrange(len(packed))] = self._entry(queue.size)
        queue.ram.write(self.table if indirect else queue.desc + 16 * first, b"".join(packed))
        head = first
        if indirect:
            head = pick.randrange(queue.size)
            queue.put_desc(head, self.table, 16 * len(packed), 4, 0)
        queue.offer(head if pick.random() < 0.98 else pick.choice((queue.size, 0xFFFF)))
        if pick.random() < 0.02:
            queue.put_u16(queue.avail + 2, pick.randrange(0x1_0000))

    def _right_chain(self, room: int) -> list[tuple[int, int, int, int]]:
        """Return buffers to read, then buffers to write; a disk finds a header in the first."""
        pick = self.random
        reads, writes = pick.choice(((0, 1), (1, 0), (1, 1), (2, 1), (1, 2), (2, 2), (0, 3)))
        count = min(reads + writes, room)
        kind = pick.choice((0, 0, 1, 4, 8, 11, 13, 99))
        header = struct.pack("<IIQ", kind, 0, pick.choice((0, 1, 1 << 62)))
        self.driver.ram.write(self.data, header + struct.pack("<QII", 0, 1, pick.choice((0, 1, 2))))
        entries = []
        for index in range(count):
            gpa, size = self.data + 64 * index, pick.choice(self._GOOD_SIZES)
            if index == 0 and reads:
                gpa, size = self.data, pick.choice((16, 16, 32))
            flags = (0 if index < reads else 2) | (1 if index < count - 1 else 0)
            entries.append((gpa, size, flags, index + 1))
        return entries

    def _entry(self, size: int) -> bytes:
        pick = self.random
        good = pick.random() < 0.8
        address = self.data + pick.randrange(self.data_size) if good else self._bad_address()
        length = pick.choice(self._GOOD_SIZES if pick.random() < 0.9 else self._BAD_SIZES)
        flags = pick.choice((0, 0, 1, 1, 2, 2, 3, 4, 7, 0xFFFF))
        if flags & 4:
            address, length = self.table, 16 * pick.choice((0, 1, 4, 64, 2000))
        following = pick.randrange(size) if pick.random() < 0.95 else 0xFFFF
        return struct.pack("<QIHH", address, length, flags, following)

    def _bad_address(self) -> int:
        end = self.driver.ram.start + self.driver.ram.size
        return self.random.choice((0, end - 1, end, (1 << 64) - 1, (1 << 32), 0xD000_0000))
