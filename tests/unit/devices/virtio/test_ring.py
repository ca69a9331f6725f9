from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.framework.virtio_driver import Buffer, FakeRam, QueueDriver
from vmm.devices.virtio.chain import CHAIN_SIZE_MAX_BYTES, INDIRECT_ENTRIES_MAX, Chain
from vmm.devices.virtio.errors import VirtqueueError
from vmm.devices.virtio.ring import Virtqueue

SIZE = 8
BUFFER = 0x8000


class Rig:
    """A queue and its driver, without a device."""

    def __init__(self, ram: FakeRam, *, event_idx: bool = False, indirect: bool = True) -> None:
        self.ram = ram
        self.driver = QueueDriver(ram, 0, SIZE, 0x2000)
        self.queue = Virtqueue(ram.memory(), 256)
        self.queue.size = SIZE
        self.queue.desc_addr = self.driver.desc
        self.queue.driver_addr = self.driver.avail
        self.queue.device_addr = self.driver.used
        self.queue.enable(event_idx=event_idx, indirect=indirect)

    def pop(self) -> Chain:
        chain = self.queue.peek()
        assert chain is not None
        return chain

    def complete(self, written: int = 0) -> None:
        self.queue.publish((self.pop(), written))


@pytest.fixture
def ram() -> Iterator[FakeRam]:
    ram = FakeRam()
    yield ram
    assert ram.red_zones_are_intact()


@pytest.fixture
def rig(ram: FakeRam) -> Rig:
    return Rig(ram)


def test_empty_ring_has_no_chain(rig: Rig) -> None:
    assert rig.queue.peek() is None
    assert rig.queue.pending() == 0


def test_chain_gives_what_the_driver_wrote_and_takes_what_the_device_writes(rig: Rig) -> None:
    rig.ram.write(BUFFER, b"headbody")
    head = rig.driver.add(
        Buffer(BUFFER, 4),
        Buffer(BUFFER + 4, 4),
        Buffer(BUFFER + 16, 2, True),
        Buffer(BUFFER + 18, 6, True),
    )
    chain = rig.pop()
    assert (chain.head, chain.readable_size, chain.writable_size) == (head, 8, 8)
    assert chain.read(6) == b"headbo"
    assert chain.write(b"abcdefghij") == 8
    assert chain.write(b"XY", 1) == 2
    assert rig.ram.read(BUFFER + 16, 8) == b"aXYdefgh"


def test_peek_changes_nothing_and_publish_moves_both_indexes(rig: Rig) -> None:
    rig.driver.add(Buffer(BUFFER, 4))
    rig.driver.add(Buffer(BUFFER, 5))
    before = rig.queue.save()
    assert rig.pop().readable_size == rig.pop().readable_size == 4
    second = rig.queue.peek(1)
    assert second is not None
    assert second.readable_size == 5
    assert rig.queue.peek(2) is None
    assert rig.queue.save() == before
    rig.queue.publish((rig.pop(), 7))
    assert (rig.queue.next_avail, rig.queue.next_used) == (1, 1)
    assert [used.written for used in rig.driver.reap()] == [7]


def test_several_chains_are_published_by_one_index_store(rig: Rig) -> None:
    heads = [rig.driver.add(Buffer(BUFFER, 4, True)) for _ in range(3)]
    chains = [rig.queue.peek(ahead) for ahead in range(3)]
    rig.queue.publish(*[(chain, number) for number, chain in enumerate(chains) if chain])
    assert [tuple(used) for used in rig.driver.reap()] == list(zip(heads, range(3), strict=True))


def test_indexes_wrap_after_65536_chains(ram: FakeRam) -> None:
    rig = Rig(ram)
    rig.queue.next_avail = rig.queue.next_used = 0xFFFE
    rig.driver.put_u16(rig.driver.avail + 2, 0xFFFE)
    rig.driver.seen_used = 0xFFFE
    for _ in range(4):
        rig.driver.add(Buffer(BUFFER, 1))
        rig.complete()
    assert len(rig.driver.reap()) == 4
    assert rig.queue.next_avail == 2


