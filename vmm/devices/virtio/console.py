"""virtio-console: one console port between the guest and a character back-end (virtio 1.2, 5.3).

One port and no control queues (MULTIPORT is not offered), so the driver takes port 0 as a console.

* Output is published at once, whether the client reads or not: Linux waits for that with a spin
  lock held. What the back-end does not take is kept, in order, and travels with the state. A client
  that does not read at all loses what exceeds BACKLOG_MAX_BYTES, counted in `dropped_bytes`; in
  QEMU it loses everything that its socket has no room for.
* Input is read only when the guest has offered a buffer; the rest stays in the kernel, behind an fd
  that the successor gets. Should the buffer vanish between the two looks (the driver resets the
  device), the bytes are kept and travel.

Neither belongs to the driver: its reset of the device loses none of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cpr.vmstate import VmState
from vmm.devices.chardev_base import CharBackend
from vmm.devices.irq import SetLevel
from vmm.devices.virtio.chain import Chain
from vmm.devices.virtio.device import BATCH, Defer, VirtioDevice
from vmm.devices.virtio.errors import VirtqueueError
from vmm.devices.virtio.memory import GuestMemory
from vmm.devices.virtio.ring import Virtqueue
from vmm.devices.virtio.virtio_state import TransportState

CONSOLE_DEVICE_ID = 3
RX_QUEUE, TX_QUEUE = 0, 1
QUEUE_SIZES = (128, 128)  # QEMU's
# One chain of output. Linux writes 32 KiB at most; the bound keeps a batch in single milliseconds.
OUTPUT_SIZE_MAX_BYTES = 0x1_0000
# What a client may be behind: a kernel's whole boot log, and little in a saved state.
BACKLOG_MAX_BYTES = 0x1_0000
INPUT_SIZE_MAX_BYTES = 4096  # read from the back-end at once
# cols, rows (F_SIZE is not offered), max_nr_ports, emerg_wr (F_EMERG_WRITE is not offered).
_CONFIG = bytes(4) + (1).to_bytes(4, "little") + bytes(4)


@dataclass(frozen=True, kw_only=True, slots=True)
class ConsoleState(VmState):
    """`backlog` is on its way out, `unread` on its way in. ValueError for impossible sizes."""

    NAME: ClassVar[str] = "virtio-console"
    VERSION: ClassVar[int] = 1
    READS_FROM: ClassVar[int] = 1

    transport: TransportState
    backlog: bytes
    unread: bytes
    dropped_bytes: int

    def __post_init__(self) -> None:
        limits = {"backlog": BACKLOG_MAX_BYTES, "unread": INPUT_SIZE_MAX_BYTES}
        for name, limit in limits.items():
            size = len(getattr(self, name))
            if size > limit:
                raise ValueError(f"{name} has {size} bytes, expected at most {limit}")
        if self.dropped_bytes < 0:
            raise ValueError(f"dropped_bytes is {self.dropped_bytes}, expected 0 or more")


class VirtioConsole(VirtioDevice):
    """A console; a CharFrontend. The back-end belongs to the machine, which closes it."""

    DEVICE_ID = CONSOLE_DEVICE_ID

    def __init__(
        self,
        backend: CharBackend,
        memory: GuestMemory,
        set_irq: SetLevel,
        defer: Defer,
        *,
        name: str = "virtio-console0",
    ) -> None:
        super().__init__(name, memory, set_irq, defer, features=0, queue_sizes=QUEUE_SIZES)
        self._backend = backend
        self._backlog = bytearray()
        self._unread = b""
        self.dropped_bytes = 0
        backend.attach(self)

    @property
    def state_type(self) -> type[VmState]:
        """ConsoleState."""
        return ConsoleState

    def config_bytes(self) -> bytes:
        """One port; nothing else is valid without its feature."""
        return _CONFIG

    def driver_ready(self) -> None:
        """Nothing to tell."""

    def function_reset(self) -> None:
        """Nothing to forget: the bytes we hold are not the driver's any more, or not yet."""

    # ---- queues -------------------------------------------------------------------------

    def process(self, index: int, queue: Virtqueue) -> bool:
        """Serve one queue."""
        if index == TX_QUEUE:
            return self._transmit(queue)
        self._deliver(queue)
        if not self._unread:
            self._backend.receive_more()
        return False

    def _transmit(self, queue: Virtqueue) -> bool:
        for _ in range(BATCH):
            chain = queue.peek_or_listen()
            if chain is None:
                return False
            if chain.readable_size > OUTPUT_SIZE_MAX_BYTES:
                raise VirtqueueError(
                    f"{self.name}: output of {chain.readable_size} bytes, expected at most "
                    f"{OUTPUT_SIZE_MAX_BYTES}"
                )
            self._put(chain.read(chain.readable_size))
            queue.publish((chain, 0))
        return True

    def _put(self, data: bytes) -> None:
        """Give it to the back-end, behind what it did not take before."""
        if not self._backlog:
            data = data[self._backend.write(data) :]
        room = BACKLOG_MAX_BYTES - len(self._backlog)
        self._backlog += data[:room]
        self.dropped_bytes += max(0, len(data) - room)

    def _drain(self) -> None:
        if self._backlog:
            del self._backlog[: self._backend.write(bytes(self._backlog))]

    def _deliver(self, queue: Virtqueue) -> None:
        """Move what came in to the guest, as far as it has buffers."""
        while self._unread:
            chain = self._buffer(queue)
            if chain is None:
                return
            size = chain.write(self._unread)
            self._unread = self._unread[size:]
            queue.publish((chain, size))

    def _buffer(self, queue: Virtqueue) -> Chain | None:
        """The next buffer for input; if there is none, the driver will tell us of one."""
        chain = queue.peek_or_listen()
        if chain is not None and not chain.writable_size:
            raise VirtqueueError(f"{self.name}: a receive buffer that cannot be written")
        return chain

    # ---- CharFrontend, on the loop's thread ---------------------------------------------

    def receive_capacity(self) -> int:
        """The size of the guest's next buffer."""
        with self._lock:
            queue = self.queues[RX_QUEUE]
            if self._unread or not (self.is_live and queue.ready):
                return 0
            try:
                chain = self._buffer(queue)
            except VirtqueueError as error:
                self._break(error)
                return 0
            return 0 if chain is None else min(chain.writable_size, INPUT_SIZE_MAX_BYTES)

    def receive(self, data: bytes) -> None:
        """Bring bytes to the guest."""
        with self._lock:
            self._unread += data
            queue = self.queues[RX_QUEUE]
            if not (self.is_live and queue.ready):
                return
            try:
                self._deliver(queue)
                self.signal(queue)
            except VirtqueueError as error:
                self._break(error)

    def writable(self) -> None:
        """Send what the back-end refused before."""
        with self._lock:
            self._drain()

    # ---- Device, on the loop's thread ---------------------------------------------------

    def start(self) -> None:
        """Connect to the outside; send what is left, then what the ring holds."""
        self._backend.start()
        with self._lock:
            self._drain()
        super().start()

    def stop(self) -> None:
        """Read nothing more; unread input stays in the kernel."""
        self._backend.stop()
        super().stop()

    def save(self) -> ConsoleState:
        """See ConsoleState."""
        with self._lock:
            return ConsoleState(
                transport=self._save_transport(),
                backlog=bytes(self._backlog),
                unread=self._unread,
                dropped_bytes=self.dropped_bytes,
            )

    def load(self, state: VmState) -> None:
        """Replace everything; the back-end hears of it at `start`."""
        assert isinstance(state, ConsoleState)
        with self._lock:
            self._load_transport(state.transport)
            self._backlog = bytearray(state.backlog)
            self._unread = state.unread
            self.dropped_bytes = state.dropped_bytes
