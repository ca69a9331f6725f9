"""A CPU as it travels: `CpuState` in fixed layouts, so that saving and loading are copies.

Registers by name are for people, tests and boot code. In the blackout a name for each of a hundred
numbers would be encoded, decoded, checked and looked up with cold caches, which costs more than the
hand-over itself; so related registers travel as one byte string, little-endian:

    general     18 x u64: x86_state.GENERAL_REGISTERS
    system      segments in the order of SEGMENT_REGISTERS, each 24 bytes: base u64, limit u32,
                selector u16, then one byte each of type, present, DPL, D/B, S, L, G, AVL, unusable,
                and a zero; gdt and idt, each 16 bytes: base u64, limit u16, six zeros; then
                7 x u64: CONTROL_REGISTERS
    debug       6 x u64: DEBUG_REGISTERS
    msr_indices u32 each; msr_values: u64 each, in the same order

These are also the layouts in which the KVM API moves them (asm/kvm.h, struct kvm_regs, kvm_sregs,
kvm_debugregs), which is why they were chosen. They never change.
"""

from __future__ import annotations

import functools
import struct
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from struct import Struct
from typing import ClassVar

from cpr.vmstate import VmState
from vmm.accel.x86_state import (
    CONTROL_REGISTERS,
    DEBUG_REGISTERS,
    GENERAL_REGISTERS,
    SEGMENT_REGISTERS,
    CpuState,
    Segment,
)
from vmm.errors import AccelError

GENERAL = Struct(f"<{len(GENERAL_REGISTERS)}Q")
SYSTEM = Struct("<" + "QIH9sx" * len(SEGMENT_REGISTERS) + "QH6x" * 2 + f"{len(CONTROL_REGISTERS)}Q")
DEBUG = Struct(f"<{len(DEBUG_REGISTERS)}Q")

_SEGMENT_VALUES = 4 * len(SEGMENT_REGISTERS)
_CR8_START = SYSTEM.size - 8 * (len(CONTROL_REGISTERS) - CONTROL_REGISTERS.index("cr8"))
_CR8_PLACE = slice(_CR8_START, _CR8_START + 8)
_BITS = {"I": 32, "Q": 64}
_LAYOUTS = {"general": GENERAL, "system": SYSTEM, "debug": DEBUG}


@dataclass(frozen=True, kw_only=True, slots=True)
class CpuSection(VmState):
    """One CPU's section; the fields that are not packed are those of `CpuState`."""

    NAME: ClassVar[str] = "x86-cpu"
    VERSION: ClassVar[int] = 1
    READS_FROM: ClassVar[int] = 1

    general: bytes
    system: bytes
    debug: bytes
    msr_indices: bytes
    msr_values: bytes
    xcr0: int
    xsave: bytes
    events: Mapping[str, int]
    mp_state: str
    tsc: int
    tsc_host_ns: int
    tsc_offset: int | None
    lapic: bytes | None

    def __post_init__(self) -> None:
        """Raise ValueError when a packed field does not have the size of its layout."""
        if (
            len(self.general) != GENERAL.size
            or len(self.system) != SYSTEM.size
            or len(self.debug) != DEBUG.size
            or len(self.msr_values) != 2 * len(self.msr_indices)
            or len(self.msr_indices) % 4
        ):
            raise ValueError(_misfit(self))

    @classmethod
    def of(cls, state: CpuState) -> CpuSection:
        """Pack; raises AccelError naming a register that is missing or does not fit."""
        return cls(
            general=_pack("general registers", GENERAL, GENERAL_REGISTERS, state.general),
            system=_pack_system(state),
            debug=_pack("debug registers", DEBUG, DEBUG_REGISTERS, state.debug),
            msr_indices=_numbers("I", "the number of an MSR", state.msrs.keys()),
            msr_values=_numbers("Q", "an MSR", state.msrs.values()),
            xcr0=state.xcr0,
            xsave=state.xsave,
            events=state.events,
            mp_state=state.mp_state,
            tsc=state.tsc,
            tsc_host_ns=state.tsc_host_ns,
            tsc_offset=state.tsc_offset,
            lapic=state.lapic,
        )

    def state(self) -> CpuState:
        """The same with a name for every register."""
        values = SYSTEM.unpack(self.system)
        tables = values[_SEGMENT_VALUES:]
        return CpuState(
            general=dict(zip(GENERAL_REGISTERS, GENERAL.unpack(self.general), strict=True)),
            segments=_segments(values),
            gdt=(tables[0], tables[1]),
            idt=(tables[2], tables[3]),
            control=dict(zip(CONTROL_REGISTERS, tables[4:], strict=True)),
            debug=dict(zip(DEBUG_REGISTERS, DEBUG.unpack(self.debug), strict=True)),
            msrs=self.msrs(),
            xcr0=self.xcr0,
            xsave=self.xsave,
            events=self.events,
            mp_state=self.mp_state,
            tsc=self.tsc,
            tsc_host_ns=self.tsc_host_ns,
            tsc_offset=self.tsc_offset,
            lapic=self.lapic,
        )

    @property
    def cr8(self) -> int:
        """The task priority, which KVM also wants outside the registers."""
        return int.from_bytes(self.system[_CR8_PLACE], "little")

    def msrs(self) -> dict[int, int]:
        """Value of each MSR by its number."""
        indices = memoryview(self.msr_indices).cast("I")
        return dict(zip(indices, memoryview(self.msr_values).cast("Q"), strict=True))


