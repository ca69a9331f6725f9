"""The parts of a CpuState in QEMU's terms, and what Unicorn cannot hold of it.

Nothing here touches an engine. What would have to *do* something that Unicorn does not (deliver an
interrupt, keep AVX registers, be a local APIC) is refused with AccelError by name.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from vmm.accel.unicorn.msrs import ALWAYS_SAVED_MSRS
from vmm.accel.unicorn.registers import XSAVE_BASE_SIZE_BYTES
from vmm.accel.x86_state import (
    CONTROL_REGISTERS,
    DEBUG_REGISTERS,
    GENERAL_REGISTERS,
    SEGMENT_REGISTERS,
    CpuState,
    Segment,
)
from vmm.errors import AccelError

# ---- what is refused ----------------------------------------------------------------------------

_CR4_EMULATED = (
    0x77_1FFF  # VME to OSXMMEXCPT, UMIP, LA57; FSGSBASE, PCIDE, OSXSAVE; SMEP, SMAP, PKE
)
_EFER_EMULATED = 0x5D01  # SCE, LME, LMA, NXE, SVME, FFXSR
_XCR0_EMULATED = 0b11  # x87, SSE
_MP_STATES = ("runnable", "halted")
INTERRUPT_SHADOW = "interrupt_shadow"
_XSTATE_BV_OFFSET, _XCOMP_BV_OFFSET = 512, 520
_U64 = struct.Struct("<Q")


def check_loadable(state: CpuState) -> None:
    """Raise AccelError naming the first thing in `state` that Unicorn cannot hold."""
    _check_names("general registers", state.general, GENERAL_REGISTERS)
    _check_names("segments", state.segments, SEGMENT_REGISTERS)
    _check_names("control registers", state.control, CONTROL_REGISTERS)
    _check_names("debug registers", state.debug, DEBUG_REGISTERS)
    if state.lapic is not None:
        raise AccelError(
            "the CPU has a local APIC (kernel-irqchip=on); unicorn has none. Load it with kvm"
        )
    pending = sorted(name for name, value in state.events.items() if value)
    if pending and pending != [INTERRUPT_SHADOW]:
        raise AccelError(
            f"the CPU has event(s) {', '.join(pending)} in progress, which unicorn cannot deliver; "
            "expected none"
        )
    if state.mp_state not in _MP_STATES:
        raise AccelError(f"MP state '{state.mp_state}' is not one of {', '.join(_MP_STATES)}")
    _check_bits("CR4", state.control["cr4"], _CR4_EMULATED)
    _check_bits("EFER", state.control["efer"], _EFER_EMULATED)
    _check_bits("XCR0", state.xcr0, _XCR0_EMULATED)
    _check_xsave(state.xsave)


def _check_names(what: str, given: Mapping[str, object], expected: Sequence[str]) -> None:
    if given.keys() != set(expected):
        odd = ", ".join(sorted(given.keys() ^ set(expected)))
        raise AccelError(f"the {what} of the saved CPU are not complete: {odd} missing or unknown")


def _check_bits(name: str, value: int, emulated: int) -> None:
    if value & ~emulated:
        raise AccelError(
            f"{name} is {value:#x}; unicorn does not emulate its bits {value & ~emulated:#x}"
        )


def _check_xsave(area: bytes) -> None:
    if len(area) < XSAVE_BASE_SIZE_BYTES:
        raise AccelError(
            f"the XSAVE area has {len(area)} bytes; expected at least {XSAVE_BASE_SIZE_BYTES}"
        )
    if _U64.unpack_from(area, _XCOMP_BV_OFFSET) != (0,):
        raise AccelError("the XSAVE area is in compacted form; expected the standard form")
    (in_use,) = _U64.unpack_from(area, _XSTATE_BV_OFFSET)
    if in_use & ~_XCR0_EMULATED and any(area[XSAVE_BASE_SIZE_BYTES:]):
        raise AccelError(
            f"the CPU has XSAVE components {in_use:#x} in use; unicorn has only x87 and SSE (0x3)"
        )


# ---- x87 and SSE --------------------------------------------------------------------------------

_X87_COMPONENT, _SSE_COMPONENT = 1, 2
_X87_INITIAL = b"\x7f\x03" + bytes(22)  # FCW 0x37f, registers empty
_MXCSR_PLACE, _ST_PLACE, _XMM_PLACE = slice(24, 32), slice(32, 160), slice(160, 416)


def load_xsave(view: memoryview, area: bytes) -> None:
    """Copy `area` into `view`; a component that XSTATE_BV does not list is in its initial state."""
    view[:] = area[:XSAVE_BASE_SIZE_BYTES]
    (in_use,) = _U64.unpack_from(area, _XSTATE_BV_OFFSET)
    if not in_use & _X87_COMPONENT:
        view[:24] = _X87_INITIAL
        view[_ST_PLACE] = bytes(128)
    if not in_use & _SSE_COMPONENT:
        view[_XMM_PLACE] = bytes(256)
    _U64.pack_into(view, _XSTATE_BV_OFFSET, _X87_COMPONENT | _SSE_COMPONENT)


# ---- segments and mode flags --------------------------------------------------------------------

_RIGHTS = 0xF0FF  # of the access-rights word; its bits 8-11 and those above 15 are no descriptor's
_PRESENT, _UNUSABLE = 1 << 7, 1 << 16
RawSegment = tuple[int, int, int, int]  # selector, base, limit, second word of the descriptor


def raw_segment(segment: Segment) -> RawSegment:
    """As QEMU's structure has it; an unusable segment is one that is not present."""
    selector, base, limit, attributes = segment
    rights = attributes & _RIGHTS
    if attributes & _UNUSABLE:
        rights &= ~_PRESENT
    return selector, base, limit, rights << 8


