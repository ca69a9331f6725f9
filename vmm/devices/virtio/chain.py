"""Descriptor chains of a split virtqueue (virtio 1.2, 2.7.5): from table entries to views of RAM.

Everything in a table is written by the guest and may be wrong or change while we look. So each
descriptor is read once, every index and address is checked, and the walk is bounded by the number
of entries: a chain that visits more of them than there are has a loop.
"""

from __future__ import annotations

import struct

from vmm.devices.virtio.errors import VirtqueueError
from vmm.devices.virtio.memory import GuestMemory

DESC_SIZE_BYTES = 16
DESC_NEXT, DESC_WRITE, DESC_INDIRECT = 1, 2, 4
# Entries of one indirect table. The specification says "queue size"; Linux takes more when a disk
# asks for more segments, and QEMU has this bound.
INDIRECT_ENTRIES_MAX = 1024
CHAIN_SIZE_MAX_BYTES = 1 << 32  # virtio 1.2, 2.7.5: a chain is at most 2^32 bytes long

_DESC = struct.Struct("<QIHH")  # address, length, flags, next


class Chain:
    """One request of the driver: buffers to read, then buffers to write."""

    __slots__ = ("head", "readable", "readable_size", "writable", "writable_size")

    def __init__(self, head: int) -> None:
        self.head = head
        self.readable: list[memoryview] = []
        self.writable: list[memoryview] = []
        self.readable_size = 0
        self.writable_size = 0

    def read(self, size_bytes: int) -> bytes:
        """Up to `size_bytes` from the start of what the driver wrote."""
        parts, left = [], size_bytes
        for view in self.readable:
            if left <= 0:
                break
            parts.append(bytes(view[:left]))
            left -= len(parts[-1])
        return b"".join(parts)

    def write(self, data: bytes | memoryview, at: int = 0) -> int:
        """Fill the driver's buffers from offset `at`; returns how much of `data` went in."""
        source, done = memoryview(data), 0
        for view in self.writable:
            if done == len(source):
                break
            if at >= len(view):
                at -= len(view)
                continue
            size = min(len(view) - at, len(source) - done)
            view[at : at + size] = source[done : done + size]
            done += size
            at = 0
        return done


def read_chain(memory: GuestMemory, table: memoryview, head: int, *, indirect: bool) -> Chain:
    """Follow the chain that begins at entry `head` of `table`.

    `indirect` says whether the driver may use indirect tables. Raises VirtqueueError.
    """
    chain = Chain(head)
    index, count = head, len(table) // DESC_SIZE_BYTES
    steps, nested = 0, False
    while True:
        if index >= count:
            raise VirtqueueError(f"descriptor {index} of a table of {count}")
        if steps == count:
            raise VirtqueueError(f"descriptor chain from {head} has a loop")
        steps += 1
        address, size, flags, following = _DESC.unpack_from(table, index * DESC_SIZE_BYTES)
        if flags & DESC_INDIRECT:
            if nested or not indirect or flags & DESC_NEXT:
                raise VirtqueueError(f"descriptor {index}: indirect is not allowed here")
            table = _indirect_table(memory, address, size)
            index, count, steps, nested = 0, size // DESC_SIZE_BYTES, 0, True
            continue
        _add(chain, memory, address, size, device_writes=bool(flags & DESC_WRITE))
        if not flags & DESC_NEXT:
            return chain
        index = following


def _add(
    chain: Chain, memory: GuestMemory, address: int, size: int, *, device_writes: bool
) -> None:
    if not size:
        raise VirtqueueError(f"zero sized buffer at {address:#x}")
    if device_writes:
        chain.writable += memory.views(address, size)
        chain.writable_size += size
    elif chain.writable:
        raise VirtqueueError("a buffer to read follows a buffer to write")
    else:
        chain.readable += memory.views(address, size)
        chain.readable_size += size
    if chain.readable_size + chain.writable_size > CHAIN_SIZE_MAX_BYTES:
        raise VirtqueueError(f"descriptor chain from {chain.head} has more than 2^32 bytes")


def _indirect_table(memory: GuestMemory, address: int, size: int) -> memoryview:
    """Return a copy: the driver may not change it, but could."""
    entries, rest = divmod(size, DESC_SIZE_BYTES)
    if rest or not 0 < entries <= INDIRECT_ENTRIES_MAX:
        raise VirtqueueError(
            f"indirect table of {size} bytes, expected 1..{INDIRECT_ENTRIES_MAX} descriptors of "
            f"{DESC_SIZE_BYTES}"
        )
    return memoryview(b"".join(memory.views(address, size)))
