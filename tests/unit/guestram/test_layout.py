from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guestram.errors import LayoutError, RamAccessError
from guestram.layout import (
    PAGE_SIZE_BYTES,
    PC_HOLE_END,
    PC_HOLE_START,
    RAM_SIZE_MAX_BYTES,
    RamBlock,
    RamLayout,
    RamPiece,
    RamSlot,
    pc_layout,
)

PAGE = PAGE_SIZE_BYTES
GIB = 1 << 30


def test_small_ram_is_one_slot_from_address_zero() -> None:
    layout = pc_layout([RamBlock("ram0", 64 << 20)])
    assert layout.slots == (RamSlot("ram0", 0, 0, 64 << 20),)
    assert layout.total_bytes == 64 << 20


def test_three_gib_end_exactly_at_the_hole() -> None:
    layout = pc_layout([RamBlock("ram0", 3 * GIB)])
    assert layout.slots == (RamSlot("ram0", 0, 0, PC_HOLE_START),)


def test_ram_above_three_gib_goes_on_at_four_gib() -> None:
    layout = pc_layout([RamBlock("ram0", 64 * GIB)])
    assert layout.slots == (
        RamSlot("ram0", 0, 0, 3 * GIB),
        RamSlot("ram0", 3 * GIB, 4 * GIB, 61 * GIB),
    )
    assert layout.describe() == "0x0..0xc0000000, 0x100000000..0x1040000000"


def test_a_block_that_starts_at_the_hole_starts_above_it() -> None:
    layout = pc_layout([RamBlock("low", 3 * GIB), RamBlock("high", PAGE)])
    assert layout.slots[1] == RamSlot("high", 0, PC_HOLE_END, PAGE)


def test_several_blocks_lie_one_after_another() -> None:
    layout = pc_layout([RamBlock("a", 2 * GIB), RamBlock("b", 2 * GIB), RamBlock("c", PAGE)])
    assert layout.slots == (
        RamSlot("a", 0, 0, 2 * GIB),
        RamSlot("b", 0, 2 * GIB, GIB),
        RamSlot("b", GIB, 4 * GIB, GIB),
        RamSlot("c", 0, 5 * GIB, PAGE),
    )


@settings(derandomize=True, database=None, deadline=None)
@given(st.lists(st.integers(1, 1 << 21), min_size=1, max_size=6))
def test_pc_layout_places_every_byte_once_and_none_in_the_hole(sizes_pages: list[int]) -> None:
    blocks = [RamBlock(f"ram{i}", pages * PAGE) for i, pages in enumerate(sizes_pages)]
    layout = pc_layout(blocks)  # RamLayout itself refuses overlaps and gaps in a block
    assert sum(slot.size_bytes for slot in layout.slots) == layout.total_bytes
    assert all(s.guest_end <= PC_HOLE_START or s.guest_start >= PC_HOLE_END for s in layout.slots)
    gaps = {
        (lower.guest_end, upper.guest_start)
        for lower, upper in itertools.pairwise(layout.slots)
        if lower.guest_end != upper.guest_start
    }
    assert gaps <= {(PC_HOLE_START, PC_HOLE_END)}


def test_find_gives_the_block_offset() -> None:
    layout = pc_layout([RamBlock("ram0", 8 * GIB)])
    assert layout.find(0x7C00, 512) == (RamPiece("ram0", 0x7C00, 512),)
    assert layout.find(4 * GIB + 16, 8) == (RamPiece("ram0", 3 * GIB + 16, 8),)


def test_find_cuts_an_access_where_blocks_meet() -> None:
    layout = pc_layout([RamBlock("a", PAGE), RamBlock("b", PAGE), RamBlock("c", PAGE)])
    assert layout.find(PAGE - 2, PAGE + 4) == (
        RamPiece("a", PAGE - 2, 2),
        RamPiece("b", 0, PAGE),
        RamPiece("c", 0, 2),
    )


def test_find_of_nothing_touches_nothing() -> None:
    assert pc_layout([RamBlock("ram0", PAGE)]).find(123, 0) == ()


