"""What every virtio device is: status, features, queues, interrupts, and the life cycle.

A device type (net, rng, blk) adds three things: its configuration space, `process`, which serves
one queue, and its own part of the saved state.

Threads. Register accesses come on vCPU threads, back-end calls on the loop's thread, notifications
on either (doorbell.py): one lock guards all. A queue is served on the thread that notified it, for
at most one batch; what is left then is served on the loop's thread, batch by batch. So a guest that
produces faster than we consume cannot hold its vCPU thread here for ever, and with it the stop of
an update.

Between `stop` and `start` nothing touches the queues. `start` serves every queue once: what the
driver offered while nobody listened, or what the predecessor had to leave, is found then.

A driver that breaks a rule meets DEVICE_NEEDS_RESET (virtio 1.2, 2.1.2): the device stops serving
until it is reset, and the VMM is not disturbed.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from cpr.errors import StateError
from cpr.vmstate import VmState
from vmm.devices.irq import SetLevel
from vmm.devices.virtio.doorbell import Doorbells, SignalOnStore
from vmm.devices.virtio.errors import VirtqueueError
from vmm.devices.virtio.features import (
    DRIVER_STATUS_BITS,
    INTERRUPT_CONFIG,
    INTERRUPT_QUEUE,
    RING_EVENT_IDX,
    RING_INDIRECT_DESC,
    STATUS_DRIVER_OK,
    STATUS_FEATURES_OK,
    STATUS_NEEDS_RESET,
    TRANSPORT_FEATURES,
    VERSION_1,
)
from vmm.devices.virtio.memory import GuestMemory
from vmm.devices.virtio.mmio import QUEUE_NOTIFY, MmioRegisters
from vmm.devices.virtio.ring import Virtqueue
from vmm.devices.virtio.virtio_state import TransportState

# Chains served before others get their turn: at 20 us for a frame, 1 to 2 ms.
BATCH = 64
_U32 = 0xFFFF_FFFF

Defer = Callable[[Callable[[], None]], object]


class VirtioDevice(ABC):
    """A Device and MmioDevice.

    `defer` runs a function on the loop's thread, soon (`loop.call_soon_threadsafe`); `set_irq`
    drives the interrupt line and must not call back.
    """

    DEVICE_ID: ClassVar[int]  # virtio 1.2, 5

    def __init__(
        self,
        name: str,
        memory: GuestMemory,
        set_irq: SetLevel,
        defer: Defer,
        *,
        features: int,
        queue_sizes: tuple[int, ...],
    ) -> None:
        self.name = name
        self.offered_features = features | TRANSPORT_FEATURES
        self.broken_reason: str | None = None  # why NEEDS_RESET was set, for people
        self.device_id = self.DEVICE_ID
        self._lock = threading.Lock()
        self._memory = memory
        self._set_irq = set_irq
        self._defer = defer
        self._running = False
        self._doorbells: Doorbells | None = None
        self._queue_sizes = queue_sizes
        self._registers = MmioRegisters(self)
        self.queues = tuple(Virtqueue(memory, size) for size in queue_sizes)
        self.driver_features = 0
        self.status = 0
        self.interrupt_status = 0
        self.config_generation = 0

    # ---- what a device type adds, called under the lock ---------------------------------

    @property
    @abstractmethod
    def state_type(self) -> type[VmState]:
        """What `save` returns."""

    @abstractmethod
    def save(self) -> VmState:
        """Read the state; changes nothing."""

    @abstractmethod
    def load(self, state: VmState) -> None:
        """Replace the whole state; raises StateError when it does not fit this device."""

    @abstractmethod
    def config_bytes(self) -> bytes:
        """Configuration space as the driver reads it."""

    @abstractmethod
    def process(self, index: int, queue: Virtqueue) -> bool:
        """Serve up to BATCH chains; True if more are waiting that could be served now.

        Ends with `queue.listen()` when the queue is drained, so that the next chain is notified.
        Raises VirtqueueError.
        """

    def features_fit(self, features: int) -> bool:
        """Whether the driver's choice, a subset of what was offered, is consistent."""
        return bool(features & VERSION_1)

    @abstractmethod
    def driver_ready(self) -> None:
        """DRIVER_OK was set: tell the back-end what was negotiated."""

    @abstractmethod
    def function_reset(self) -> None:
        """Forget everything that the driver set in this device type's part."""

    # ---- registers, on vCPU threads -----------------------------------------------------

    def mmio_read(self, offset: int, size: int) -> int:
        """Load from the register page."""
        with self._lock:
            return self._registers.read(offset, size)

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """Store to the register page."""
        if offset == QUEUE_NOTIFY and size == 4:
            self.notify(value)
            return
        with self._lock:
            self._registers.write(offset, size, value)

    def notify(self, index: int) -> None:
        """The driver offered chains in queue `index` (register write, or an ioeventfd); serve them.

        Any thread. A notification of a queue that does not exist or is not enabled is dropped.
        """
        with self._lock:
            if index < len(self.queues):
                self._serve(index)

    def connect_doorbells(
        self, doorbells: Doorbells, signal_on_store: SignalOnStore, page: int
    ) -> None:
        """Be notified by eventfds from now on, where there are; `page` is that of the registers.

        Owns `doorbells`. Raises AccelError.
        """
        self._doorbells = doorbells
        doorbells.connect(signal_on_store, page + QUEUE_NOTIFY, len(self.queues), self.notify)

    def config_read(self, offset: int, size: int) -> int:
        """Bytes beyond the end read as zero."""
        return int.from_bytes(self.config_bytes()[offset : offset + size], "little")

    def write_driver_features(self, value: int) -> None:
        """Ignored once FEATURES_OK is set (3.1.1)."""
        if not self.status & STATUS_FEATURES_OK:
            self.driver_features = value

    def write_status(self, value: int) -> None:
        """Bits are only added, except that 0 resets; a bit that is not due yet stays clear."""
        if value == 0:
            self._reset()
            return
        added = value & DRIVER_STATUS_BITS & ~self.status
        if added & STATUS_FEATURES_OK and not self._accepts(self.driver_features):
            added &= ~STATUS_FEATURES_OK
        if not (self.status | added) & STATUS_FEATURES_OK:
            added &= ~STATUS_DRIVER_OK
        self.status |= added
        if added & STATUS_DRIVER_OK:
            self.driver_ready()
            self._serve_all()

    def write_queue_ready(self, queue: Virtqueue, value: int) -> None:
        """Enabling an enabled queue changes nothing."""
        if not value & 1:
            queue.disable()
        elif not queue.ready:
            try:
                queue.enable(
                    event_idx=self.negotiated(RING_EVENT_IDX),
                    indirect=self.negotiated(RING_INDIRECT_DESC),
                )
            except VirtqueueError as error:
                self._break(error)

    def acknowledge(self, value: int) -> None:
        """Clear interrupt causes; the line falls with the last one."""
        before = self.interrupt_status
        self.interrupt_status &= ~value
        if before and not self.interrupt_status:
            self._set_irq(False)

    def negotiated(self, feature: int) -> bool:
        """Whether the driver accepted this feature bit."""
        return bool(self.driver_features & feature)

    # ---- queues and interrupts, under the lock ------------------------------------------

    @property
    def is_driver_ready(self) -> bool:
        """Whether the driver set DRIVER_OK and the device is not broken."""
        return self.status & (STATUS_DRIVER_OK | STATUS_NEEDS_RESET) == STATUS_DRIVER_OK

    @property
    def is_live(self) -> bool:
        """Whether queues may be touched now."""
        return self._running and self.is_driver_ready

    def _serve_all(self) -> None:
        for index in range(len(self.queues)):
            self._serve(index)

    def _serve(self, index: int) -> None:
        """One batch now, the rest later."""
        queue = self.queues[index]
        if not (self.is_live and queue.ready):
            return
        try:
            more = self.process(index, queue)
            self.signal(queue)
        except VirtqueueError as error:
            self._break(error)
            return
        if more:
            self._defer(lambda: self.notify(index))

    def signal(self, queue: Virtqueue) -> None:
        """Interrupt the driver for what was published, if it wants to know."""
        if queue.wants_interrupt():
            self._interrupt(INTERRUPT_QUEUE)

    def config_changed(self) -> None:
        """Configuration space has new contents: count it and tell the driver."""
        self.config_generation = (self.config_generation + 1) & _U32
        if self.status & STATUS_DRIVER_OK:
            self._interrupt(INTERRUPT_CONFIG)

    def _interrupt(self, cause: int) -> None:
        before = self.interrupt_status
        self.interrupt_status |= cause
        if not before:
            self._set_irq(True)

    def _break(self, error: VirtqueueError) -> None:
        """Record that the driver broke a rule; it has to reset us."""
        self.broken_reason = str(error)
        self.status |= STATUS_NEEDS_RESET
        if self.status & STATUS_DRIVER_OK:
            self._interrupt(INTERRUPT_CONFIG)

    def _accepts(self, features: int) -> bool:
        if features & ~self.offered_features:
            return False
        return self.features_fit(features)

    # ---- Device, on the loop's thread ---------------------------------------------------

    def start(self) -> None:
        """Serve every queue once, and drive the line for what was loaded."""
        with self._lock:
            self._running = True
            self._set_irq(bool(self.interrupt_status))
            self._serve_all()

    def stop(self) -> None:
        """Touch the queues no more."""
        with self._lock:
            self._running = False

    def reset(self) -> None:
        """Go to the power-on state."""
        with self._lock:
            self._reset()

    def close(self) -> None:
        """Let go of guest RAM, which is unmapped next. Back-ends belong to the machine."""
        if self._doorbells is not None:
            self._doorbells.close()
        with self._lock:
            self._running = False
            for queue in self.queues:
                queue.disable()
            self._memory.close()

    def _reset(self) -> None:
        self._take_transport(TransportState.power_on(self._queue_sizes))
        self.broken_reason = None
        self.function_reset()
        self._set_irq(False)

    def _save_transport(self) -> TransportState:
        registers = self._registers
        return TransportState(
            device_features_sel=registers.device_features_sel,
            driver_features_sel=registers.driver_features_sel,
            queue_sel=registers.queue_sel,
            driver_features=self.driver_features,
            status=self.status,
            interrupt_status=self.interrupt_status,
            config_generation=self.config_generation,
            queues=tuple(queue.save() for queue in self.queues),
        )

    def _load_transport(self, state: TransportState) -> None:
        """Raises StateError, before anything changes, when the state does not fit this device."""
        if len(state.queues) != len(self.queues):
            raise StateError(
                f"section '{self.name}': {len(state.queues)} queues came, this device has "
                f"{len(self.queues)}; give it the same options as at the source"
            )
        for number, (queue, saved) in enumerate(zip(self.queues, state.queues, strict=True)):
            if saved.size > queue.size_max:
                raise StateError(
                    f"section '{self.name}': queue {number} has {saved.size} entries, this device "
                    f"has at most {queue.size_max}"
                )
        beyond = state.driver_features & ~self.offered_features
        if state.status & STATUS_FEATURES_OK and beyond:
            raise StateError(
                f"section '{self.name}': the driver uses feature bits {beyond:#x}, which this "
                "device does not offer; its back-end can do less than the source's"
            )
        self._take_transport(state)

    def _take_transport(self, state: TransportState) -> None:
        registers = self._registers
        registers.device_features_sel = state.device_features_sel
        registers.driver_features_sel = state.driver_features_sel
        registers.queue_sel = state.queue_sel
        self.driver_features = state.driver_features
        self.status = state.status
        self.interrupt_status = state.interrupt_status
        self.config_generation = state.config_generation
        for queue, saved in zip(self.queues, state.queues, strict=True):
            queue.load(
                saved,
                event_idx=self.negotiated(RING_EVENT_IDX),
                indirect=self.negotiated(RING_INDIRECT_DESC),
            )
