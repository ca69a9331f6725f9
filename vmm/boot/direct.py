"""Direct boot: the VMM itself puts the CPU into 64-bit (or flat 32-bit) mode; there is no firmware.

Every vCPU starts at the image's entry point at CPL 0, interrupts off, with

    rdi (edi)  guest-physical address of the boot info
    rsi (esi)  index of this vCPU
    rsp (esp)  top of this vCPU's own 4 KiB stack

in 64-bit mode over an identity map of all RAM, or in 32-bit mode with flat segments and paging off.
Low memory then holds (guest-physical):

    0x01000  GDT: null, 0x08 code, 0x10 data, 0x18 TSS
    0x02000  boot info, 64 bytes
    0x03000  command line, up to 4095 bytes, NUL-terminated
    0x10000  page tables: PML4, PDPT, then one page directory for each GiB, 2 MiB pages
    0x60000  stacks, one page for each vCPU; up to 0x80000
    0x100000 usual place of the image

Boot info, little-endian: u64 magic "CPRBOOT1", u32 version, u32 size, u64 RAM below 4 GiB, u64 RAM
above 4 GiB (both in bytes), u64 end of the identity map, u32 vCPUs, u32 command-line length, u64
command-line address, u16 clock port (8 ports for each vCPU, see devices/clock.py), u16 serial port
(0: none), u32 reserved.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from guestram.layout import PC_HOLE_END, PC_HOLE_START
from vmm.accel.x86_state import CpuState, Segment
from vmm.boot.plan import BootPiece
from vmm.errors import BootError

GDT_ADDRESS = 0x1000
BOOT_INFO_ADDRESS = 0x2000
COMMAND_LINE_ADDRESS = 0x3000
PAGE_TABLES_ADDRESS = 0x1_0000
STACKS_ADDRESS = 0x6_0000
STACK_SIZE_BYTES = 0x1000
IMAGE_ADDRESS = 0x10_0000
MAX_VCPUS = 32  # stacks end at 0x80000, and the built-in guest has as many report slots
COMMAND_LINE_MAX_BYTES = 4095  # one page with its NUL

BOOT_INFO_MAGIC = int.from_bytes(b"CPRBOOT1", "little")
BOOT_INFO_VERSION = 1
_BOOT_INFO = struct.Struct("<QIIQQQIIQHHI")

_PAGE = 0x1000
_LARGE_PAGE = 0x20_0000
_GIB = 1 << 30
_MAP_MIN_GIB = 4  # always reach the device addresses below 4 GiB
_MAP_MAX_GIB = (STACKS_ADDRESS - PAGE_TABLES_ADDRESS) // _PAGE - 2  # as many directories as fit: 78
_PRESENT_WRITABLE = 0x3
_LARGE = 0x80
_PD_ENTRIES = 512

_CODE, _DATA, _TSS = 0x08, 0x10, 0x18
_GDT = struct.pack(
    "<5Q",
    0,
    0x00AF_9B00_0000_FFFF,  # 64-bit code, DPL 0, accessed
    0x00CF_9300_0000_FFFF,  # data, DPL 0, accessed
    0x0000_8B00_0000_FFFF,  # 64-bit TSS, busy, base 0: there only because VT-x wants a valid TR
    0,
)
_CODE_32_DESCRIPTOR = 0x00CF_9B00_0000_FFFF
# Access rights as in x86_state: type, S, P, L or D/B, G.
_CODE_64_RIGHTS, _CODE_32_RIGHTS, _DATA_RIGHTS, _TSS_RIGHTS = 0xA09B, 0xC09B, 0xC093, 0x008B
_LIMIT_4G = 0xFFFF_FFFF

_CR0_PE_ET, _CR0_PG = 0x11, 0x8000_0000
_CR0_LONG = _CR0_PG | 0x5_0033  # with AM, WP, NE, MP
_CR4_PAE_FXSR = 0x620
_EFER_LONG = 0x500  # LME, LMA
_MSR_EFER = 0xC000_0080
_RFLAGS_RESET = 0x2


@dataclass(frozen=True, slots=True)
class DirectStart:
    """Start at `entry` in 64-bit or flat 32-bit mode with the direct-boot registers."""

    entry: int
    bits: int

    def apply(self, index: int, base: CpuState) -> CpuState:
        """See the module's text for the registers."""
        long_mode = self.bits == 64
        code_rights = _CODE_64_RIGHTS if long_mode else _CODE_32_RIGHTS
        data: Segment = (_DATA, 0, _LIMIT_4G, _DATA_RIGHTS)
        efer = _EFER_LONG if long_mode else 0
        return replace(
            base,
            general={
                **dict.fromkeys(base.general, 0),
                "rip": self.entry,
                "rflags": _RFLAGS_RESET,
                "rdi": BOOT_INFO_ADDRESS,
                "rsi": index,
                "rsp": STACKS_ADDRESS + (index + 1) * STACK_SIZE_BYTES,
            },
            segments={
                **base.segments,
                "cs": (_CODE, 0, _LIMIT_4G, code_rights),
                **dict.fromkeys(("ds", "es", "fs", "gs", "ss"), data),
                "tr": (_TSS, 0, 0xFFFF, _TSS_RIGHTS),
            },
            gdt=(GDT_ADDRESS, len(_GDT) - 1),
            idt=(0, 0),
            control={
                **base.control,
                "cr0": _CR0_LONG if long_mode else _CR0_PE_ET,
                "cr3": PAGE_TABLES_ADDRESS if long_mode else 0,
                "cr4": _CR4_PAE_FXSR if long_mode else 0,
                "efer": efer,
            },
            # Accelerators may list EFER among the MSRs as well; the two must agree.
            msrs={**base.msrs, _MSR_EFER: efer} if _MSR_EFER in base.msrs else base.msrs,
            mp_state="runnable",
        )