def _misfit(section: CpuSection) -> str:
    for name, layout in _LAYOUTS.items():
        size_bytes = len(getattr(section, name))
        if size_bytes != layout.size:
            return f"{name} has {size_bytes} bytes, expected {layout.size}"
    return (
        f"msr_indices has {len(section.msr_indices)} bytes and msr_values "
        f"{len(section.msr_values)}, expected 4 and 8 for each MSR"
    )


# ---- packing -------------------------------------------------------------------------------------


def _pack(what: str, layout: Struct, names: tuple[str, ...], values: Mapping[str, int]) -> bytes:
    try:
        return layout.pack(*map(values.__getitem__, names))
    except (KeyError, struct.error) as error:
        raise _unfit(what, values, error) from error


def _pack_system(state: CpuState) -> bytes:
    values: list[int | bytes] = []
    try:
        for name in SEGMENT_REGISTERS:
            selector, base, limit, attributes = state.segments[name]
            values += (base, limit, selector, _attribute_bytes(attributes))
        values += state.gdt
        values += state.idt
        values += map(state.control.__getitem__, CONTROL_REGISTERS)
        return SYSTEM.pack(*values)
    except (KeyError, ValueError, struct.error) as error:
        described = {**state.segments, "gdt": state.gdt, "idt": state.idt, **state.control}
        raise _unfit("segment and control registers", described, error) from error


def _numbers(kind: str, what: str, values: Iterable[int]) -> bytes:
    try:
        numbers = array(kind, values)
    except (OverflowError, TypeError) as error:
        raise AccelError(
            f"{what} of the saved CPU is not a {_BITS[kind]}-bit number: {error}"
        ) from error
    return numbers.tobytes()


def _unfit(what: str, values: Mapping[str, object], error: Exception) -> AccelError:
    shown = ", ".join(f"{name}={value!r}" for name, value in values.items())
    return AccelError(f"the {what} of the saved CPU cannot be loaded ({error}): {shown}")


# ---- segments ------------------------------------------------------------------------------------


def _segments(values: tuple[int | bytes, ...]) -> dict[str, Segment]:
    end = _SEGMENT_VALUES
    selectors, bases, limits = values[2:end:4], values[0:end:4], values[1:end:4]
    attributes = map(_attributes, values[3:end:4])
    parts = zip(selectors, bases, limits, attributes, strict=True)
    return dict(zip(SEGMENT_REGISTERS, parts, strict=True))  # type: ignore[arg-type]


@functools.lru_cache(maxsize=256)
def _attributes(raw: bytes) -> int:
    """The access-rights word of one segment (see x86_state) from its bytes."""
    kind, present, dpl, default_big, non_system, long_mode, granularity, available, unusable = raw
    return (
        kind
        | non_system << 4
        | dpl << 5
        | present << 7
        | available << 12
        | long_mode << 13
        | default_big << 14
        | granularity << 15
        | unusable << 16
    )


@functools.lru_cache(maxsize=256)
def _attribute_bytes(attributes: int) -> bytes:
    return bytes(
        (
            attributes & 0xF,
            attributes >> 7 & 1,
            attributes >> 5 & 3,
            attributes >> 14 & 1,
            attributes >> 4 & 1,
            attributes >> 13 & 1,
            attributes >> 15 & 1,
            attributes >> 12 & 1,
            attributes >> 16 & 1,
        )
    )
