"""CPU state in architecture terms, shared by every accelerator (Intel SDM, AMD APM names).

Nothing here depends on how an accelerator stores a register: a state saved under KVM loads under
Unicorn and the other way round. How it travels, `vmm.accel.x86_section` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

GENERAL_REGISTERS = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags",
)  # fmt: skip
SEGMENT_REGISTERS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
CONTROL_REGISTERS = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")
DEBUG_REGISTERS = ("dr0", "dr1", "dr2", "dr3", "dr6", "dr7")

# Segment attributes as one number: the access-rights word of the SDM (vol. 3, 25.4.1, table
# "Format of Access Rights"): type 0-3, S 4, DPL 5-6, P 7, AVL 12, L 13, D/B 14, G 15, unusable 16.
Segment = tuple[int, int, int, int]  # (selector, base, limit in bytes, attributes)
TableRegister = tuple[int, int]  # (base, limit)


@dataclass(frozen=True, kw_only=True, slots=True)
class CpuState:
    """Everything one x86 CPU is, apart from memory.

    `xsave` is the standard (not compacted) XSAVE area: 512 bytes legacy region, 64 bytes header,
    extended components after it (SDM vol. 1, 13.4). `events` are the pending and injected events
    by name, absent = none. `tsc` is the guest's TSC at `tsc_host_ns` (CLOCK_MONOTONIC);
    `tsc_offset` is guest minus host TSC where the accelerator knows it, so that a successor on the
    same host continues the same count. `lapic` is the 1 KiB register page, or None without one.
    """

    general: Mapping[str, int]
    segments: Mapping[str, Segment]
    gdt: TableRegister
    idt: TableRegister
    control: Mapping[str, int]
    debug: Mapping[str, int]
    msrs: Mapping[int, int]
    xcr0: int
    xsave: bytes
    events: Mapping[str, int]
    mp_state: str  # "runnable", "halted", "uninitialized", "init-received", "sipi-received"
    tsc: int
    tsc_host_ns: int
    tsc_offset: int | None
    lapic: bytes | None
