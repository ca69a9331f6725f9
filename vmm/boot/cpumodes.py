"""The two protected CPU modes in which code is entered without firmware, and what they stand on.

64-bit mode over an identity map, or flat 32-bit mode with paging off: CPL 0, interrupts off, all
segments 0 to 4 GiB. Both use one GDT with the selectors of Linux's boot protocol (0x10 code, 0x18
data; Documentation/arch/x86/boot.rst), which no other code we start cares about.
"""

from __future__ import annotations

import struct
import types
from collections.abc import Mapping
from dataclasses import replace

from vmm.accel.x86_state import CpuState, Segment

GDT_ADDRESS = 0x1000
GDT_SIZE_BYTES = 6 * 8
PAGE_TABLES_ADDRESS = 0x1_0000
_CODE, _DATA, _TSS = 0x10, 0x18, 0x20
_CODE_64_DESCRIPTOR = 0x00AF_9B00_0000_FFFF
_CODE_32_DESCRIPTOR = 0x00CF_9B00_0000_FFFF
_DATA_DESCRIPTOR = 0x00CF_9300_0000_FFFF
_TSS_DESCRIPTOR = 0x0000_8B00_0000_FFFF  # busy, base 0: there only because VT-x wants a valid TR
# Access rights as in x86_state: type, S, P, L or D/B, G.
_CODE_64_RIGHTS, _CODE_32_RIGHTS, _DATA_RIGHTS, _TSS_RIGHTS = 0xA09B, 0xC09B, 0xC093, 0x008B
_LIMIT_4G = 0xFFFF_FFFF

_CR0_PE_ET, _CR0_PG = 0x11, 0x8000_0000
_CR0_LONG = _CR0_PG | 0x5_0033  # with AM, WP, NE, MP
_CR4_PAE_FXSR = 0x620
_EFER_LONG = 0x500  # LME, LMA
_LONG_MODE = types.MappingProxyType(
    {"cr0": _CR0_LONG, "cr3": PAGE_TABLES_ADDRESS, "cr4": _CR4_PAE_FXSR, "efer": _EFER_LONG}
)
_FLAT_MODE = types.MappingProxyType({"cr0": _CR0_PE_ET, "cr3": 0, "cr4": 0, "efer": 0})
_MSR_EFER = 0xC000_0080
_RFLAGS_RESET = 0x2

_PAGE = 0x1000
_LARGE_PAGE = 0x20_0000
_GIB = 1 << 30
_PRESENT_WRITABLE = 0x3
_LARGE = 0x80
_PD_ENTRIES = 512


def enter_mode(base: CpuState, bits: int, registers: Mapping[str, int]) -> CpuState:
    """`base` in 64-bit or flat 32-bit mode with `registers` (rip among them), all others zero.

    The GDT and, for 64-bit mode, the page tables lie at their addresses here.
    """
    code_rights, control = (
        (_CODE_64_RIGHTS, _LONG_MODE) if bits == 64 else (_CODE_32_RIGHTS, _FLAT_MODE)
    )
    data: Segment = (_DATA, 0, _LIMIT_4G, _DATA_RIGHTS)
    # Accelerators may list EFER among the MSRs as well; the two must agree.
    has_efer = _MSR_EFER in base.msrs
    return replace(
        base,
        general={**dict.fromkeys(base.general, 0), "rflags": _RFLAGS_RESET, **registers},
        segments={
            **base.segments,
            "cs": (_CODE, 0, _LIMIT_4G, code_rights),
            **dict.fromkeys(("ds", "es", "fs", "gs", "ss"), data),
            "tr": (_TSS, 0, 0xFFFF, _TSS_RIGHTS),
        },
        gdt=(GDT_ADDRESS, GDT_SIZE_BYTES - 1),
        idt=(0, 0),
        control={**base.control, **control},
        msrs={**base.msrs, _MSR_EFER: control["efer"]} if has_efer else base.msrs,
        mp_state="runnable",
    )


def gdt(bits: int) -> bytes:
    """The GDT of one of the modes; GDT_SIZE_BYTES."""
    code = _CODE_64_DESCRIPTOR if bits == 64 else _CODE_32_DESCRIPTOR
    return struct.pack("<6Q", 0, 0, code, _DATA_DESCRIPTOR, _TSS_DESCRIPTOR, 0)


def identity_page_tables(gib: int, address: int) -> bytes:
    """PML4, PDPT and page directories, to be put at `address`, that map 0..gib GiB to itself."""
    pdpt = address + _PAGE
    directories = pdpt + _PAGE
    pml4 = struct.pack("<Q", pdpt | _PRESENT_WRITABLE).ljust(_PAGE, b"\0")
    entries = [directories + index * _PAGE | _PRESENT_WRITABLE for index in range(gib)]
    pdpt_page = struct.pack(f"<{gib}Q", *entries).ljust(_PAGE, b"\0")
    pages = range(0, gib * _GIB, _LARGE_PAGE)
    flags = _LARGE | _PRESENT_WRITABLE
    table = struct.pack(f"<{gib * _PD_ENTRIES}Q", *(page | flags for page in pages))
    return pml4 + pdpt_page + table
