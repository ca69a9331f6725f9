"""Guest RAM for DMA: views into the shared mapping, every bound checked.

`GuestRam.read` copies and looks up a block by a search; a device that moves thousands of frames a
second needs the memory itself. A view is made only inside one mapped range, so no arithmetic on it
can leave guest RAM: Python checks the rest. Views come from `ctypes` rather than from the `mmap`
object, because an exported `mmap` refuses to close; so `close` must come before RAM is unmapped,
and the machine closes devices first.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

from guestram.ram import MappedRange
from vmm.devices.virtio.errors import VirtqueueError


class GuestMemory:
    """The guest-physical address space as a device sees it; made from `GuestRam.ranges`."""

    def __init__(self, ranges: Iterable[MappedRange]) -> None:
        self._ranges = tuple(
            (
                part.guest_start,
                part.guest_start + part.size_bytes,
                memoryview((ctypes.c_ubyte * part.size_bytes).from_address(part.host_address)).cast(
                    "B"
                ),
            )
            for part in ranges
        )

    def view(self, gpa: int, size_bytes: int) -> memoryview:
        """Writable bytes of [gpa, gpa + size_bytes), all in one RAM range.

        Raises VirtqueueError when a byte of it is not RAM, or when it crosses into another range.
        """
        end = gpa + size_bytes
        for start, stop, view in self._ranges:
            if start <= gpa and end <= stop:
                return view[gpa - start : end - start]
        raise VirtqueueError(f"guest-physical {gpa:#x}, length {size_bytes:#x}, is not all in RAM")

    def views(self, gpa: int, size_bytes: int) -> tuple[memoryview, ...]:
        """As `view`, in pieces: a buffer may span RAM ranges that touch."""
        end = gpa + size_bytes
        for start, stop, view in self._ranges:
            if start <= gpa and end <= stop:
                return (view[gpa - start : end - start],)
        return tuple(self._pieces(gpa, end))

    def _pieces(self, gpa: int, end: int) -> Iterable[memoryview]:
        at = gpa
        while at < end:
            for start, stop, view in self._ranges:
                if start <= at < stop:
                    upto = min(end, stop)
                    yield view[at - start : upto - start]
                    at = upto
                    break
            else:
                raise VirtqueueError(
                    f"guest-physical {gpa:#x}, length {end - gpa:#x}, is not all in RAM"
                )

    def close(self) -> None:
        """Forget the mapping; every later view fails. Views taken before must not be used."""
        self._ranges = ()
