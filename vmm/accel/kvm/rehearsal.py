"""A page of code outside guest RAM, on which a vCPU runs once before its first real entry.

The first KVM_RUN of a vCPU costs 100 µs more than the next. The code lives in memory of our own, in
a slot above all guest RAM that exists only during the rehearsal, so guest RAM, which may still
belong to another process, is neither read nor written.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import replace

from vmm.accel.x86_state import CpuState, Segment

SIZE_BYTES = 128 << 10
_PAGE = 4096
_PAGE_TABLE_ENTRY = struct.Struct("<Q")
_PRESENT_WRITABLE = 0b11

# page 0..3: PML4, PDPT, PD, PT; page 4: code, which is also virtual page 0. A port access, because
# with an in-kernel irqchip hlt would wait in the kernel.
_CODE_PAGE = 4
_CODE = bytes.fromhex("90 e6 80 f4")  # nop; out 0x80, al; hlt

# 64-bit kernel mode: PE, ET, NE, WP, PG; PAE; LME, LMA. Flags: only the bit that is always set.
_CR0 = 0x8001_0031
_CR4 = 0x20
_EFER = 0x500
_RFLAGS = 0x2
_CODE_SEGMENT: Segment = (0x08, 0, 0xFFFF_FFFF, 0xA09B)  # G, L, present, execute/read/accessed
_DATA_SEGMENT: Segment = (0x10, 0, 0xFFFF_FFFF, 0xC093)  # G, D/B, present, read/write/accessed
_TASK_SEGMENT: Segment = (0x18, 0, 0xFFFF, 0x008B)  # busy 64-bit TSS, as every VM entry wants
_NO_LDT: Segment = (0, 0, 0xFFFF, 0x0082)


class RehearsalCode:
    """The page tables and code, laid out for the guest-physical address `guest_start`."""

    def __init__(self, guest_start: int) -> None:
        self.guest_start = guest_start
        self.memory = mmap.mmap(-1, SIZE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for page in range(_CODE_PAGE):
            target = guest_start + (page + 1) * _PAGE
            _PAGE_TABLE_ENTRY.pack_into(self.memory, page * _PAGE, target | _PRESENT_WRITABLE)
        self.memory[_CODE_PAGE * _PAGE : _CODE_PAGE * _PAGE + len(_CODE)] = _CODE

    def entry_state(self, reset: CpuState) -> CpuState:
        """`reset` with the registers that make the code the next thing to run."""
        return replace(
            reset,
            general={**dict.fromkeys(reset.general, 0), "rflags": _RFLAGS},
            segments={
                **dict.fromkeys(reset.segments, _DATA_SEGMENT),
                "cs": _CODE_SEGMENT,
                "tr": _TASK_SEGMENT,
                "ldt": _NO_LDT,
            },
            control={
                **reset.control,
                "cr0": _CR0,
                "cr3": self.guest_start,
                "cr4": _CR4,
                "efer": _EFER,
            },
            mp_state="runnable",
        )

    def close(self) -> None:
        """Free the memory; the slot is gone."""
        self.memory.close()
