"""virtio-rng: entropy from the host's kernel (virtio 1.2, 5.4)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar

from cpr.vmstate import VmState
from vmm.devices.irq import SetLevel
from vmm.devices.virtio.device import BATCH, Defer, VirtioDevice
from vmm.devices.virtio.errors import VirtqueueError
from vmm.devices.virtio.memory import GuestMemory
from vmm.devices.virtio.ring import Virtqueue
from vmm.devices.virtio.virtio_state import TransportState

RNG_DEVICE_ID = 4
RNG_QUEUE_SIZE = 8  # as in QEMU; a driver has one request at a time
# Bytes for one request; a driver asks again for more. Keeps one request below a millisecond.
REQUEST_SIZE_MAX_BYTES = 0x1_0000


@dataclass(frozen=True, kw_only=True, slots=True)
class RngState(VmState):
    """Entropy itself has no state."""

    NAME: ClassVar[str] = "virtio-rng"
    VERSION: ClassVar[int] = 1
    READS_FROM: ClassVar[int] = 1

    transport: TransportState


class VirtioRng(VirtioDevice):
    """An entropy device."""

    DEVICE_ID = RNG_DEVICE_ID

    def __init__(
        self, memory: GuestMemory, set_irq: SetLevel, defer: Defer, *, name: str = "virtio-rng0"
    ) -> None:
        super().__init__(name, memory, set_irq, defer, features=0, queue_sizes=(RNG_QUEUE_SIZE,))

    @property
    def state_type(self) -> type[VmState]:
        """RngState."""
        return RngState

    def config_bytes(self) -> bytes:
        """There is no configuration."""
        return b""

    def driver_ready(self) -> None:
        """Nothing to tell."""

    def function_reset(self) -> None:
        """Nothing to forget."""

    def process(self, index: int, queue: Virtqueue) -> bool:
        """Fill buffers."""
        assert index == 0
        for _ in range(BATCH):
            chain = queue.peek_or_listen()
            if chain is None:
                return False
            if not chain.writable_size:
                raise VirtqueueError(f"{self.name}: a request without a buffer to write")
            size = min(chain.writable_size, REQUEST_SIZE_MAX_BYTES)
            queue.publish((chain, chain.write(os.urandom(size))))
        return True

    def save(self) -> RngState:
        """See RngState."""
        with self._lock:
            return RngState(transport=self._save_transport())

    def load(self, state: VmState) -> None:
        """Replace everything."""
        assert isinstance(state, RngState)
        with self._lock:
            self._load_transport(state.transport)
