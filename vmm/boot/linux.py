"""Booting an unmodified Linux kernel, without firmware.

    bzImage          64-bit boot protocol (Documentation/arch/x86/boot.rst): the zero page in rsi
    vmlinux          PVH (Xen's pvh.markdown): flat 32-bit mode, the start info in ebx

Only vCPU 0 starts; the kernel finds the others in the ACPI tables and starts them with INIT and
SIPI. Low memory then holds, besides what direct boot has at the same places:

    0x01000  GDT
    0x02000  the zero page, or start info with its memory map and module list
    0x10000  page tables (bzImage only)
    0x60000  command line
    0xe0000  ACPI tables
    initrd   as high below the PCI hole as the kernel allows
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from guestram.layout import PC_HOLE_END, PC_HOLE_START
from vmm.accel.x86_state import CpuState
from vmm.boot.acpi import TABLES_ADDRESS, AcpiMachine, acpi_tables
from vmm.boot.cpumodes import (
    GDT_ADDRESS,
    PAGE_TABLES_ADDRESS,
    enter_mode,
    gdt,
    identity_page_tables,
)
from vmm.boot.elf import ElfImage
from vmm.boot.linux_image import HEADER_OFFSET, BzImage
from vmm.boot.loader import Loaded, elf_pieces
from vmm.boot.plan import BootPiece
from vmm.errors import BootError

_INFO_ADDRESS = 0x2000
_PAGE = 0x1000
_COMMAND_LINE_ADDRESS = 0x6_0000
_COMMAND_LINE_MAX_BYTES = 0xFFFF  # up to where a BIOS would have its data
_MAP_GIB = 4  # the kernel, the zero page and the initrd lie below 4 GiB
_INITRD_BELOW = PC_HOLE_START

# Memory map (e820): everything but the top of conventional memory, the video hole and the BIOS.
_CONVENTIONAL_END = 0x9_FC00
_FIRST_MIB = 0x10_0000
_USABLE, _RESERVED, _ACPI_RECLAIMABLE = 1, 2, 3

# The zero page (struct boot_params).
_ZP_SIZE_BYTES = 0x1000
_ZP_RSDP, _ZP_E820_COUNT, _ZP_E820 = 0x070, 0x1E8, 0x2D0
_ZP_LOADER_TYPE, _LOADER_UNDEFINED = 0x210, 0xFF
_ZP_INITRD, _ZP_COMMAND_LINE = 0x218, 0x228
_E820_ENTRY = struct.Struct("<QQI")

# PVH's struct hvm_start_info, version 1, and what it points to.
_PVH_MAGIC = 0x336E_C578
_PVH_INFO = struct.Struct("<IIIIQQQQII")
_PVH_MODULE = struct.Struct("<QQQQ")
_PVH_MAP_ENTRY = struct.Struct("<QQII")


@dataclass(frozen=True, slots=True)
class LinuxBoot:
    """What is booted besides the kernel itself."""

    command_line: str
    initrd: bytes | None
    ram_bytes: int
    machine: AcpiMachine


@dataclass(frozen=True, slots=True)
class _MemoryArea:
    start: int
    size_bytes: int
    kind: int


@dataclass(frozen=True, slots=True)
class _Start:
    """The mode and the registers of an entry point."""

    bits: int
    registers: Mapping[str, int]

    def apply(self, _index: int, base: CpuState) -> CpuState:
        """See enter_mode."""
        return enter_mode(base, self.bits, self.registers)


def boot_bzimage(image: BzImage, name: str, boot: LinuxBoot) -> Loaded:
    """Pieces and the start of vCPU 0. Raises BootError for what does not fit."""
    kernel_end = image.load_address + image.memory_size_bytes
    _check_kernel_fits(kernel_end, name, boot)
    initrd = _initrd(boot, kernel_end, image.initrd_address_max + 1)
    text = _command_line(boot, image.command_line_max_bytes)
    pieces = (
        BootPiece.of(name, image.load_address, image.kernel),
        *_common(boot, text, initrd),
        BootPiece.of("the zero page", _INFO_ADDRESS, _zero_page(image, boot, initrd)),
        BootPiece.of("the GDT", GDT_ADDRESS, gdt(64)),
        BootPiece.of(
            "the page tables",
            PAGE_TABLES_ADDRESS,
            identity_page_tables(_MAP_GIB, PAGE_TABLES_ADDRESS),
        ),
    )
    start = _Start(64, {"rip": image.entry_64, "rsi": _INFO_ADDRESS})
    return Loaded(pieces, ((0, start),))


def boot_pvh(image: ElfImage, pvh_entry: int, name: str, boot: LinuxBoot) -> Loaded:
    """Pieces and the start of vCPU 0. Raises BootError for what does not fit."""
    segments = elf_pieces(image, name)
    kernel_end = max(segment.end for segment in segments)
    _check_kernel_fits(kernel_end, name, boot)
    initrd = _initrd(boot, kernel_end, _INITRD_BELOW)
    text = _command_line(boot, _COMMAND_LINE_MAX_BYTES)
    pieces = (
        *segments,
        *_common(boot, text, initrd),
        BootPiece.of("the start info", _INFO_ADDRESS, _start_info(boot, initrd)),
        BootPiece.of("the GDT", GDT_ADDRESS, gdt(32)),
    )
    return Loaded(pieces, ((0, _Start(32, {"rip": pvh_entry, "rbx": _INFO_ADDRESS})),))


def _common(boot: LinuxBoot, text: bytes, initrd: BootPiece | None) -> tuple[BootPiece, ...]:
    pieces = (
        BootPiece.of("the command line", _COMMAND_LINE_ADDRESS, text + b"\0"),
        BootPiece.of("the ACPI tables", TABLES_ADDRESS, acpi_tables(boot.machine)),
    )
    return pieces if initrd is None else (*pieces, initrd)


def _command_line(boot: LinuxBoot, limit: int) -> bytes:
    text = boot.command_line.encode()
    limit = min(limit, _COMMAND_LINE_MAX_BYTES)
    if len(text) > limit or b"\0" in text:
        raise BootError(
            f"-append: this kernel takes at most {limit} bytes without NUL, got {len(text)}"
        )
    return text


def _low_end(boot: LinuxBoot) -> int:
    return min(boot.ram_bytes, PC_HOLE_START)


def _check_kernel_fits(kernel_end: int, name: str, boot: LinuxBoot) -> None:
    if kernel_end > _low_end(boot):
        raise BootError(
            f"{name} needs memory up to {kernel_end:#x}, RAM ends at {_low_end(boot):#x}; give the "
            "guest more memory (-m)"
        )


def _initrd(boot: LinuxBoot, kernel_end: int, below: int) -> BootPiece | None:
    """As high as the kernel can reach, so that it lies clear of what the kernel unpacks."""
    if boot.initrd is None:
        return None
    end = min(_low_end(boot), below)
    address = (end - len(boot.initrd)) & -_PAGE
    if address < kernel_end:
        raise BootError(
            f"the initrd ({len(boot.initrd)} bytes) does not fit between the end of the kernel's "
            f"memory, {kernel_end:#x}, and {end:#x}; give the guest more memory (-m)"
        )
    return BootPiece.of("the initrd", address, boot.initrd)


def _memory_map(boot: LinuxBoot) -> tuple[_MemoryArea, ...]:
    low = _low_end(boot)
    areas = (
        _MemoryArea(0, _CONVENTIONAL_END, _USABLE),
        _MemoryArea(_CONVENTIONAL_END, TABLES_ADDRESS - _CONVENTIONAL_END, _RESERVED),
        _MemoryArea(TABLES_ADDRESS, _FIRST_MIB - TABLES_ADDRESS, _ACPI_RECLAIMABLE),
        _MemoryArea(_FIRST_MIB, low - _FIRST_MIB, _USABLE),
    )
    if boot.ram_bytes > low:
        return (*areas, _MemoryArea(PC_HOLE_END, boot.ram_bytes - low, _USABLE))
    return areas


def _zero_page(image: BzImage, boot: LinuxBoot, initrd: BootPiece | None) -> bytes:
    page = bytearray(_ZP_SIZE_BYTES)
    page[HEADER_OFFSET : HEADER_OFFSET + len(image.setup_header)] = image.setup_header
    page[_ZP_LOADER_TYPE] = _LOADER_UNDEFINED
    struct.pack_into("<Q", page, _ZP_RSDP, TABLES_ADDRESS)
    struct.pack_into("<I", page, _ZP_COMMAND_LINE, _COMMAND_LINE_ADDRESS)
    if initrd is not None:
        struct.pack_into("<II", page, _ZP_INITRD, initrd.address, initrd.size_bytes)
    areas = _memory_map(boot)
    page[_ZP_E820_COUNT] = len(areas)
    for index, area in enumerate(areas):
        offset = _ZP_E820 + index * _E820_ENTRY.size
        _E820_ENTRY.pack_into(page, offset, area.start, area.size_bytes, area.kind)
    return bytes(page)


def _start_info(boot: LinuxBoot, initrd: BootPiece | None) -> bytes:
    areas = _memory_map(boot)
    map_address = _INFO_ADDRESS + _PVH_INFO.size
    modules_address = map_address + len(areas) * _PVH_MAP_ENTRY.size
    modules = b""
    if initrd is not None:
        modules = _PVH_MODULE.pack(initrd.address, initrd.size_bytes, 0, 0)
    info = _PVH_INFO.pack(
        _PVH_MAGIC,
        1,  # version
        0,  # flags
        0 if initrd is None else 1,
        modules_address if initrd is not None else 0,
        _COMMAND_LINE_ADDRESS,
        TABLES_ADDRESS,
        map_address,
        len(areas),
        0,
    )
    entries = (_PVH_MAP_ENTRY.pack(a.start, a.size_bytes, a.kind, 0) for a in areas)
    return info + b"".join(entries) + modules