def test_indirect_chain_is_followed_behind_direct_descriptors(rig: Rig) -> None:
    rig.driver.put_desc(0, BUFFER, 3, 1, 1)
    rig.driver.put_desc(1, 0x9000, 32, 4, 0)
    rig.ram.write(0x9000, (BUFFER).to_bytes(8, "little") + (5).to_bytes(4, "little"))
    rig.ram.write(0x900C, b"\x01\x00\x01\x00")
    rig.ram.write(0x9010, (BUFFER).to_bytes(8, "little") + (7).to_bytes(4, "little"))
    rig.ram.write(0x901C, b"\x02\x00\x00\x00")
    rig.driver.offer(0)
    chain = rig.pop()
    assert (chain.readable_size, chain.writable_size) == (8, 7)


def test_buffer_may_span_ranges_that_touch_and_no_other(ram: FakeRam) -> None:
    memory = FakeRam(0x2000, high=0x1000).memory()
    with pytest.raises(VirtqueueError, match="not all in RAM"):
        memory.views(0x2FF0, 0x20)
    with pytest.raises(VirtqueueError, match="not all in RAM"):
        memory.view(0x1_0000_0FFF, 2)
    assert len(memory.views(0x1_0000_0FFF, 1)[0]) == 1
    memory.close()
    with pytest.raises(VirtqueueError):
        memory.view(0x1000, 1)


BAD_CHAINS = {
    "loop": (((BUFFER, 4, 1, 0),), "loop"),
    "long loop": (((BUFFER, 4, 1, 1), (BUFFER, 4, 1, 0)), "loop"),
    "next beyond the table": (((BUFFER, 4, 1, SIZE),), "descriptor 8"),
    "zero length": (((BUFFER, 0, 0, 0),), "zero sized"),
    "below RAM": (((0, 4, 0, 0),), "not all in RAM"),
    "beyond RAM": (((0x10_0FFE, 4, 0, 0),), "not all in RAM"),
    "address wraps": (((0xFFFF_FFFF_FFFF_FFFE, 4, 0, 0),), "not all in RAM"),
    "read after write": (((BUFFER, 4, 3, 1), (BUFFER, 4, 0, 0)), "follows a buffer to write"),
    "indirect with next": (((BUFFER, 16, 5, 1),), "indirect"),
    "indirect of no whole descriptors": (((BUFFER, 17, 4, 0),), "indirect table of 17"),
    "empty indirect": (((BUFFER, 0, 4, 0),), "indirect table of 0"),
    "huge indirect": (((BUFFER, 16 * (INDIRECT_ENTRIES_MAX + 1), 4, 0),), "indirect table"),
    "indirect out of RAM": (((0xF000_0000, 16, 4, 0),), "not all in RAM"),
}


@pytest.mark.parametrize(("entries", "text"), BAD_CHAINS.values(), ids=BAD_CHAINS)
def test_malformed_chain_is_an_error_and_nothing_is_published(
    rig: Rig, entries: tuple[tuple[int, int, int, int], ...], text: str
) -> None:
    for index, entry in enumerate(entries):
        rig.driver.put_desc(index, *entry)
    rig.driver.offer(0)
    with pytest.raises(VirtqueueError, match=text):
        rig.queue.peek()
    assert rig.driver.used_idx == 0


def test_nested_indirect_is_an_error(rig: Rig) -> None:
    rig.driver.put_desc(0, 0x9000, 16, 4, 0)
    rig.ram.write(0x9000, (0x9000).to_bytes(8, "little") + b"\x10\0\0\0\x04\0\0\0")
    rig.driver.offer(0)
    with pytest.raises(VirtqueueError, match="indirect"):
        rig.queue.peek()


def test_indirect_that_was_not_negotiated_is_an_error(ram: FakeRam) -> None:
    rig = Rig(ram, indirect=False)
    rig.driver.add_indirect(0x9000, [Buffer(BUFFER, 4)])
    with pytest.raises(VirtqueueError, match="indirect"):
        rig.queue.peek()