def direct_boot_pieces(
    *,
    bits: int,
    ram_bytes: int,
    vcpu_count: int,
    command_line: str,
    clock_port: int,
    serial_port: int,
) -> tuple[BootPiece, ...]:
    """The low-memory structures of a direct boot.

    Raises BootError for too many vCPUs or too long a command line.
    """
    if vcpu_count > MAX_VCPUS:
        raise BootError(f"direct boot starts at most {MAX_VCPUS} vCPUs, -smp asks for {vcpu_count}")
    text = command_line.encode()
    if len(text) > COMMAND_LINE_MAX_BYTES or b"\0" in text:
        raise BootError(
            f"-append: expected at most {COMMAND_LINE_MAX_BYTES} bytes without NUL, got {len(text)}"
        )
    low = min(ram_bytes, PC_HOLE_START)
    map_gib = _map_gib(ram_bytes)
    info = _BOOT_INFO.pack(
        BOOT_INFO_MAGIC,
        BOOT_INFO_VERSION,
        _BOOT_INFO.size,
        low,
        ram_bytes - low,
        map_gib * _GIB,
        vcpu_count,
        len(text),
        COMMAND_LINE_ADDRESS,
        clock_port,
        serial_port,
        0,
    )
    stacks = BootPiece("the stacks", STACKS_ADDRESS, b"", vcpu_count * STACK_SIZE_BYTES)
    return (
        BootPiece.of("the GDT", GDT_ADDRESS, _gdt(bits)),
        BootPiece.of("the boot info", BOOT_INFO_ADDRESS, info),
        BootPiece.of("the command line", COMMAND_LINE_ADDRESS, text + b"\0"),
        BootPiece.of("the page tables", PAGE_TABLES_ADDRESS, identity_page_tables(map_gib)),
        stacks,
    )


def identity_page_tables(gib: int) -> bytes:
    """PML4, PDPT and page directories, for PAGE_TABLES_ADDRESS, that map 0..gib GiB to itself."""
    pdpt = PAGE_TABLES_ADDRESS + _PAGE
    directories = pdpt + _PAGE
    pml4 = struct.pack("<Q", pdpt | _PRESENT_WRITABLE).ljust(_PAGE, b"\0")
    entries = [directories + index * _PAGE | _PRESENT_WRITABLE for index in range(gib)]
    pdpt_page = struct.pack(f"<{gib}Q", *entries).ljust(_PAGE, b"\0")
    pages = range(0, gib * _GIB, _LARGE_PAGE)
    flags = _LARGE | _PRESENT_WRITABLE
    table = struct.pack(f"<{gib * _PD_ENTRIES}Q", *(address | flags for address in pages))
    return pml4 + pdpt_page + table


def _map_gib(ram_bytes: int) -> int:
    """GiB to map: all RAM where it ends, at least 4, at most what the tables' place holds."""
    low = min(ram_bytes, PC_HOLE_START)
    end = PC_HOLE_END + ram_bytes - low if ram_bytes > low else low
    return min(max(_MAP_MIN_GIB, -(-end // _GIB)), _MAP_MAX_GIB)


def _gdt(bits: int) -> bytes:
    if bits == 64:
        return _GDT
    return _GDT[:8] + struct.pack("<Q", _CODE_32_DESCRIPTOR) + _GDT[16:]
