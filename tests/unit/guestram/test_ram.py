from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import guestram.ram
from guestram.errors import LayoutError, MemfdError, RamAccessError, RamError
from guestram.layout import PAGE_SIZE_BYTES, PC_HOLE_END, PC_HOLE_START, RamBlock, pc_layout
from guestram.memfd import MemfdOptions, RamMemfd
from guestram.ram import GuestRam
from tests.unit.guestram.leaks import memfds, open_files

PAGE = PAGE_SIZE_BYTES
GIB = 1 << 30


def make_ram(*sizes_bytes: int, share: bool = True, seal: bool = True) -> GuestRam:
    blocks = [RamBlock(f"ram{index}", size_bytes) for index, size_bytes in enumerate(sizes_bytes)]
    memfds = {
        block.id: RamMemfd.create(block.id, MemfdOptions(block.size_bytes, share=share, seal=seal))
        for block in blocks
    }
    return GuestRam(pc_layout(blocks), memfds)


@pytest.fixture
def ram() -> Iterator[GuestRam]:
    with make_ram(2 * PAGE, PAGE) as ram:
        yield ram


def test_fresh_ram_reads_zero(ram: GuestRam) -> None:
    assert ram.read(0, 3 * PAGE) == bytes(3 * PAGE)


def test_written_bytes_are_read_back(ram: GuestRam) -> None:
    ram.write(0x123, b"guest")
    assert ram.read(0x122, 7) == b"\0guest\0"


def test_words_are_little_endian(ram: GuestRam) -> None:
    ram.write_u64(0x100, 0x0102_0304_0506_0708)
    assert ram.read(0x100, 8) == bytes([8, 7, 6, 5, 4, 3, 2, 1])
    assert ram.read_u64(0x100) == 0x0102_0304_0506_0708


def test_access_spans_blocks(ram: GuestRam) -> None:
    ram.write(2 * PAGE - 3, b"spanning")
    assert ram.read(2 * PAGE - 3, 8) == b"spanning"
    with ram.memfd("ram0").map() as first, ram.memfd("ram1").map() as second:
        assert first[2 * PAGE - 3 :] + second[:5] == b"spanning"


def test_write_that_leaves_ram_writes_nothing(ram: GuestRam) -> None:
    with pytest.raises(RamAccessError, match=r"at 0x2fff, length 0x2,.*RAM is 0x0\.\.0x2000, 0x20"):
        ram.write(3 * PAGE - 1, b"xx")
    assert ram.read(3 * PAGE - 1, 1) == b"\0"


def test_read_that_leaves_ram_is_refused(ram: GuestRam) -> None:
    with pytest.raises(RamAccessError, match="at 0x3000, length 0x8"):
        ram.read_u64(3 * PAGE)


@settings(derandomize=True, database=None, deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 3 * PAGE), st.binary(max_size=2 * PAGE)), max_size=8))
def test_ram_behaves_as_one_array_of_bytes(writes: list[tuple[int, bytes]]) -> None:
    model = bytearray(3 * PAGE)
    with make_ram(PAGE, PAGE, PAGE) as ram:
        for gpa, data in writes:
            fitting = data[: 3 * PAGE - gpa]
            ram.write(gpa, fitting)
            model[gpa : gpa + len(fitting)] = fitting
        assert ram.read(0, 3 * PAGE) == model


def test_sixty_four_gib_are_sparse_and_reachable_to_the_last_byte() -> None:
    with make_ram(64 * GIB) as ram:
        last = PC_HOLE_END + 61 * GIB - 8
        for gpa in (0, PC_HOLE_START - 8, PC_HOLE_END, last):
            ram.write_u64(gpa, gpa + 1)
        assert [ram.read_u64(gpa) - 1 for gpa in (0, PC_HOLE_START - 8, PC_HOLE_END, last)] == [
            0,
            PC_HOLE_START - 8,
            PC_HOLE_END,
            last,
        ]
        with pytest.raises(RamAccessError):
            ram.read_u64(PC_HOLE_START - 4)
        with pytest.raises(RamAccessError):
            ram.read_u64(last + 1)
        # 4 touched pages; a kernel that gives shmem 2 MiB pages uses 4 of those
        assert os.fstat(ram.memfd("ram0").fileno()).st_blocks * 512 <= 4 * (2 << 20)


def test_ranges_are_the_slots_at_their_host_addresses() -> None:
    with make_ram(4 * GIB, PAGE) as ram:
        low, high, second = ram.ranges
        assert (low.guest_start, low.size_bytes) == (0, 3 * GIB)
        assert (high.guest_start, high.size_bytes) == (4 * GIB, GIB)
        assert (second.guest_start, second.size_bytes) == (5 * GIB, PAGE)
        assert high.host_address == low.host_address + 3 * GIB
        for part in ram.ranges:
            ram.write(part.guest_start + 16, b"pages")
            assert ctypes.string_at(part.host_address + 16, 5) == b"pages"


def test_two_maps_of_one_memfd_are_the_same_ram() -> None:
    with make_ram(2 * PAGE) as old:
        memfd = old.memfd("ram0")
        adopted = RamMemfd.adopt(os.dup(memfd.fileno()), "ram0", memfd.options, memfd.identity())
        with GuestRam(old.layout, {"ram0": adopted}) as new:
            old.write(PAGE, b"stays in place")
            assert new.read(PAGE, 14) == b"stays in place"


