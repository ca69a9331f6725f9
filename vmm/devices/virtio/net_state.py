"""What is saved of a virtio-net device beside transport and queues."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cpr.vmstate import VmState
from vmm.devices.virtio.net_backend import VNET_HDR_SIZE_BYTES
from vmm.devices.virtio.virtio_state import TransportState

MAC_SIZE_BYTES = 6
# As in QEMU: a driver that wants more addresses gets the whole class of them.
MAC_TABLE_MAX = 64
# 64 KiB of TCP segmentation offload, an Ethernet header with two VLAN tags, the virtio header.
FRAME_SIZE_MAX_BYTES = (64 << 10) + 22 + VNET_HDR_SIZE_BYTES


@dataclass(frozen=True, kw_only=True, slots=True)
class RxFilter(VmState):
    """Which frames the driver wants (virtio 1.2, 5.1.6.5.1 and 5.1.6.5.2).

    After reset everything: a driver that cannot say what it wants must get all.
    """

    promiscuous: bool = True
    all_multicast: bool = False
    all_unicast: bool = False
    no_multicast: bool = False
    no_unicast: bool = False
    no_broadcast: bool = False
    unicast: tuple[bytes, ...] = ()
    multicast: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        for table in (self.unicast, self.multicast):
            if len(table) > MAC_TABLE_MAX or any(len(mac) != MAC_SIZE_BYTES for mac in table):
                raise ValueError(f"expected at most {MAC_TABLE_MAX} MAC addresses of 6 bytes")

    def accepts(self, destination: bytes, own: bytes) -> bool:
        """Whether a frame to `destination` is for a card with the address `own`."""
        if self.promiscuous:
            return True
        if destination == b"\xff\xff\xff\xff\xff\xff":
            return not self.no_broadcast
        if destination[:1] and destination[0] & 1:
            return not self.no_multicast and (self.all_multicast or destination in self.multicast)
        if self.no_unicast:
            return False
        return self.all_unicast or destination == own or destination in self.unicast


@dataclass(frozen=True, kw_only=True, slots=True)
class NetState(VmState):
    """The driver's settings, and the one frame that may be between tap and guest.

    `held_frame` was taken from the tap, with the tap's header if it has one, and found too few
    buffers (MRG_RXBUF); empty if there is none. ValueError for what no card can have.
    """

    NAME: ClassVar[str] = "virtio-net"
    VERSION: ClassVar[int] = 1
    READS_FROM: ClassVar[int] = 1

    transport: TransportState
    mac: bytes
    link_up: bool
    announce_pending: bool
    rx_filter: RxFilter
    held_frame: bytes

    def __post_init__(self) -> None:
        if len(self.mac) != MAC_SIZE_BYTES:
            raise ValueError(f"mac has {len(self.mac)} bytes, expected {MAC_SIZE_BYTES}")
        if len(self.held_frame) > FRAME_SIZE_MAX_BYTES:
            raise ValueError(
                f"held_frame has {len(self.held_frame)} bytes, expected at most "
                f"{FRAME_SIZE_MAX_BYTES}"
            )
