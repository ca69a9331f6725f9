"""Recognising Linux kernels and reading what their images say about themselves.

A bzImage has a setup header (Documentation/arch/x86/boot.rst); a vmlinux is an ELF file with a note
that holds its PVH entry point (Xen's pvh.markdown, note type XEN_ELFNOTE_PHYS32_ENTRY).
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from vmm.boot.elf import pvh_entry_of_file
from vmm.errors import BootError

HEADER_OFFSET = 0x1F1
_MAGIC, _MAGIC_OFFSET = b"HdrS", 0x202
_HEADER_END_OFFSET = 0x201  # the byte that says how far the header goes, from 0x202
_VERSION_OFFSET = 0x206
_SETUP_SECTORS_OFFSET, _SETUP_SECTORS_DEFAULT = 0x1F1, 4
_LOAD_FLAGS_OFFSET = 0x211
_LOADED_HIGH = 0x01
_INITRD_MAX_OFFSET = 0x22C
_XLOAD_FLAGS_OFFSET = 0x236
_KERNEL_64 = 0x01
_COMMAND_LINE_SIZE_OFFSET = 0x238
_PREFERRED_ADDRESS_OFFSET = 0x258
_INIT_SIZE_OFFSET = 0x260
_HEADER_MIN_BYTES = 0x268
_VERSION_WITH_64_BIT_ENTRY = 0x20C
_SECTOR_BYTES = 512
_ENTRY_64_OFFSET = 0x200


@dataclass(frozen=True, slots=True)
class BzImage:
    """What a bzImage says of itself. Addresses are guest-physical."""

    setup_header: bytes  # from HEADER_OFFSET
    kernel: bytes  # the protected-mode part
    load_address: int
    memory_size_bytes: int  # it unpacks itself within this much from `load_address` on
    initrd_address_max: int
    command_line_max_bytes: int  # without the NUL

    @property
    def entry_64(self) -> int:
        """The 64-bit entry point."""
        return self.load_address + _ENTRY_64_OFFSET


def is_bzimage(data: bytes) -> bool:
    """Tell by the boot sector and what follows it."""
    return data[_MAGIC_OFFSET : _MAGIC_OFFSET + len(_MAGIC)] == _MAGIC


def is_linux_file(path: Path) -> bool:
    """Whether a file is a bzImage or a kernel with a PVH entry; False when it cannot be read."""
    try:
        with path.open("rb") as file:
            start = os.pread(file.fileno(), _HEADER_MIN_BYTES, 0)
            return is_bzimage(start) or pvh_entry_of_file(file.fileno()) is not None
    except OSError:
        return False  # reading it for the boot says what is wrong


def parse_bzimage(data: bytes, name: str) -> BzImage:
    """Raises BootError for a kernel without a 64-bit entry point, or a file that is cut off."""
    if len(data) < _HEADER_MIN_BYTES:
        raise BootError(f"{name}: a bzImage of {len(data)} bytes; the file is cut off")

    def field(layout: str, offset: int) -> int:
        value: int = struct.unpack_from(layout, data, offset)[0]
        return value

    version = field("<H", _VERSION_OFFSET)
    flags = field("<H", _XLOAD_FLAGS_OFFSET)
    if version < _VERSION_WITH_64_BIT_ENTRY or not flags & _KERNEL_64:
        raise BootError(
            f"{name}: a Linux kernel with boot protocol {version >> 8}.{version & 0xFF:02} and "
            "without a 64-bit entry point; expected a 64-bit kernel, 3.8 or newer"
        )
    if not field("<B", _LOAD_FLAGS_OFFSET) & _LOADED_HIGH:
        raise BootError(f"{name}: a zImage, made for the first megabyte; expected a bzImage")
    setup_sectors = field("<B", _SETUP_SECTORS_OFFSET) or _SETUP_SECTORS_DEFAULT
    kernel = data[(setup_sectors + 1) * _SECTOR_BYTES :]
    if len(kernel) <= _ENTRY_64_OFFSET:
        raise BootError(f"{name}: nothing follows its {setup_sectors} setup sectors; it is cut off")
    return BzImage(
        setup_header=data[HEADER_OFFSET : _MAGIC_OFFSET + data[_HEADER_END_OFFSET]],
        kernel=kernel,
        load_address=field("<Q", _PREFERRED_ADDRESS_OFFSET),
        memory_size_bytes=max(field("<I", _INIT_SIZE_OFFSET), len(kernel)),
        initrd_address_max=field("<I", _INITRD_MAX_OFFSET),
        command_line_max_bytes=field("<I", _COMMAND_LINE_SIZE_OFFSET),
    )
