"""What is saved of a virtio-blk device: requests are served at once, so none is in flight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cpr.vmstate import VmState
from vmm.devices.virtio.virtio_state import TransportState


@dataclass(frozen=True, kw_only=True, slots=True)
class BlkState(VmState):
    """`capacity_sectors` (of 512 bytes) is what the driver was told; it must be the same there."""

    NAME: ClassVar[str] = "virtio-blk"
    VERSION: ClassVar[int] = 1
    READS_FROM: ClassVar[int] = 1

    transport: TransportState
    capacity_sectors: int
