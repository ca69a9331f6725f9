"""What the agent wrote to the guest's disk and to its virtio console, checked from outside."""

from __future__ import annotations

from array import array
from pathlib import Path

from tools.lab.errors import CheckFailedError

BLOCK_BYTES = 4096
_WORDS = BLOCK_BYTES // 8
_STEP = 0x9E37_79B9_7F4A_7C15
_U64 = (1 << 64) - 1


def block(sequence: int, position: int) -> bytes:
    """The content of write number `sequence`, at byte `position` (`fill` in agent.c)."""
    base = ((sequence + 1) * _STEP & _U64 ^ position) >> 8
    return array("Q", [sequence, position, *range(base + 2, base + _WORDS)]).tobytes()


def check_disk(image: Path, blocks_written: int) -> None:
    """Every block holds the last write that was made to it. Raises CheckFailedError."""
    if not blocks_written:
        raise CheckFailedError("disk: the guest wrote nothing to it")
    data = image.read_bytes()
    places = len(data) // BLOCK_BYTES
    for sequence in range(max(0, blocks_written - places), blocks_written):
        position = sequence % places * BLOCK_BYTES
        found = data[position : position + BLOCK_BYTES]
        if found != block(sequence, position):
            raise CheckFailedError(
                f"disk: block at {position:#x} should hold write {sequence} of {blocks_written}, "
                f"it holds {int.from_bytes(found[:8], 'little')}"
            )


def check_numbers(console: Path, blocks_written: int) -> None:
    """The agent said the number of each block once, in order. Raises CheckFailedError."""
    said = console.read_bytes().split()
    for number in range(max(blocks_written, len(said))):
        wanted = b"%d" % number if number < blocks_written else b"nothing"
        found = said[number] if number < len(said) else b"nothing"
        if found != wanted:
            raise CheckFailedError(
                f"virtio console: line {number} of {blocks_written} should be "
                f"{wanted.decode()}, it is {found.decode(errors='replace')}"
            )
