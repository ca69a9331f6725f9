"""The register page of virtio-mmio version 2 (virtio 1.2, 4.2.2).

This file knows offsets and selectors; what a register means is in `VirtioDevice`. Control registers
are 32 bits wide and are accessed as such: any other size reads 0 and writes nothing. Configuration
space begins at 0x100, is read in any size, and is read-only.
"""

from __future__ import annotations

from typing import Protocol

from vmm.devices.virtio.ring import Virtqueue
from vmm.errors import ConfigError

# Below the I/O APIC and above every RAM layout's low part: the hole below 4 GiB.
VIRTIO_MMIO_BASE = 0xD000_0000
VIRTIO_MMIO_SIZE = 0x1000
# One interrupt input for each device, in order: the ISA inputs that nothing else on this machine
# has (0 timer, 1 keyboard, 2 cascade, 3 and 4 serial, 8 clock, 13 FPU), then the I/O APIC's own.
VIRTIO_MMIO_GSIS = (5, 6, 7, 9, 10, 11, 12, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23)

MAGIC, VERSION, DEVICE_ID, VENDOR_ID = 0x000, 0x004, 0x008, 0x00C
DEVICE_FEATURES, DEVICE_FEATURES_SEL = 0x010, 0x014
DRIVER_FEATURES, DRIVER_FEATURES_SEL = 0x020, 0x024
QUEUE_SEL, QUEUE_NUM_MAX, QUEUE_NUM, QUEUE_READY, QUEUE_NOTIFY = 0x030, 0x034, 0x038, 0x044, 0x050
INTERRUPT_STATUS, INTERRUPT_ACK, STATUS = 0x060, 0x064, 0x070
QUEUE_DESC_LOW, QUEUE_DESC_HIGH = 0x080, 0x084
QUEUE_DRIVER_LOW, QUEUE_DRIVER_HIGH = 0x090, 0x094
QUEUE_DEVICE_LOW, QUEUE_DEVICE_HIGH = 0x0A0, 0x0A4
SHM_LEN_LOW, SHM_LEN_HIGH, SHM_BASE_LOW, SHM_BASE_HIGH = 0x0B0, 0x0B4, 0x0B8, 0x0BC
CONFIG_GENERATION, CONFIG = 0x0FC, 0x100

MAGIC_VALUE = int.from_bytes(b"virt", "little")
VERSION_VALUE = 2
VENDOR_VALUE = int.from_bytes(b"CPRV", "little")
_U32 = 0xFFFF_FFFF
_NO_SHARED_MEMORY = frozenset((SHM_LEN_LOW, SHM_LEN_HIGH, SHM_BASE_LOW, SHM_BASE_HIGH))
_ADDRESSES = {  # register -> (attribute of Virtqueue, shift)
    QUEUE_DESC_LOW: ("desc_addr", 0),
    QUEUE_DESC_HIGH: ("desc_addr", 32),
    QUEUE_DRIVER_LOW: ("driver_addr", 0),
    QUEUE_DRIVER_HIGH: ("driver_addr", 32),
    QUEUE_DEVICE_LOW: ("device_addr", 0),
    QUEUE_DEVICE_HIGH: ("device_addr", 32),
}


def mmio_slot(index: int) -> tuple[range, int]:
    """Addresses and GSI of the machine's device number `index`; ConfigError beyond the last."""
    if not 0 <= index < len(VIRTIO_MMIO_GSIS):
        raise ConfigError(
            f"virtio device number {index + 1}: this machine has room for {len(VIRTIO_MMIO_GSIS)}"
        )
    start = VIRTIO_MMIO_BASE + index * VIRTIO_MMIO_SIZE
    return range(start, start + VIRTIO_MMIO_SIZE), VIRTIO_MMIO_GSIS[index]


class Function(Protocol):
    """What the registers act on; called under the device's lock."""

    device_id: int
    offered_features: int
    driver_features: int
    status: int
    interrupt_status: int
    config_generation: int
    queues: tuple[Virtqueue, ...]

    def write_driver_features(self, value: int) -> None:
        """All 64 bits."""
        ...

    def write_status(self, value: int) -> None:
        """The device status field; 0 resets."""
        ...

    def write_queue_ready(self, queue: Virtqueue, value: int) -> None:
        """1 enables, 0 disables."""
        ...

    def acknowledge(self, value: int) -> None:
        """Clear interrupt causes."""
        ...

    def config_read(self, offset: int, size: int) -> int:
        """Device configuration space."""
        ...


class MmioRegisters:
    """The selectors, and the map from offsets to what they select."""

    def __init__(self, function: Function) -> None:
        self._function = function
        self.device_features_sel = 0
        self.driver_features_sel = 0
        self.queue_sel = 0

    def read(self, offset: int, size: int) -> int:
        """Load of `size` bytes."""
        if offset >= CONFIG:
            return self._function.config_read(offset - CONFIG, size)
        return self._read(offset) if size == 4 else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Store of `size` bytes, except QUEUE_NOTIFY, which the device takes itself."""
        if offset < CONFIG and size == 4:  # no device type here has writable configuration
            self._write(offset, value & _U32)

    def _read(self, offset: int) -> int:
        function = self._function
        if offset == INTERRUPT_STATUS:
            return function.interrupt_status
        if offset == DEVICE_FEATURES:
            shift = 32 * self.device_features_sel
            return function.offered_features >> shift & _U32 if shift <= 32 else 0
        if offset in (QUEUE_NUM_MAX, QUEUE_READY):
            return self._read_queue(offset)
        if offset in _NO_SHARED_MEMORY:
            return _U32
        return {
            MAGIC: MAGIC_VALUE,
            VERSION: VERSION_VALUE,
            DEVICE_ID: function.device_id,
            VENDOR_ID: VENDOR_VALUE,
            STATUS: function.status,
            CONFIG_GENERATION: function.config_generation,
        }.get(offset, 0)

    def _read_queue(self, offset: int) -> int:
        queue = self._queue()
        if queue is None:
            return 0
        return queue.size_max if offset == QUEUE_NUM_MAX else int(queue.ready)

    def _write(self, offset: int, value: int) -> None:
        function = self._function
        if offset == INTERRUPT_ACK:
            function.acknowledge(value)
        elif offset == STATUS:
            function.write_status(value)
        elif offset == QUEUE_SEL:
            self.queue_sel = value
        elif offset == DEVICE_FEATURES_SEL:
            self.device_features_sel = value
        elif offset == DRIVER_FEATURES_SEL:
            self.driver_features_sel = value
        elif offset == DRIVER_FEATURES:
            self._write_driver_features(value)
        else:
            self._write_queue(offset, value)

    def _write_driver_features(self, value: int) -> None:
        if self.driver_features_sel <= 1:
            shift = 32 * self.driver_features_sel
            kept = self._function.driver_features & ~(_U32 << shift)
            self._function.write_driver_features(kept | value << shift)

    def _write_queue(self, offset: int, value: int) -> None:
        queue = self._queue()
        if queue is None:
            return
        if offset == QUEUE_READY:
            self._function.write_queue_ready(queue, value)
        elif queue.ready:
            return  # 4.2.2.2: the driver must not change an enabled queue
        elif offset == QUEUE_NUM:
            queue.size = value if value <= queue.size_max else 0  # 0 is refused at enable
        elif offset in _ADDRESSES:
            name, shift = _ADDRESSES[offset]
            kept = getattr(queue, name) & ~(_U32 << shift)
            setattr(queue, name, kept | value << shift)

    def _queue(self) -> Virtqueue | None:
        queues = self._function.queues
        return queues[self.queue_sel] if self.queue_sel < len(queues) else None
