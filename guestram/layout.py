"""Where RAM lies in the guest-physical address space. Pure: no fd, no mapping.

A *block* is one memfd. A *slot* is a contiguous guest-physical range backed by a part of one block;
it becomes one KVM memory slot. A PC has a hole below 4 GiB for devices, so a block that reaches
3 GiB is cut into two slots and goes on at 4 GiB.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from guestram.errors import LayoutError, RamAccessError

PAGE_SIZE_BYTES = 4096
PC_HOLE_START = 0xC000_0000
PC_HOLE_END = 0x1_0000_0000

# Far above any guest that we drill (64 GiB), so that a slipped digit is an error here and not a
# huge sparse file; with the hole added it still ends below the 46 address bits of x86-64 servers.
RAM_SIZE_MAX_BYTES = 1 << 40


@dataclass(frozen=True, slots=True)
class RamBlock:
    """One memfd: `id` is the name of the memory backend, such as "ram0".

    Raises LayoutError when the id is empty, or the size is not a positive multiple of a page.
    """

    id: str
    size_bytes: int

    def __post_init__(self) -> None:
        if not self.id:
            raise LayoutError("a RAM block needs an id; give its memory backend one, as id=ram0")
        if self.size_bytes <= 0 or self.size_bytes % PAGE_SIZE_BYTES:
            raise LayoutError(
                f"RAM block '{self.id}': size {self.size_bytes:#x} must be a positive multiple of "
                f"the page size {PAGE_SIZE_BYTES:#x}"
            )


@dataclass(frozen=True, slots=True)
class RamSlot:
    """Guest-physical [guest_start, guest_start + size_bytes) is block bytes from block_offset on.

    Raises LayoutError when a number is negative or not a multiple of a page, or the size is 0.
    """

    block_id: str
    block_offset: int
    guest_start: int
    size_bytes: int

    def __post_init__(self) -> None:
        numbers = (self.block_offset, self.guest_start, self.size_bytes)
        if min(numbers) < 0 or self.size_bytes == 0 or any(n % PAGE_SIZE_BYTES for n in numbers):
            raise LayoutError(
                f"{self}: offset, start and size must be multiples of the page size "
                f"{PAGE_SIZE_BYTES:#x}, none negative, and the size not 0"
            )

    def __str__(self) -> str:
        return (
            f"slot {self.guest_start:#x}..{self.guest_end:#x} of block "
            f"'{self.block_id}' from offset {self.block_offset:#x}"
        )

    @property
    def guest_end(self) -> int:
        """First guest-physical address after the slot."""
        return self.guest_start + self.size_bytes

    @property
    def block_end(self) -> int:
        """First offset after the slot in its block."""
        return self.block_offset + self.size_bytes


@dataclass(frozen=True, slots=True)
class RamPiece:
    """A part of an access that lies in one block."""

    block_id: str
    block_offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class RamLayout:
    """All RAM of a guest: `slots` in guest-address order, each block byte in exactly one slot.

    Raises LayoutError for duplicate ids, more RAM than RAM_SIZE_MAX_BYTES, slots out of order or
    overlapping, slots of unknown blocks, and block bytes that are mapped twice or not at all.
    """

    blocks: tuple[RamBlock, ...]
    slots: tuple[RamSlot, ...]

    def __post_init__(self) -> None:
        self._check_blocks()
        self._check_guest_ranges()
        self._check_slots_use_known_blocks()
        for block in self.blocks:
            self._check_block_is_covered(block)

    @property
    def total_bytes(self) -> int:
        """RAM of the guest, holes not counted."""
        return sum(block.size_bytes for block in self.blocks)

    def find(self, gpa: int, size_bytes: int) -> tuple[RamPiece, ...]:
        """Return the pieces of [gpa, gpa + size_bytes), in order; no pieces for a size of 0.

        Raises RamAccessError when any byte of it is not RAM.
        """
        pieces: list[RamPiece] = []
        next_gpa, end = gpa, gpa + size_bytes
        for slot in self.slots:
            if slot.guest_start <= next_gpa < min(end, slot.guest_end):
                offset = slot.block_offset + next_gpa - slot.guest_start
                piece = RamPiece(slot.block_id, offset, min(end, slot.guest_end) - next_gpa)
                pieces.append(piece)
                next_gpa += piece.size_bytes
        if next_gpa != end:
            raise RamAccessError(
                f"guest-physical access at {gpa:#x}, length {size_bytes:#x}, is not all in RAM; "
                f"RAM is {self.describe()}"
            )
        return tuple(pieces)

    def describe(self) -> str:
        """Put the guest-physical ranges in words, for messages."""
        return ", ".join(f"{slot.guest_start:#x}..{slot.guest_end:#x}" for slot in self.slots)

    def _check_blocks(self) -> None:
        if not self.blocks:
            raise LayoutError("a guest needs at least one RAM block")
        ids = [block.id for block in self.blocks]
        for block_id in ids:
            if ids.count(block_id) > 1:
                raise LayoutError(f"RAM block id '{block_id}' is used more than once")
        if self.total_bytes > RAM_SIZE_MAX_BYTES:
            raise LayoutError(
                f"the RAM blocks have {self.total_bytes:#x} bytes together; at most "
                f"{RAM_SIZE_MAX_BYTES:#x} are supported"
            )

    def _check_guest_ranges(self) -> None:
        for lower, upper in itertools.pairwise(self.slots):
            if upper.guest_start < lower.guest_end:
                raise LayoutError(f"{lower} and {upper} overlap or are not in guest-address order")

    def _check_slots_use_known_blocks(self) -> None:
        ids = {block.id for block in self.blocks}
        for slot in self.slots:
            if slot.block_id not in ids:
                raise LayoutError(
                    f"{slot}: there is no such block; known: {', '.join(sorted(ids))}"
                )

    def _check_block_is_covered(self, block: RamBlock) -> None:
        slots = [slot for slot in self.slots if slot.block_id == block.id]
        covered_to = 0
        for slot in sorted(slots, key=lambda slot: slot.block_offset):
            if slot.block_offset != covered_to:
                how = "maps bytes twice" if slot.block_offset < covered_to else "leaves bytes out"
                raise LayoutError(
                    f"{slot}: it {how}; the slots before it end at block offset {covered_to:#x}"
                )
            covered_to = slot.block_end
        if covered_to != block.size_bytes:
            raise LayoutError(
                f"RAM block '{block.id}' has {block.size_bytes:#x} bytes, but its slots end at "
                f"block offset {covered_to:#x}"
            )


def pc_layout(blocks: Sequence[RamBlock]) -> RamLayout:
    """Lay blocks one after another from address 0, around the PC hole.

    Raises LayoutError as RamLayout does.
    """
    slots: list[RamSlot] = []
    gpa = 0
    for block in blocks:
        offset = 0
        while offset < block.size_bytes:
            if gpa == PC_HOLE_START:
                gpa = PC_HOLE_END
            size_bytes = block.size_bytes - offset
            if gpa < PC_HOLE_START:
                size_bytes = min(size_bytes, PC_HOLE_START - gpa)
            slots.append(RamSlot(block.id, offset, gpa, size_bytes))
            offset += size_bytes
            gpa += size_bytes
    return RamLayout(tuple(blocks), tuple(slots))
