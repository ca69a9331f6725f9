"""A small ELF reader: entry point and loadable segments of x86 executables, every bound checked.

Only what a loader needs (ELF specification 1.2, chapters 1 and 2, and the x86-64 psABI): the file
header and the program headers. Sections, symbols and relocations are ignored; a file that needs
relocation (ET_DYN) is refused.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from vmm.errors import BootError

MAGIC = b"\x7fELF"

_IDENT_SIZE_BYTES = 16
_CLASS_32, _CLASS_64 = 1, 2
_DATA_LITTLE_ENDIAN = 1
_TYPE_EXECUTABLE = 2
_MACHINE_386, _MACHINE_X86_64 = 3, 62
_SEGMENT_LOAD, _SEGMENT_NOTE = 1, 4
# After e_ident: type machine version entry phoff shoff flags ehsize phentsize phnum
_HEADER_32 = struct.Struct("<HHIIIIIHHH")
_HEADER_64 = struct.Struct("<HHIQQQIHHH")
# 32-bit: type offset vaddr paddr filesz memsz; 64-bit has flags after type.
_SEGMENT_32 = struct.Struct("<IIIIII8x")
_SEGMENT_64 = struct.Struct("<I4xQQQQQ8x")
_FILE_OFFSET_MAX = 1 << 62  # what pread takes
_SEGMENTS_MAX = 64  # a guest image has a handful; the field allows 65535
_XEN_NOTE_OWNER = b"Xen\0"
_XEN_NOTE_PHYS32_ENTRY = 18
_NOTE = struct.Struct("<III")  # name size, content size, type
_NOTES_SIZE_MAX_BYTES = 1 << 20  # a kernel has a few hundred bytes of notes


@dataclass(frozen=True, slots=True)
class ElfSegment:
    """One PT_LOAD: `data` goes to `address`, zeros follow up to `size_bytes`."""

    address: int  # physical
    data: bytes
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ElfImage:
    """An executable. `entry` lies inside one of the segments."""

    bits: int  # 32 or 64
    entry: int
    segments: tuple[ElfSegment, ...]
    pvh_entry: int | None  # where a kernel such as Linux's vmlinux is entered in flat 32-bit mode


def is_elf(data: bytes) -> bool:
    """Tell whether the file starts as an ELF file."""
    return data[: len(MAGIC)] == MAGIC


def parse_elf(data: bytes, name: str) -> ElfImage:
    """Read an ELF executable for x86; `name` is used in messages.

    Raises BootError that says what is wrong and what was expected.
    """
    if len(data) < _IDENT_SIZE_BYTES or not is_elf(data):
        raise BootError(f"{name}: not an ELF file (expected it to start with 7f 45 4c 46)")
    bits = {_CLASS_32: 32, _CLASS_64: 64}.get(data[4])
    if bits is None:
        raise BootError(f"{name}: ELF class is {data[4]}, expected 1 (32-bit) or 2 (64-bit)")
    if data[5] != _DATA_LITTLE_ENDIAN:
        raise BootError(f"{name}: ELF data encoding is {data[5]}, expected 1 (little-endian)")
    header = _HEADER_64 if bits == 64 else _HEADER_32
    kind, machine, _, entry, phoff, _, _, _, phentsize, phnum = _unpack(
        header, data, _IDENT_SIZE_BYTES, f"{name}: ELF header"
    )
    expected_machine = _MACHINE_X86_64 if bits == 64 else _MACHINE_386
    if machine != expected_machine:
        raise BootError(
            f"{name}: {bits}-bit ELF for machine {machine}, expected {expected_machine} (x86)"
        )
    if kind != _TYPE_EXECUTABLE:
        raise BootError(
            f"{name}: ELF type is {kind}, expected 2 (a statically placed executable); link it "
            "with -static -no-pie"
        )
    segments, pvh_entry = _segments(data, name, bits, phoff, phentsize, phnum)
    if not any(s.address <= entry < s.address + s.size_bytes for s in segments):
        places = ", ".join(f"{s.address:#x}+{s.size_bytes:#x}" for s in segments) or "none"
        raise BootError(
            f"{name}: entry point {entry:#x} is in none of the loaded segments ({places}); "
            "physical and virtual addresses must be the same"
        )
    return ElfImage(bits, entry, segments, pvh_entry)


def _segments(
    data: bytes, name: str, bits: int, phoff: int, phentsize: int, phnum: int
) -> tuple[tuple[ElfSegment, ...], int | None]:
    layout = _SEGMENT_64 if bits == 64 else _SEGMENT_32
    if phnum > _SEGMENTS_MAX:
        raise BootError(f"{name}: {phnum} program headers, expected at most {_SEGMENTS_MAX}")
    if phnum and phentsize < layout.size:
        raise BootError(
            f"{name}: program headers of {phentsize} bytes, expected at least {layout.size}"
        )
    loaded: list[ElfSegment] = []
    pvh_entry: int | None = None
    for index in range(phnum):
        where = f"{name}: program header {index}"
        kind, offset, _, address, file_size, memory_size = _unpack(
            layout, data, phoff + index * phentsize, where
        )
        if kind == _SEGMENT_NOTE:
            notes = data[offset : offset + min(file_size, _NOTES_SIZE_MAX_BYTES)]
            pvh_entry = pvh_entry or _pvh_entry(notes)
        if kind != _SEGMENT_LOAD or memory_size == 0:
            continue
        if offset + file_size > len(data):
            raise BootError(
                f"{where}: wants bytes {offset:#x}..{offset + file_size:#x} of a file of "
                f"{len(data):#x} bytes; the file is cut off"
            )
        if memory_size < file_size:
            raise BootError(f"{where}: memory size {memory_size:#x} < file size {file_size:#x}")
        loaded.append(ElfSegment(address, data[offset : offset + file_size], memory_size))
    return tuple(loaded), pvh_entry


def pvh_entry_of_file(fd: int) -> int | None:
    """The PVH entry of a 64-bit ELF file, read without the rest of it; None if it has none.

    Raises OSError. Damage is not reported here: `parse_elf` says it in full.
    """
    start = os.pread(fd, _IDENT_SIZE_BYTES + _HEADER_64.size, 0)
    if len(start) < _IDENT_SIZE_BYTES + _HEADER_64.size or not is_elf(start):
        return None
    if start[4] != _CLASS_64:
        return None
    phoff, phentsize, phnum = (
        _HEADER_64.unpack_from(start, _IDENT_SIZE_BYTES)[i] for i in (4, 8, 9)
    )
    for index in range(min(phnum, _SEGMENTS_MAX)):
        place = phoff + index * phentsize
        segment = os.pread(fd, _SEGMENT_64.size, place) if place < _FILE_OFFSET_MAX else b""
        if len(segment) < _SEGMENT_64.size:
            return None
        kind, offset, _, _, file_size, _ = _SEGMENT_64.unpack(segment)
        if kind == _SEGMENT_NOTE and offset < _FILE_OFFSET_MAX:
            notes = os.pread(fd, min(file_size, _NOTES_SIZE_MAX_BYTES), offset)
            if (entry := _pvh_entry(notes)) is not None:
                return entry
    return None


def _pvh_entry(notes: bytes) -> int | None:
    """Content of the note of Xen's type PHYS32_ENTRY: 4 or 8 bytes, little-endian."""
    offset = 0
    while offset + _NOTE.size <= len(notes):
        name_size, content_size, kind = _NOTE.unpack_from(notes, offset)
        name_start = offset + _NOTE.size
        content_start = name_start + (name_size + 3 & ~3)
        owner = notes[name_start : name_start + name_size]
        content = notes[content_start : content_start + content_size]
        if kind == _XEN_NOTE_PHYS32_ENTRY and owner == _XEN_NOTE_OWNER and len(content) in (4, 8):
            return int.from_bytes(content, "little")
        offset = content_start + (content_size + 3 & ~3)
    return None


def _unpack(layout: struct.Struct, data: bytes, offset: int, where: str) -> tuple[int, ...]:
    if offset + layout.size > len(data):
        raise BootError(
            f"{where}: needs {layout.size} bytes at {offset:#x}, the file has {len(data):#x}"
        )
    return layout.unpack_from(data, offset)
