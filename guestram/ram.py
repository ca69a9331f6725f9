"""Guest RAM as its consumers see it: guest-physical addresses in, bytes out.

One mapping per block, however many slots it has. Devices and loaders read and write here with every
bound checked; accelerators take `ranges` and touch the pages directly, so the mappings must outlive
every VM that uses them: close the VM first.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from guestram.errors import LayoutError, RamAccessError, RamError
from guestram.layout import RamLayout
from guestram.memfd import RamMemfd

# About 0.1 s of work on 4 KiB pages: how long `close` may have to wait for a running `prefault`.
PREFAULT_CHUNK_BYTES = 64 << 20
_MADV_POPULATE_WRITE = 23  # asm-generic/mman-common.h, Linux 5.14


@dataclass(frozen=True, slots=True)
class MappedRange:
    """Guest-physical [guest_start, +size_bytes) is mapped at host_address in this process."""

    guest_start: int
    size_bytes: int
    host_address: int


class GuestRam:
    """Maps a whole layout and owns the memfds from then on, also when the constructor fails.

    Raises LayoutError when `memfds` are not exactly the blocks of the layout, each another file of
    the right size, and MemfdError when one cannot be mapped.
    """

    def __init__(self, layout: RamLayout, memfds: Mapping[str, RamMemfd]) -> None:
        self.layout = layout
        self._memfds = dict(memfds)
        self._maps: dict[str, mmap.mmap] = {}
        self._closing = threading.Lock()  # prefault runs in a thread of its own
        with contextlib.ExitStack() as undo:
            for memfd in self._memfds.values():
                undo.callback(memfd.close)
            _check_memfds(layout, self._memfds)
            for block in layout.blocks:
                self._maps[block.id] = undo.enter_context(self._memfds[block.id].map())
            undo.callback(self._maps.clear)
            self._owned = undo.pop_all()
        addresses = {block_id: _host_address(area) for block_id, area in self._maps.items()}
        self.ranges = tuple(
            MappedRange(
                slot.guest_start, slot.size_bytes, addresses[slot.block_id] + slot.block_offset
            )
            for slot in layout.slots
        )

    def read(self, gpa: int, size_bytes: int) -> bytes:
        """Bytes of [gpa, gpa + size_bytes); may span slots. Raises RamAccessError."""
        return b"".join(
            self._map(piece.block_id)[piece.block_offset : piece.block_offset + piece.size_bytes]
            for piece in self.layout.find(gpa, size_bytes)
        )

    def write(self, gpa: int, data: bytes) -> None:
        """Put `data` at gpa; may span slots. Raises RamAccessError and then has written nothing."""
        done = 0
        for piece in self.layout.find(gpa, len(data)):
            end = piece.block_offset + piece.size_bytes
            self._map(piece.block_id)[piece.block_offset : end] = data[
                done : done + piece.size_bytes
            ]
            done += piece.size_bytes

    def read_u64(self, gpa: int) -> int:
        """Read the little-endian 64-bit word at gpa. Raises RamAccessError."""
        return int.from_bytes(self.read(gpa, 8), "little")

    def write_u64(self, gpa: int, value: int) -> None:
        """Put a little-endian 64-bit word at gpa. Raises RamAccessError."""
        self.write(gpa, value.to_bytes(8, "little"))

    def memfd(self, block_id: str) -> RamMemfd:
        """Return the memfd of a block, still owned here. Raises LayoutError for an unknown id."""
        try:
            return self._memfds[block_id]
        except KeyError:
            known = ", ".join(self._memfds)
            raise LayoutError(f"there is no RAM block '{block_id}'; known: {known}") from None

    def prefault(self) -> None:
        """Allocate and map every page now (0.2 to 1.6 s per GiB), keeping the contents.

        Blocks, so call it from a thread; other threads run meanwhile. Raises RamError when memory
        is short, the kernel is older than 5.14, or RAM is closed meanwhile.
        """
        # Not mmap.madvise: it holds the GIL for the whole call, which would stop the event loop.
        madvise = ctypes.CDLL(None, use_errno=True).madvise
        madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        for block in self.layout.blocks:
            for offset in range(0, block.size_bytes, PREFAULT_CHUNK_BYTES):
                size_bytes = min(PREFAULT_CHUNK_BYTES, block.size_bytes - offset)
                with self._closing:
                    start = _host_address(self._map(block.id)) + offset
                    failed = madvise(start, size_bytes, _MADV_POPULATE_WRITE) != 0
                if failed:
                    raise RamError(
                        f"RAM block '{block.id}' cannot be preallocated at offset {offset:#x}: "
                        f"{os.strerror(ctypes.get_errno())} (needs free memory and Linux 5.14)"
                    )

    def close(self) -> None:
        """Unmap and close everything; idempotent.

        Slow when RAM is populated (0.15 s per GiB), so never inside a blackout.
        """
        with self._closing:
            self._owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _map(self, block_id: str) -> mmap.mmap:
        try:
            return self._maps[block_id]
        except KeyError:
            raise RamAccessError(f"RAM block '{block_id}' is closed") from None


def _check_memfds(layout: RamLayout, memfds: Mapping[str, RamMemfd]) -> None:
    wanted = sorted(block.id for block in layout.blocks)
    if sorted(memfds) != wanted:
        raise LayoutError(
            f"the layout has the RAM blocks {', '.join(wanted)}, but the memfds are "
            f"{', '.join(sorted(memfds)) or 'none'}"
        )
    owner_of: dict[tuple[int, int], str] = {}
    for block in layout.blocks:
        identity = memfds[block.id].identity()
        if identity.size_bytes != block.size_bytes:
            raise LayoutError(
                f"RAM block '{block.id}' has {block.size_bytes:#x} bytes in the layout, but its "
                f"memfd has {identity.size_bytes:#x}"
            )
        other = owner_of.setdefault((identity.dev, identity.ino), block.id)
        if other != block.id:
            raise LayoutError(f"RAM blocks '{other}' and '{block.id}' are the same memfd")


def _host_address(area: mmap.mmap) -> int:
    # The temporary export is gone when this returns; a living one would make close() fail.
    return ctypes.addressof(ctypes.c_char.from_buffer(area))
