"""ELF files made by hand."""

from __future__ import annotations

import struct


def make_elf(
    bits: int,
    *,
    entry: int = 0x10_0000,
    segments: tuple[tuple[int, bytes, int], ...] = ((0x10_0000, b"\xf4" * 16, 32),),
    machine: int | None = None,
    kind: int = 2,
    pvh_entry: int | None = None,
) -> bytes:
    """`segments` are (physical address, data, size in memory)."""
    wide = bits == 64
    header_size, entry_size = (64, 56) if wide else (52, 32)
    notes = [] if pvh_entry is None else [(0, _notes(pvh_entry), 0)]
    everything = [(1, *segment) for segment in segments] + [(4, *note) for note in notes]
    ident = b"\x7fELF" + bytes((2 if wide else 1, 1, 1)) + bytes(9)
    numbers = (kind, machine or (62 if wide else 3), 1, entry, header_size, 0, 0, header_size)
    header = ident + struct.pack("<HHIQQQIH" if wide else "<HHIIIIIH", *numbers)
    header += struct.pack("<HHHHH", entry_size, len(everything), 0, 0, 0)
    offset = header_size + entry_size * len(everything)
    table, body = b"", b""
    for segment_kind, address, data, size in everything:
        place = (offset + len(body), address, address, len(data), size)
        if wide:
            table += struct.pack("<IIQQQQQQ", segment_kind, 5, *place, 0)
        else:
            table += struct.pack("<IIIIIIII", segment_kind, *place, 5, 0)
        body += data
    return header + table + body


def _notes(pvh_entry: int) -> bytes:
    """Another owner's note first, with a name and a content that need padding."""
    other = struct.pack("<III", 6, 5, 18) + b"Other\0".ljust(8, b"\0") + b"12345".ljust(8, b"\0")
    return other + struct.pack("<III4sI", 4, 4, 18, b"Xen\0", pvh_entry)