def test_memfd_of_unknown_block_is_refused(ram: GuestRam) -> None:
    with pytest.raises(LayoutError, match="no RAM block 'ram7'; known: ram0, ram1"):
        ram.memfd("ram7")


# --- construction that fails takes the memfds with it -----------------------------------------


def test_missing_memfd_is_refused_and_the_others_are_closed() -> None:
    memfd = RamMemfd.create("ram0", MemfdOptions(PAGE))
    layout = pc_layout([RamBlock("ram0", PAGE), RamBlock("ram1", PAGE)])
    with pytest.raises(LayoutError, match="RAM blocks ram0, ram1, but the memfds are ram0"):
        GuestRam(layout, {"ram0": memfd})
    assert memfd.closed


def test_no_memfds_at_all_is_refused() -> None:
    with pytest.raises(LayoutError, match="but the memfds are none"):
        GuestRam(pc_layout([RamBlock("ram0", PAGE)]), {})


def test_memfd_of_another_size_is_refused() -> None:
    memfd = RamMemfd.create("ram0", MemfdOptions(PAGE))
    with pytest.raises(LayoutError, match=r"'ram0' has 0x2000 bytes in the layout.*has 0x1000"):
        GuestRam(pc_layout([RamBlock("ram0", 2 * PAGE)]), {"ram0": memfd})
    assert memfd.closed


def test_one_memfd_for_two_blocks_is_refused() -> None:
    first = RamMemfd.create("ram0", MemfdOptions(PAGE))
    second = RamMemfd.adopt(os.dup(first.fileno()), "ram1", first.options, first.identity())
    layout = pc_layout([RamBlock("ram0", PAGE), RamBlock("ram1", PAGE)])
    with pytest.raises(LayoutError, match="'ram0' and 'ram1' are the same memfd"):
        GuestRam(layout, {"ram0": first, "ram1": second})
    assert first.closed
    assert second.closed


def test_mapping_that_fails_undoes_the_ones_before(monkeypatch: pytest.MonkeyPatch) -> None:
    memfds = {name: RamMemfd.create(name, MemfdOptions(PAGE)) for name in ("ram0", "ram1")}

    def refuse() -> None:
        raise MemfdError("no more mappings")

    monkeypatch.setattr(memfds["ram1"], "map", refuse)
    layout = pc_layout([RamBlock(name, PAGE) for name in memfds])
    with pytest.raises(MemfdError, match="no more mappings"):
        GuestRam(layout, memfds)
    assert memfds["ram0"].closed
    assert memfds["ram1"].closed


# --- prefault -----------------------------------------------------------------------------------


def resident_bytes(ram: GuestRam, block_id: str) -> int:
    return os.fstat(ram.memfd(block_id).fileno()).st_blocks * 512


def test_prefault_allocates_every_page_and_keeps_the_contents() -> None:
    with make_ram(1 << 20, PAGE) as ram:
        ram.write(PAGE, b"guest")
        ram.prefault()
        assert resident_bytes(ram, "ram0") >= 1 << 20
        assert resident_bytes(ram, "ram1") >= PAGE
        assert ram.read(PAGE, 5) == b"guest"


def test_prefault_works_in_chunks_with_a_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guestram.ram, "PREFAULT_CHUNK_BYTES", 2 * PAGE)
    with make_ram(5 * PAGE) as ram:
        ram.prefault()
        assert resident_bytes(ram, "ram0") >= 5 * PAGE


def test_prefault_runs_in_another_thread() -> None:
    with make_ram(1 << 20) as ram:
        worker = threading.Thread(target=ram.prefault)
        worker.start()
        worker.join(timeout=30)
        assert not worker.is_alive()
        assert resident_bytes(ram, "ram0") >= 1 << 20


def test_prefault_of_memory_that_cannot_be_had_names_block_and_offset() -> None:
    with make_ram(2 * PAGE, seal=False) as ram:
        os.ftruncate(ram.memfd("ram0").fileno(), 0)  # the mapping now leads nowhere
        with pytest.raises(RamError, match="'ram0' cannot be preallocated at offset 0x0: Bad addr"):
            ram.prefault()


# --- close --------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [True, False])
def test_close_after_use_leaves_no_fd_and_no_mapping(share: bool) -> None:
    before = memfds(), open_files()
    ram = make_ram(PAGE, 2 * PAGE, share=share)
    inode = ram.memfd("ram1").identity().ino
    ram.write(0, b"x")
    ram.prefault()
    assert f" {inode} " in Path("/proc/self/maps").read_text()
    ram.close()
    assert (memfds(), open_files()) == before


def test_close_is_idempotent() -> None:
    ram = make_ram(PAGE)
    ram.close()
    ram.close()
    assert ram.memfd("ram0").closed


def test_closed_ram_refuses_every_access() -> None:
    ram = make_ram(PAGE)
    ram.close()
    with pytest.raises(RamAccessError, match="'ram0' is closed"):
        ram.read(0, 1)
    with pytest.raises(RamAccessError, match="'ram0' is closed"):
        ram.write(0, b"x")
    with pytest.raises(RamAccessError, match="'ram0' is closed"):
        ram.prefault()