def segment_from_raw(raw: RawSegment) -> Segment:
    """The other way round."""
    selector, base, limit, flags = raw
    rights = flags >> 8 & _RIGHTS
    return selector, base, limit, rights if rights & _PRESENT else rights | _UNUSABLE


_CR0_PE, _CR4_OSFXSR, _CR4_SMAP = 1 << 0, 1 << 9, 1 << 21
_CR0_MP_EM_TS = 0b1110
_EFER_LMA, _EFER_SVME = 1 << 10, 1 << 12
_RFLAGS_VM = 1 << 17
_LONG_CODE, _DEFAULT_BIG = 1 << 13, 1 << 14

_INHIBIT_INTERRUPT = 1 << 3
_CS32, _SS32, _ADD_BASES, _PE = 1 << 4, 1 << 5, 1 << 6, 1 << 7
_CR0_SHIFT = 8
_LMA, _CS64 = 1 << 14, 1 << 15
_SVME, _OSFXSR, _SMAP = 1 << 20, 1 << 22, 1 << 23
INTERRUPT_SHADOW_FLAG, CODE_64_FLAG = _INHIBIT_INTERRUPT, _CS64


def mode_flags(state: CpuState) -> int:
    """The word by which QEMU's translator knows the mode: `hflags` (QEMU, target/i386/cpu.h)."""
    cr0, cr4, efer = (state.control[name] for name in ("cr0", "cr4", "efer"))
    code, stack = state.segments["cs"][3], state.segments["ss"][3]
    virtual_8086 = bool(state.general["rflags"] & _RFLAGS_VM)
    flags = (cr0 & _CR0_MP_EM_TS) << _CR0_SHIFT
    flags |= _PE if cr0 & _CR0_PE else 0
    flags |= _OSFXSR if cr4 & _CR4_OSFXSR else 0
    flags |= _SMAP if cr4 & _CR4_SMAP else 0
    flags |= _SVME if efer & _EFER_SVME else 0
    flags |= _LMA if efer & _EFER_LMA else 0
    flags |= _INHIBIT_INTERRUPT if state.events.get(INTERRUPT_SHADOW) else 0
    if cr0 & _CR0_PE:
        flags |= 3 if virtual_8086 else stack >> 5 & 3  # CPL is SS.DPL
    if efer & _EFER_LMA and code & _LONG_CODE:
        return flags | _CS32 | _SS32 | _CS64
    flags |= _CS32 if code & _DEFAULT_BIG else 0
    flags |= _SS32 if stack & _DEFAULT_BIG else 0
    flat = not any(state.segments[name][1] for name in ("ds", "es", "ss"))
    if virtual_8086 or not flags & _PE or not flags & _CS32 or not flat:
        flags |= _ADD_BASES
    return flags


# ---- reset --------------------------------------------------------------------------------------

_RESET_RDX = 0x600  # family 6, as KVM resets it
_DATA_RIGHTS, _CODE_RIGHTS, _LDT_RIGHTS, _TSS_RIGHTS = 0x93, 0x9B, 0x82, 0x8B
_RESET_LIMIT = 0xFFFF
_APIC_BASE_RESET = 0xFEE0_0900  # enabled, bootstrap processor
_MXCSR_RESET, _MXCSR_MASK = 0x1F80, 0xFFFF


def reset_state(host_ns: int, tsc_offset: int) -> CpuState:
    """The CPU after power-on (SDM vol. 3, table 10-1); its TSC is zero at `host_ns`."""
    data: Segment = (0, 0, _RESET_LIMIT, _DATA_RIGHTS)
    xsave = bytearray(XSAVE_BASE_SIZE_BYTES)
    xsave[:24] = _X87_INITIAL
    struct.pack_into("<II", xsave, _MXCSR_PLACE.start, _MXCSR_RESET, _MXCSR_MASK)
    _U64.pack_into(xsave, _XSTATE_BV_OFFSET, _X87_COMPONENT | _SSE_COMPONENT)
    general = {"rip": 0xFFF0, "rflags": 2, "rdx": _RESET_RDX}
    control = {"cr0": 0x6000_0010, "apic_base": _APIC_BASE_RESET}
    return CpuState(
        general={name: general.get(name, 0) for name in GENERAL_REGISTERS},
        segments={
            "cs": (0xF000, 0xFFFF_0000, _RESET_LIMIT, _CODE_RIGHTS),
            **dict.fromkeys(("ds", "es", "fs", "gs", "ss"), data),
            "tr": (0, 0, _RESET_LIMIT, _TSS_RIGHTS),
            "ldt": (0, 0, _RESET_LIMIT, _LDT_RIGHTS),
        },
        gdt=(0, _RESET_LIMIT),
        idt=(0, _RESET_LIMIT),
        control={name: control.get(name, 0) for name in CONTROL_REGISTERS},
        debug={**dict.fromkeys(DEBUG_REGISTERS, 0), "dr6": 0xFFFF_0FF0, "dr7": 0x400},
        msrs=dict.fromkeys(ALWAYS_SAVED_MSRS, 0),
        xcr0=1,
        xsave=bytes(xsave),
        events={},
        mp_state="runnable",
        tsc=0,
        tsc_host_ns=host_ns,
        tsc_offset=tsc_offset,
        lapic=None,
    )