@pytest.mark.parametrize(
    ("gpa", "size_bytes"),
    [
        pytest.param(-1, 8, id="below zero"),
        pytest.param(PC_HOLE_START - 4, 8, id="into the hole"),
        pytest.param(PC_HOLE_START, 1, id="in the hole"),
        pytest.param(PC_HOLE_END - 4, 8, id="out of the hole"),
        pytest.param(PC_HOLE_START - 8, GIB + 16, id="over the hole"),
        pytest.param(5 * GIB - 4, 8, id="past the end"),
        pytest.param(5 * GIB, 1, id="at the end"),
        pytest.param(16, -8, id="negative length"),
    ],
)
def test_find_outside_ram_names_access_and_ram(gpa: int, size_bytes: int) -> None:
    layout = pc_layout([RamBlock("ram0", 4 * GIB)])
    with pytest.raises(RamAccessError) as caught:
        layout.find(gpa, size_bytes)
    text = str(caught.value)
    assert f"at {gpa:#x}, length {size_bytes:#x}," in text
    assert "0x0..0xc0000000, 0x100000000..0x140000000" in text


@pytest.mark.parametrize("size_bytes", [0, -PAGE, PAGE + 1])
def test_block_of_impossible_size_is_refused(size_bytes: int) -> None:
    with pytest.raises(LayoutError, match=r"RAM block 'ram0': size .* multiple of the page size"):
        RamBlock("ram0", size_bytes)


def test_block_without_id_is_refused() -> None:
    with pytest.raises(LayoutError, match="needs an id"):
        RamBlock("", PAGE)


@pytest.mark.parametrize(
    ("offset", "start", "size_bytes"), [(1, 0, PAGE), (0, 1, PAGE), (0, 0, 1), (0, 0, 0)]
)
def test_unaligned_or_empty_slot_is_refused(offset: int, start: int, size_bytes: int) -> None:
    with pytest.raises(LayoutError, match=r"block 'ram0'.*multiples of the page size"):
        RamSlot("ram0", offset, start, size_bytes)


@pytest.mark.parametrize(("offset", "start"), [(-PAGE, 0), (0, -PAGE)])
def test_negative_slot_is_refused(offset: int, start: int) -> None:
    with pytest.raises(LayoutError, match="none negative"):
        RamSlot("ram0", offset, start, PAGE)


def test_layout_without_blocks_is_refused() -> None:
    with pytest.raises(LayoutError, match="at least one RAM block"):
        pc_layout([])


def test_block_id_used_twice_is_refused() -> None:
    with pytest.raises(LayoutError, match="'ram0' is used more than once"):
        pc_layout([RamBlock("ram0", PAGE), RamBlock("ram0", PAGE)])


def test_one_tib_is_accepted_and_one_page_more_is_refused() -> None:
    assert pc_layout([RamBlock("ram0", RAM_SIZE_MAX_BYTES)]).total_bytes == RAM_SIZE_MAX_BYTES
    with pytest.raises(LayoutError, match="at most 0x10000000000 are supported"):
        pc_layout([RamBlock("ram0", RAM_SIZE_MAX_BYTES), RamBlock("ram1", PAGE)])


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        pytest.param(
            (RamSlot("a", 0, 0, 2 * PAGE), RamSlot("b", 0, PAGE, PAGE)),
            "slot 0x0..0x2000 of block 'a' .*and slot 0x1000..0x2000 .*overlap",
            id="overlap",
        ),
        pytest.param(
            (RamSlot("b", 0, 2 * PAGE, PAGE), RamSlot("a", 0, 0, 2 * PAGE)),
            "not in guest-address order",
            id="order",
        ),
        pytest.param(
            (RamSlot("a", 0, 0, 2 * PAGE), RamSlot("c", 0, 2 * PAGE, PAGE)),
            "block 'c' .*no such block; known: a, b",
            id="unknown block",
        ),
        pytest.param(
            (RamSlot("a", 0, 0, 2 * PAGE), RamSlot("a", PAGE, 4 * PAGE, PAGE)),
            "maps bytes twice",
            id="alias",
        ),
        pytest.param(
            (RamSlot("a", PAGE, 0, PAGE), RamSlot("b", 0, PAGE, PAGE)),
            "leaves bytes out",
            id="start of block left out",
        ),
        pytest.param(
            (RamSlot("a", 0, 0, 2 * PAGE),),
            "RAM block 'b' has 0x1000 bytes, but its slots end at block offset 0x0",
            id="block without slot",
        ),
        pytest.param(
            (RamSlot("a", 0, 0, 3 * PAGE), RamSlot("b", 0, 3 * PAGE, PAGE)),
            "RAM block 'a' has 0x2000 bytes, but its slots end at block offset 0x3000",
            id="past the end of the block",
        ),
    ],
)
def test_layout_that_does_not_fit_is_refused(slots: tuple[RamSlot, ...], message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        RamLayout((RamBlock("a", 2 * PAGE), RamBlock("b", PAGE)), slots)
