"""virtio-blk on a raw image, one queue (virtio 1.2, 5.2).

A request is carried out on the thread that serves the queue, straight between image and guest RAM,
before its chain is published. So there is never a request in flight when the machine has stopped.
Without the FLUSH feature the driver cannot ask for durability, so every write is made durable.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from cpr.errors import StateError
from cpr.vmstate import VmState
from vmm.devices.irq import SetLevel
from vmm.devices.virtio.blk_image import SECTOR_SIZE_BYTES, RawImage
from vmm.devices.virtio.blk_state import BlkState
from vmm.devices.virtio.chain import Chain
from vmm.devices.virtio.device import Defer, VirtioDevice
from vmm.devices.virtio.errors import VirtqueueError
from vmm.devices.virtio.memory import GuestMemory
from vmm.devices.virtio.ring import Virtqueue

BLK_DEVICE_ID = 2
QUEUE_SIZE = 256  # QEMU's
SEG_MAX, RO, BLK_SIZE, FLUSH = 1 << 2, 1 << 5, 1 << 6, 1 << 9
DISCARD, WRITE_ZEROES = 1 << 13, 1 << 14
TYPE_IN, TYPE_OUT, TYPE_FLUSH, TYPE_GET_ID, TYPE_DISCARD, TYPE_WRITE_ZEROES = 0, 1, 4, 8, 11, 13
STATUS_OK, STATUS_IOERR, STATUS_UNSUPP = 0, 1, 2
ID_SIZE_BYTES = 20
SEGMENTS_MAX = QUEUE_SIZE - 2  # a request has a header and a status beside its data, as in QEMU
# A request runs on a vCPU thread, and a stop waits for it: bounds of one, and of one batch.
REQUEST_SIZE_MAX_BYTES = 64 << 20
BATCH_REQUESTS = 8
RANGE_SECTORS_MAX = REQUEST_SIZE_MAX_BYTES // SECTOR_SIZE_BYTES

_HEADER = struct.Struct("<IIQ")  # type, reserved, sector
_RANGE = struct.Struct("<QII")  # sector, count, flags
_RANGE_UNMAP = 1
# capacity, size_max, seg_max, geometry, blk_size, topology, writeback, num_queues, then max
# sectors, max segments and alignment of discard; max sectors, max segments, may_unmap of zeroes.
_CONFIG = struct.Struct("<QII4xI8xBxHIIIIIB3x")


class VirtioBlk(VirtioDevice):
    """A disk. The image belongs to the machine, which closes it."""

    DEVICE_ID = BLK_DEVICE_ID

    def __init__(
        self,
        image: RawImage,
        memory: GuestMemory,
        set_irq: SetLevel,
        defer: Defer,
        *,
        serial: str = "",
        name: str = "virtio-blk0",
    ) -> None:
        features = SEG_MAX | BLK_SIZE | FLUSH
        features |= RO if image.read_only else DISCARD | WRITE_ZEROES
        super().__init__(name, memory, set_irq, defer, features=features, queue_sizes=(QUEUE_SIZE,))
        self._image = image
        self._id = serial.encode()[:ID_SIZE_BYTES].ljust(ID_SIZE_BYTES, b"\0")
        self._capacity_sectors = image.size_bytes // SECTOR_SIZE_BYTES

    @property
    def state_type(self) -> type[VmState]:
        """BlkState."""
        return BlkState

    def config_bytes(self) -> bytes:
        """See struct virtio_blk_config."""
        ranges = 0 if self._image.read_only else RANGE_SECTORS_MAX
        segments = 0 if self._image.read_only else 1
        return _CONFIG.pack(
            self._capacity_sectors,
            0,
            SEGMENTS_MAX,
            SECTOR_SIZE_BYTES,
            1,
            1,
            ranges,
            segments,
            1,
            ranges,
            segments,
            1,
        )

    def driver_ready(self) -> None:
        """The image need not know."""

    def function_reset(self) -> None:
        """Nothing to forget."""

    def start(self) -> None:
        """Have the image lock before anything runs; DeviceError with QEMU's text if taken."""
        self._image.lock()
        super().start()

    # ---- requests -----------------------------------------------------------------------

    def process(self, index: int, queue: Virtqueue) -> bool:
        """Carry out requests."""
        assert index == 0
        for _ in range(BATCH_REQUESTS):
            chain = queue.peek_or_listen()
            if chain is None:
                return False
            if chain.readable_size < _HEADER.size or not chain.writable_size:
                raise VirtqueueError(
                    f"{self.name}: request with {chain.readable_size} bytes to read and "
                    f"{chain.writable_size} to write, expected a header of {_HEADER.size} and a "
                    "status byte"
                )
            queue.publish((chain, self._answer(chain)))
        return True

    def _answer(self, chain: Chain) -> int:
        """Carry out one request and set its status; returns the bytes written to the guest."""
        status_at = chain.writable_size - 1
        try:
            status, written = self._carry_out(chain)
        except OSError:
            status, written = STATUS_IOERR, 0
        chain.write(bytes((status,)), status_at)
        # Bytes are counted from the start: with the status, all before it count as written.
        return status_at + 1 if written == status_at else written

    def _carry_out(self, chain: Chain) -> tuple[int, int]:
        """Status, and how many bytes of data were written to the guest."""
        kind, _reserved, sector = _HEADER.unpack(chain.read(_HEADER.size))
        out_size, in_size = chain.readable_size - _HEADER.size, chain.writable_size - 1
        if kind == TYPE_IN:
            offset = self._offset(sector, in_size)
            self._image.read_into(_part(chain.writable, 0, in_size), offset)
            return STATUS_OK, in_size
        if kind == TYPE_GET_ID:
            return STATUS_OK, chain.write(self._id[:in_size])
        if kind == TYPE_FLUSH:
            self._image.flush()
            return STATUS_OK, 0
        if kind in (TYPE_OUT, TYPE_DISCARD, TYPE_WRITE_ZEROES):
            return self._change(kind, sector, chain, out_size), 0
        return STATUS_UNSUPP, 0

    def _change(self, kind: int, sector: int, chain: Chain, size: int) -> int:
        """Carry out what changes the disk."""
        if self._image.read_only:
            return STATUS_IOERR
        if kind == TYPE_OUT:
            offset = self._offset(sector, size)
            self._image.write_from(_part(chain.readable, _HEADER.size, size), offset)
        elif (status := self._change_range(kind, chain, size)) != STATUS_OK:
            return status
        if not self.negotiated(FLUSH):
            self._image.flush()
        return STATUS_OK

    def _change_range(self, kind: int, chain: Chain, size: int) -> int:
        if size != _RANGE.size:  # configuration space says: one segment
            return STATUS_UNSUPP
        sector, count, flags = _RANGE.unpack(chain.read(_HEADER.size + size)[_HEADER.size :])
        known = _RANGE_UNMAP if kind == TYPE_WRITE_ZEROES else 0
        if flags & ~known:
            return STATUS_UNSUPP
        size_bytes = count * SECTOR_SIZE_BYTES
        offset = self._offset(sector, size_bytes)
        if kind == TYPE_DISCARD:
            self._image.discard(offset, size_bytes)
        else:
            self._image.write_zeroes(offset, size_bytes, may_unmap=bool(flags & _RANGE_UNMAP))
        return STATUS_OK

    def _offset(self, sector: int, size_bytes: int) -> int:
        """Byte offset of a range that lies on the disk; OSError otherwise."""
        sectors, rest = divmod(size_bytes, SECTOR_SIZE_BYTES)
        if rest or not 0 < size_bytes <= REQUEST_SIZE_MAX_BYTES:
            raise OSError(f"request of {size_bytes} bytes")
        if sector + sectors > self._capacity_sectors:
            raise OSError(f"sectors {sector}..{sector + sectors} are beyond the end")
        return sector * SECTOR_SIZE_BYTES

    # ---- state --------------------------------------------------------------------------

    def save(self) -> BlkState:
        """See BlkState."""
        with self._lock:
            return BlkState(
                transport=self._save_transport(), capacity_sectors=self._capacity_sectors
            )

    def load(self, state: VmState) -> None:
        """Replace everything; StateError when the disk has another size."""
        assert isinstance(state, BlkState)
        if state.capacity_sectors != self._capacity_sectors:
            raise StateError(
                f"section '{self.name}': the disk has {state.capacity_sectors} sectors at the "
                f"source and {self._capacity_sectors} here; it must be the same image"
            )
        with self._lock:
            self._load_transport(state.transport)


def _part(views: Sequence[memoryview], offset: int, size: int) -> list[memoryview]:
    """The views of [offset, offset + size) of what `views` hold together."""
    parts: list[memoryview] = []
    for view in views:
        if offset >= len(view):
            offset -= len(view)
            continue
        piece = view[offset : offset + size]
        offset = 0
        size -= len(piece)
        if len(piece):
            parts.append(piece)
    return parts