def test_chain_of_more_than_4_gib_is_an_error() -> None:
    size = 16 << 20
    rig = Rig(FakeRam(size + 0x1000))
    rig.driver.add_indirect(0x4000, [Buffer(0x2000, size)] * (CHAIN_SIZE_MAX_BYTES // size + 1))
    with pytest.raises(VirtqueueError, match="more than 2"):
        rig.queue.peek()


def test_head_beyond_the_table_is_an_error(rig: Rig) -> None:
    rig.driver.offer(SIZE)
    with pytest.raises(VirtqueueError, match="descriptor 8"):
        rig.queue.peek()


@pytest.mark.parametrize("index", [SIZE + 1, 0x8000, 0xFFFF])
def test_available_index_that_jumps_is_an_error(rig: Rig, index: int) -> None:
    rig.driver.put_u16(rig.driver.avail + 2, index)
    with pytest.raises(VirtqueueError, match="available index"):
        rig.queue.pending()


@pytest.mark.parametrize("size", [0, 3, 512])
def test_impossible_size_cannot_be_enabled(ram: FakeRam, size: int) -> None:
    queue = Virtqueue(ram.memory(), 256)
    queue.size = size
    with pytest.raises(VirtqueueError, match="queue size"):
        queue.enable(event_idx=False, indirect=False)


@pytest.mark.parametrize(
    ("name", "address"),
    [("desc_addr", 0x2008), ("driver_addr", 0x2001), ("device_addr", 0x2002)],
)
def test_misaligned_ring_cannot_be_enabled(ram: FakeRam, name: str, address: int) -> None:
    queue = Virtqueue(ram.memory(), 256)
    queue.desc_addr = queue.driver_addr = queue.device_addr = 0x2000
    setattr(queue, name, address)
    with pytest.raises(VirtqueueError, match="multiple of"):
        queue.enable(event_idx=False, indirect=False)


def test_without_event_index_the_flag_decides_about_interrupts(rig: Rig) -> None:
    rig.driver.add(Buffer(BUFFER, 1))
    rig.complete()
    assert rig.queue.wants_interrupt()
    assert not rig.queue.wants_interrupt()  # nothing new
    rig.driver.put_u16(rig.driver.avail, 1)
    rig.driver.add(Buffer(BUFFER, 1))
    rig.complete()
    assert not rig.queue.wants_interrupt()


def test_event_index_interrupts_when_it_is_passed_and_not_before(ram: FakeRam) -> None:
    rig = Rig(ram, event_idx=True)
    rig.driver.set_used_event(2)
    wanted = []
    for _ in range(5):
        rig.driver.add(Buffer(BUFFER, 1))
        rig.complete()
        wanted.append(rig.queue.wants_interrupt())
    assert wanted == [False, False, True, False, False]


def test_event_index_of_a_batch_counts_all_of_it(ram: FakeRam) -> None:
    rig = Rig(ram, event_idx=True)
    rig.driver.set_used_event(1)
    for _ in range(3):
        rig.driver.add(Buffer(BUFFER, 1))
        rig.complete()
    assert rig.queue.wants_interrupt()


def test_listening_sets_the_event_and_sees_what_came_meanwhile(ram: FakeRam) -> None:
    rig = Rig(ram, event_idx=True)
    assert not rig.queue.listen()
    assert rig.driver.avail_event == 0
    rig.driver.add(Buffer(BUFFER, 1))
    assert rig.queue.listen()
    assert not rig.queue.listen(1)
    assert rig.driver.avail_event == 1


def test_ignoring_and_listening_use_the_flag_without_event_index(rig: Rig) -> None:
    rig.queue.ignore()
    assert rig.driver.u16(rig.driver.used) == 1
    rig.queue.listen()
    assert rig.driver.u16(rig.driver.used) == 0


def test_saved_queue_goes_on_in_another_process_where_it_was(ram: FakeRam) -> None:
    rig = Rig(ram, event_idx=True)
    for _ in range(3):
        rig.driver.add(Buffer(BUFFER, 1))
    rig.complete()
    other = Virtqueue(ram.memory(), 256)
    other.load(rig.queue.save(), event_idx=True, indirect=True)
    assert other.save() == rig.queue.save()
    assert other.pending() == 2
    chain = other.peek()
    assert chain is not None
    other.publish((chain, 9))
    assert [used.written for used in rig.driver.reap()] == [0, 9]
