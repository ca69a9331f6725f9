"""What is saved of every virtio device: its transport and its queues.

A queue's position is two indexes. Chains are served in order and published at once, so nothing is
in flight between `next_avail` and `next_used`; what the driver offered beyond them is still in its
ring, in guest RAM.
"""

from __future__ import annotations

from dataclasses import dataclass

from cpr.vmstate import VmState

_U16, _U32, _U64 = 0xFFFF, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF
QUEUE_SIZE_LIMIT = 0x8000  # virtio 1.2, 2.7: the largest queue
STATUS_MASK = 0xCF  # the device status bits that exist (2.1)
INTERRUPT_MASK = 0x3


def _require(limits: dict[str, tuple[int, int]]) -> None:
    for name, (value, limit) in limits.items():
        if not 0 <= value <= limit:
            raise ValueError(f"{name} is {value:#x}, expected 0..{limit:#x}")


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueState(VmState):
    """One virtqueue; addresses are guest-physical. ValueError for what no queue can have."""

    size: int
    ready: bool
    desc_addr: int
    driver_addr: int
    device_addr: int
    next_avail: int  # the next chain that we take; 16 bits, as in the ring
    next_used: int  # where we publish next
    signalled_used: int  # next_used when an interrupt was last considered (EVENT_IDX)

    @classmethod
    def disabled(cls, size: int) -> QueueState:
        """A queue that the driver has not set up."""
        return cls(
            size=size,
            ready=False,
            desc_addr=0,
            driver_addr=0,
            device_addr=0,
            next_avail=0,
            next_used=0,
            signalled_used=0,
        )

    def __post_init__(self) -> None:
        _require(
            {
                "size": (self.size, QUEUE_SIZE_LIMIT),
                "desc_addr": (self.desc_addr, _U64),
                "driver_addr": (self.driver_addr, _U64),
                "device_addr": (self.device_addr, _U64),
                "next_avail": (self.next_avail, _U16),
                "next_used": (self.next_used, _U16),
                "signalled_used": (self.signalled_used, _U16),
            }
        )
        if self.ready and (not self.size or self.size & (self.size - 1)):
            raise ValueError(f"queue size {self.size} is not a power of two")


@dataclass(frozen=True, kw_only=True, slots=True)
class TransportState(VmState):
    """Registers of virtio-mmio version 2, named as in virtio 1.2, 4.2.2, and the queues."""

    device_features_sel: int
    driver_features_sel: int
    queue_sel: int
    driver_features: int  # as written; not more than offered once FEATURES_OK is set
    status: int
    interrupt_status: int
    config_generation: int
    queues: tuple[QueueState, ...]

    @classmethod
    def power_on(cls, queue_sizes: tuple[int, ...]) -> TransportState:
        """After reset."""
        return cls(
            device_features_sel=0,
            driver_features_sel=0,
            queue_sel=0,
            driver_features=0,
            status=0,
            interrupt_status=0,
            config_generation=0,
            queues=tuple(QueueState.disabled(size) for size in queue_sizes),
        )

    def __post_init__(self) -> None:
        _require(
            {
                "device_features_sel": (self.device_features_sel, _U32),
                "driver_features_sel": (self.driver_features_sel, _U32),
                "queue_sel": (self.queue_sel, _U32),
                "driver_features": (self.driver_features, _U64),
                "status": (self.status & ~STATUS_MASK, 0),
                "interrupt_status": (self.interrupt_status, INTERRUPT_MASK),
                "config_generation": (self.config_generation, _U32),
            }
        )
