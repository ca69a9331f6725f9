"""The smallest thing that runs the built-in guest: RAM, a bus, and Unicorn used directly.

It shares nothing with the project's accelerators, so a guest that works here and fails there (or
the other way round) tells which side is wrong.
"""

from __future__ import annotations

import ctypes
import importlib
import mmap
import os
from typing import Any

from guestram.layout import PC_HOLE_END, PC_HOLE_START
from vmm.accel.x86_state import CpuState
from vmm.boot.guest.report import REPORT_ADDRESS, GuestReport, parse, report_size_bytes
from vmm.boot.plan import BootPlan
from vmm.devices.bus import SystemBus

os.environ.setdefault("UC_IGNORE_REG_BREAK", "1")  # before import: keeps unicorn's stderr quiet
unicorn: Any = importlib.import_module("unicorn")  # it has no types
x86: Any = importlib.import_module("unicorn.x86_const")

RESET_STATE = CpuState(
    general=dict.fromkeys(
        (
            *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11"),
            *("r12", "r13", "r14", "r15", "rip", "rflags"),
        ),
        0,
    ),
    segments={
        "cs": (0xF000, 0xFFFF_0000, 0xFFFF, 0x9B),
        **dict.fromkeys(("ds", "es", "fs", "gs", "ss"), (0, 0, 0xFFFF, 0x93)),
        "tr": (0, 0, 0xFFFF, 0x8B),
        "ldt": (0, 0, 0xFFFF, 0x82),
    },
    gdt=(0, 0xFFFF),
    idt=(0, 0xFFFF),
    control={
        "cr0": 0x6000_0010,
        "cr2": 0,
        "cr3": 0,
        "cr4": 0,
        "cr8": 0,
        "efer": 0,
        "apic_base": 0xFEE0_0900,
    },
    debug=dict.fromkeys(("dr0", "dr1", "dr2", "dr3"), 0),
    msrs={0xC000_0080: 0, 0x277: 0x0007_0406_0007_0406},
    xcr0=1,
    xsave=bytes(576),
    events={},
    mp_state="uninitialized",
    tsc=0,
    tsc_host_ns=0,
    tsc_offset=None,
    lapic=None,
)
_NO_END = 0xFFFF_FFFF_FFFF_FFF0


class BareRam:
    """Guest-physical memory with the PC hole, as one anonymous mapping."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.below = min(size_bytes, PC_HOLE_START)
        self.bytes = mmap.mmap(-1, size_bytes)
        self.host_address = ctypes.addressof(ctypes.c_char.from_buffer(self.bytes))

    def _offset(self, gpa: int) -> int:
        return gpa if gpa < self.below else gpa - PC_HOLE_END + self.below

    def write(self, gpa: int, data: bytes) -> None:
        start = self._offset(gpa)
        self.bytes[start : start + len(data)] = data

    def read(self, gpa: int, size_bytes: int) -> bytes:
        start = self._offset(gpa)
        return self.bytes[start : start + size_bytes]


class BareMachine:
    """One vCPU in 64-bit mode over `ram`, started as `plan` says."""

    def __init__(self, ram: BareRam, bus: SystemBus, plan: BootPlan, vcpu: int = 0) -> None:
        self.ram = ram
        self._bus = bus
        self._pc = 0
        self._uc = uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        uc.mem_map_ptr(0, ram.below, unicorn.UC_PROT_ALL, ram.host_address)
        if ram.size_bytes > ram.below:
            size = ram.size_bytes - ram.below
            uc.mem_map_ptr(PC_HOLE_END, size, unicorn.UC_PROT_ALL, ram.host_address + ram.below)
        hook = unicorn.UC_HOOK_INSN
        uc.hook_add(hook, self._on_in, None, 1, 0, x86.UC_X86_INS_IN)
        uc.hook_add(hook, self._on_out, None, 1, 0, x86.UC_X86_INS_OUT)
        state = plan.cpu_state(vcpu, RESET_STATE)
        assert state is not None
        self._load(state)

    def run(self, instructions: int) -> None:
        """Run about this many instructions."""
        self._uc.emu_start(self._pc, _NO_END, count=instructions)
        self._pc = int(self._uc.reg_read(x86.UC_X86_REG_RIP))

    def report(self, vcpu_count: int = 1) -> GuestReport:
        return parse(self.ram.read(REPORT_ADDRESS, report_size_bytes(vcpu_count)))

    def _load(self, state: CpuState) -> None:
        uc = self._uc
        uc.reg_write(x86.UC_X86_REG_MSR, (0xC000_0080, state.control["efer"]))
        uc.reg_write(x86.UC_X86_REG_GDTR, (0, *state.gdt, 0))
        uc.reg_write(x86.UC_X86_REG_CR3, state.control["cr3"])
        uc.reg_write(x86.UC_X86_REG_CR4, state.control["cr4"])
        uc.reg_write(x86.UC_X86_REG_CR0, state.control["cr0"])
        for name in ("ds", "es", "ss", "cs"):
            register = getattr(x86, f"UC_X86_REG_{name.upper()}")
            uc.reg_write(register, state.segments[name][0])
        for name, value in state.general.items():
            uc.reg_write(getattr(x86, f"UC_X86_REG_{name.upper()}"), value)
        self._pc = state.general["rip"]

    def _on_in(self, _uc: Any, port: int, size: int, _data: Any) -> int:
        return self._bus.pio_read(port, size)

    def _on_out(self, _uc: Any, port: int, size: int, value: int, _data: Any) -> None:
        self._bus.pio_write(port, size, value)
