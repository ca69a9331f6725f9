"""Split virtqueues (virtio 1.2, 2.7), the device's side.

A queue serves its chains strictly in order: `peek` looks at the next one, `publish` hands it back.
Between the two nothing has happened yet, neither for the guest nor in the saved state, so a request
that cannot be finished now is simply not published and is found again, here or by the successor.

Memory order. Publishing is: used element, then used index; looking is: available index, then ring
entry, then descriptor. x86 keeps the order of stores and that of loads, and an aligned 16-bit view
item is one access. What x86 does reorder is a store with a later load, and both notification
protocols depend on that pair (2.7.7, 2.7.10); there we take and drop a lock, whose atomic
instruction is a full fence.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from vmm.devices.virtio.chain import DESC_SIZE_BYTES, Chain, read_chain
from vmm.devices.virtio.errors import VirtqueueError
from vmm.devices.virtio.memory import GuestMemory
from vmm.devices.virtio.virtio_state import QueueState

AVAIL_NO_INTERRUPT = 1
USED_NO_NOTIFY = 1
_INDEX_MASK = 0xFFFF
# Where things are in the available and used rings, in 16-bit words.
_FLAGS, _IDX, _RING = 0, 1, 2


@dataclass(frozen=True, slots=True)
class _Rings:
    """Views of the three parts; made once, when the queue is enabled or first used after a load."""

    table: memoryview
    avail: memoryview  # u16: flags, idx, ring[size], used_event
    used: memoryview  # u16: flags, idx
    elements: memoryview  # u32: (id, length)[size]
    avail_event: memoryview  # u16

    @classmethod
    def map(cls, memory: GuestMemory, queue: Virtqueue) -> _Rings:
        size = queue.size
        for address, alignment in (
            (queue.desc_addr, DESC_SIZE_BYTES),
            (queue.driver_addr, 2),
            (queue.device_addr, 4),
        ):
            if address % alignment:
                raise VirtqueueError(f"ring at {address:#x}, expected a multiple of {alignment}")
        used = memory.view(queue.device_addr, 6 + 8 * size)
        return cls(
            table=memory.view(queue.desc_addr, DESC_SIZE_BYTES * size),
            avail=memory.view(queue.driver_addr, 6 + 2 * size).cast("H"),
            used=used[:4].cast("H"),
            elements=used[4 : 4 + 8 * size].cast("I"),
            avail_event=used[4 + 8 * size :].cast("H"),
        )


class Virtqueue:
    """One queue. Not thread-safe: the device's lock guards it.

    Every method below `enable` raises VirtqueueError when the driver broke a rule. A ring part must
    lie in one RAM block.
    """

    def __init__(self, memory: GuestMemory, size_max: int) -> None:
        self.size_max = size_max
        self._memory = memory
        self._fence = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Disabled, with default size and no addresses."""
        self.load(QueueState.disabled(self.size_max), event_idx=False, indirect=False)

    def load(self, state: QueueState, *, event_idx: bool, indirect: bool) -> None:
        """Replace everything; the rings are looked at on first use, since RAM may not be ready."""
        self.size = state.size
        self.ready = state.ready
        self.desc_addr = state.desc_addr
        self.driver_addr = state.driver_addr
        self.device_addr = state.device_addr
        self.next_avail = state.next_avail
        self.next_used = state.next_used
        self.signalled_used = state.signalled_used
        self.event_idx = event_idx
        self.indirect = indirect
        self._rings: _Rings | None = None

    def save(self) -> QueueState:
        """See QueueState."""
        return QueueState(
            size=self.size,
            ready=self.ready,
            desc_addr=self.desc_addr,
            driver_addr=self.driver_addr,
            device_addr=self.device_addr,
            next_avail=self.next_avail,
            next_used=self.next_used,
            signalled_used=self.signalled_used,
        )

    def enable(self, *, event_idx: bool, indirect: bool) -> None:
        """Begin at index 0 with the size and addresses that were set."""
        if not 0 < self.size <= self.size_max or self.size & (self.size - 1):
            raise VirtqueueError(
                f"queue size {self.size}, expected a power of two up to {self.size_max}"
            )
        self.event_idx, self.indirect = event_idx, indirect
        self.next_avail = self.next_used = self.signalled_used = 0
        self._rings = _Rings.map(self._memory, self)
        self.ready = True

    def disable(self) -> None:
        """Touch the rings no more."""
        self.ready = False
        self._rings = None

    def pending(self) -> int:
        """How many chains the driver has offered that are not published yet."""
        rings = self._rings or self._map()
        count = (rings.avail[_IDX] - self.next_avail) & _INDEX_MASK
        if count > self.size:
            raise VirtqueueError(
                f"available index {rings.avail[_IDX]} is {count} beyond {self.next_avail}, but "
                f"the queue has {self.size} entries"
            )
        return count

    def peek(self, ahead: int = 0) -> Chain | None:
        """The next chain, or the one `ahead` places behind it; None if it is not offered yet."""
        if self.pending() <= ahead:
            return None
        rings = self._rings or self._map()
        slot = (self.next_avail + ahead) & (self.size - 1)
        return read_chain(
            self._memory, rings.table, rings.avail[_RING + slot], indirect=self.indirect
        )

    def peek_or_listen(self) -> Chain | None:
        """The next chain; None if there is none, and then the driver will tell us of one."""
        chain = self.peek()
        if chain is None and self.listen():
            chain = self.peek()
        return chain

    def publish(self, *used: tuple[Chain, int]) -> None:
        """Hand back the next chains, in order, each with the number of bytes written to it.

        The driver sees all of them at once.
        """
        rings = self._rings or self._map()
        for offset, (chain, written) in enumerate(used):
            slot = 2 * ((self.next_used + offset) & (self.size - 1))
            rings.elements[slot] = chain.head
            rings.elements[slot + 1] = written
        self.next_avail = (self.next_avail + len(used)) & _INDEX_MASK
        self.next_used = (self.next_used + len(used)) & _INDEX_MASK
        rings.used[_IDX] = self.next_used

    def wants_interrupt(self) -> bool:
        """Whether the driver asked to be interrupted for what was published since the last call."""
        rings = self._rings or self._map()
        old, new = self.signalled_used, self.next_used
        self.signalled_used = new
        if old == new:
            return False
        self._full_fence()
        if not self.event_idx:
            return not rings.avail[_FLAGS] & AVAIL_NO_INTERRUPT
        used_event = rings.avail[_RING + self.size]
        return (new - used_event - 1) & _INDEX_MASK < (new - old) & _INDEX_MASK

    def listen(self, seen: int = 0) -> bool:
        """Ask for a notification when more than `seen` chains are pending; True if they are."""
        rings = self._rings or self._map()
        if self.event_idx:
            rings.avail_event[0] = (self.next_avail + seen) & _INDEX_MASK
        else:
            rings.used[_FLAGS] = 0
        self._full_fence()
        return self.pending() > seen

    def ignore(self) -> None:
        """Notifications are not needed until `listen`; the driver may send some all the same."""
        if not self.event_idx:  # with it, the event index that is behind us says the same
            rings = self._rings or self._map()
            rings.used[_FLAGS] = USED_NO_NOTIFY

    def _map(self) -> _Rings:
        self._rings = _Rings.map(self._memory, self)
        return self._rings

    def _full_fence(self) -> None:
        with self._fence:
            pass
