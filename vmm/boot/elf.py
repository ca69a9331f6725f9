"""A small ELF reader: entry point and loadable segments of x86 executables, every bound checked.

Only what a loader needs (ELF specification 1.2, chapters 1 and 2, and the x86-64 psABI): the file
header and the program headers. Sections, symbols and relocations are ignored; a file that needs
relocation (ET_DYN) is refused.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
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
    file = _Readable(len(data), lambda offset, size: data[offset : offset + size])
    header = _read_header(file, name)
    loaded: list[ElfSegment] = []
    pvh_entry: int | None = None
    for segment in _program_headers(file, header, name):
        if segment.kind == _SEGMENT_NOTE:
            pvh_entry = pvh_entry or _pvh_entry_in(file, segment)
        elif segment.kind == _SEGMENT_LOAD and segment.memory_size:
            loaded.append(_load(file, segment))
    entry = header.entry
    if not any(s.address <= entry < s.address + s.size_bytes for s in loaded):
        places = ", ".join(f"{s.address:#x}+{s.size_bytes:#x}" for s in loaded) or "none"
        raise BootError(
            f"{name}: entry point {entry:#x} is in none of the loaded segments ({places}); "
            "physical and virtual addresses must be the same"
        )
    return ElfImage(header.bits, entry, tuple(loaded), pvh_entry)


def pvh_entry_of_file(fd: int) -> int | None:
    """The PVH entry of an ELF file, read without the rest of it; None if it has none.

    Raises OSError. Damage is not reported here: `parse_elf` says it in full.
    """
    file = _Readable(os.fstat(fd).st_size, lambda offset, size: os.pread(fd, size, offset))
    try:
        header = _read_header(file, "")
        notes = (s for s in _program_headers(file, header, "") if s.kind == _SEGMENT_NOTE)
        return next((entry for note in notes if (entry := _pvh_entry_in(file, note))), None)
    except BootError:
        return None


@dataclass(frozen=True, slots=True)
class _Readable:
    """An ELF file, in memory or not; `read` (offset, size) gives less at its end."""

    size_bytes: int
    read: Callable[[int, int], bytes]

    def unpack(self, layout: struct.Struct, offset: int, where: str) -> tuple[int, ...]:
        data = self.read(offset, layout.size) if offset < self.size_bytes else b""
        if len(data) < layout.size:
            raise BootError(
                f"{where}: needs {layout.size} bytes at {offset:#x}, the file has "
                f"{self.size_bytes:#x}"
            )
        return layout.unpack(data)


@dataclass(frozen=True, slots=True)
class _Header:
    bits: int
    entry: int
    phoff: int
    phentsize: int
    phnum: int


@dataclass(frozen=True, slots=True)
class _ProgramHeader:
    where: str  # for messages
    kind: int
    offset: int
    address: int  # physical
    file_size: int
    memory_size: int


def _read_header(file: _Readable, name: str) -> _Header:
    """Everything that has to be right before the program headers are looked at."""
    ident = file.read(0, _IDENT_SIZE_BYTES)
    if len(ident) < _IDENT_SIZE_BYTES or not is_elf(ident):
        raise BootError(f"{name}: not an ELF file (expected it to start with 7f 45 4c 46)")
    bits = {_CLASS_32: 32, _CLASS_64: 64}.get(ident[4])
    if bits is None:
        raise BootError(f"{name}: ELF class is {ident[4]}, expected 1 (32-bit) or 2 (64-bit)")
    if ident[5] != _DATA_LITTLE_ENDIAN:
        raise BootError(f"{name}: ELF data encoding is {ident[5]}, expected 1 (little-endian)")
    layout = _HEADER_64 if bits == 64 else _HEADER_32
    kind, machine, _, entry, phoff, _, _, _, phentsize, phnum = file.unpack(
        layout, _IDENT_SIZE_BYTES, f"{name}: ELF header"
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
    return _Header(bits, entry, phoff, phentsize, phnum)


def _program_headers(file: _Readable, header: _Header, name: str) -> Iterator[_ProgramHeader]:
    layout = _SEGMENT_64 if header.bits == 64 else _SEGMENT_32
    if header.phnum > _SEGMENTS_MAX:
        raise BootError(f"{name}: {header.phnum} program headers, expected at most {_SEGMENTS_MAX}")
    if header.phnum and header.phentsize < layout.size:
        raise BootError(
            f"{name}: program headers of {header.phentsize} bytes, expected at least {layout.size}"
        )
    for index in range(header.phnum):
        where = f"{name}: program header {index}"
        place = header.phoff + index * header.phentsize
        kind, offset, _, address, file_size, memory_size = file.unpack(layout, place, where)
        yield _ProgramHeader(where, kind, offset, address, file_size, memory_size)


def _load(file: _Readable, segment: _ProgramHeader) -> ElfSegment:
    end = segment.offset + segment.file_size
    if end > file.size_bytes:
        raise BootError(
            f"{segment.where}: wants bytes {segment.offset:#x}..{end:#x} of a file of "
            f"{file.size_bytes:#x} bytes; the file is cut off"
        )
    if segment.memory_size < segment.file_size:
        raise BootError(
            f"{segment.where}: memory size {segment.memory_size:#x} < file size "
            f"{segment.file_size:#x}"
        )
    data = file.read(segment.offset, segment.file_size)
    return ElfSegment(segment.address, data, segment.memory_size)


def _pvh_entry_in(file: _Readable, segment: _ProgramHeader) -> int | None:
    if segment.offset >= file.size_bytes:
        return None
    return _pvh_entry(file.read(segment.offset, min(segment.file_size, _NOTES_SIZE_MAX_BYTES)))


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
