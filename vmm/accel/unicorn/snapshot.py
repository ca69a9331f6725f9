"""Save and load one engine's whole CPU.

Public registers move by batch call, the rest through the engine's context. What the last load
brought and Unicorn cannot hold comes back with the next save, so KVM -> Unicorn -> KVM loses
nothing. A load starts from a pristine engine, so it depends on nothing that ran before.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass

from vmm.accel.unicorn import layout
from vmm.accel.unicorn.engine import Engine
from vmm.accel.unicorn.hosttsc import HostTsc
from vmm.accel.unicorn.layout import Layout
from vmm.accel.unicorn.msrs import (
    ALWAYS_SAVED_MSRS,
    HELD_MSRS,
    MSR_APIC_BASE,
    MSR_EFER,
    MSR_FS_BASE,
    MSR_GS_BASE,
    carried_msrs,
)
from vmm.accel.unicorn.registers import RegisterFile
from vmm.accel.unicorn.state import (
    CODE_64_FLAG,
    INTERRUPT_SHADOW,
    INTERRUPT_SHADOW_FLAG,
    RawSegment,
    check_loadable,
    load_xsave,
    mode_flags,
    raw_segment,
    segment_from_raw,
)
from vmm.accel.x86_state import DEBUG_REGISTERS, GENERAL_REGISTERS, CpuState, Segment
from vmm.errors import AccelError

_RFLAGS_IF = 1 << 9
_SHADOW_OF_STI, _SHADOW_OF_MOV_SS = 2, 1  # KVM's numbers for the two kinds of interrupt shadow
_U64 = 2**64


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What a load leaves for the next save to give back."""

    segments: Mapping[str, tuple[RawSegment, Segment]]
    carried_msrs: Mapping[int, int]
    msr_names: frozenset[int]  # every MSR that a save must have
    msr_values: Mapping[int, int]  # the held ones, right after the load
    cr8: int
    apic_base: int


class Snapshots:
    """CpuState to and from one engine; `load` comes first."""

    def __init__(self, engine: Engine, where: Layout, host_tsc: HostTsc) -> None:
        self._context = engine.context
        self._engine = engine
        self._start = where.register_file
        self._host_tsc = host_tsc
        self._registers = RegisterFile(engine, HELD_MSRS)
        self._registers.read()
        self._reset_msrs = dict(zip(HELD_MSRS, self._registers.msrs, strict=True))
        self._loaded = _Loaded({}, {}, frozenset(), self._reset_msrs, 0, 0)

    # ---- saving ---------------------------------------------------------------------------------

    def save(self, *, rip: int, halted: bool) -> CpuState:
        """The engine's CPU; where it goes on and whether it halted is what the vCPU knows."""
        host_ns, host_tsc = self._host_tsc.read()
        registers, context, loaded = self._registers, self._context, self._loaded
        registers.read()
        context.save()
        block = self.segment_block()
        general = dict(zip(GENERAL_REGISTERS, registers.general, strict=True))
        general["rip"] = rip
        segments = self._saved_segments(block)
        efer = self.u64(layout.EFER)
        control = {"cr0": block[36], "cr2": block[38], "cr3": block[39], "cr4": block[40]}
        control |= {"cr8": loaded.cr8, "efer": efer, "apic_base": loaded.apic_base}
        tsc_offset = self.u64(layout.TSC_OFFSET)
        return CpuState(
            general=general,
            segments=segments,
            gdt=(block[32], block[33]),
            idt=(block[34], block[35]),
            control=control,
            debug=dict(zip(DEBUG_REGISTERS, registers.debug, strict=True)),
            msrs=self._saved_msrs(efer, segments),
            xcr0=self.u64(layout.XCR0),
            xsave=bytes(registers.xsave),
            events=self._saved_events(general["rflags"]),
            mp_state="halted" if halted else "runnable",
            tsc=(host_tsc + tsc_offset) % _U64,
            tsc_host_ns=host_ns,
            tsc_offset=tsc_offset,
            lapic=None,
        )

    def segment_block(self) -> tuple[int, ...]:
        """layout.SEGMENT_BLOCK of the context as it was last saved."""
        at = self._start + layout.SEGMENT_BLOCK_START
        return layout.SEGMENT_BLOCK.unpack_from(self._context.data, at)

    def u64(self, field: int) -> int:
        """A field of the context as it was last saved."""
        value: int = layout.U64.unpack_from(self._context.data, self._start + field)[0]
        return value

    def is_64_bit_code(self) -> bool:
        """Whether the guest runs in 64-bit mode now; also while it runs, on its own thread."""
        self._context.save()
        (flags,) = layout.U32.unpack_from(self._context.data, self._start + layout.HFLAGS)
        return bool(flags & CODE_64_FLAG)

    def forget_exception(self) -> None:
        """Let the next exception be a first one, not a double or triple fault."""
        self._context.save()
        at = self._start + layout.LAST_EXCEPTION
        layout.U32.pack_into(self._context.data, at, layout.NO_EXCEPTION)
        self._context.restore()

    def _saved_segments(self, block: tuple[int, ...]) -> dict[str, Segment]:
        """As they were loaded while nothing changed them: an unusable one keeps all its bits."""
        segments: dict[str, Segment] = {}
        raws = zip(block[0:32:4], block[1:32:4], block[2:32:4], block[3:32:4], strict=True)
        for name, raw in zip(layout.SEGMENT_BLOCK_ORDER, raws, strict=True):
            loaded_raw, loaded = self._loaded.segments[name]
            segments[name] = loaded if raw == loaded_raw else segment_from_raw(raw)
        return segments

    def _saved_msrs(self, efer: int, segments: Mapping[str, Segment]) -> dict[int, int]:
        loaded = self._loaded
        names, values = loaded.msr_names, loaded.msr_values
        msrs = {
            index: value
            for index, value in zip(HELD_MSRS, self._registers.msrs, strict=True)
            if index in names or value != values[index]
        }
        msrs.update(loaded.carried_msrs)
        aliases = {
            MSR_EFER: efer,
            MSR_APIC_BASE: loaded.apic_base,
            MSR_FS_BASE: segments["fs"][1],
            MSR_GS_BASE: segments["gs"][1],
        }
        msrs.update((index, value) for index, value in aliases.items() if index in names)
        return msrs

    def _saved_events(self, rflags: int) -> dict[str, int]:
        (flags,) = layout.U32.unpack_from(self._context.data, self._start + layout.HFLAGS)
        if not flags & INTERRUPT_SHADOW_FLAG:
            return {}
        return {INTERRUPT_SHADOW: _SHADOW_OF_STI if rflags & _RFLAGS_IF else _SHADOW_OF_MOV_SS}

    # ---- loading --------------------------------------------------------------------------------

    def load(self, state: CpuState) -> None:
        """Replace the engine's CPU. Raises AccelError naming what Unicorn cannot hold."""
        check_loadable(state)
        carried = carried_msrs(state.msrs)
        msr_values = dict(self._reset_msrs)
        msr_values.update((i, state.msrs[i]) for i in HELD_MSRS if i in state.msrs)
        segments = {name: (raw_segment(value), value) for name, value in state.segments.items()}
        tsc_offset = self._host_tsc.reading().offset_for(
            state.tsc, state.tsc_host_ns, state.tsc_offset, time.monotonic_ns()
        )
        self._engine.make_pristine()
        try:
            self._load_registers(state, msr_values)
            self._load_context(state, segments, tsc_offset)
        except struct.error as error:
            raise AccelError(
                f"a register of the saved CPU does not fit ({error}): {state}"
            ) from error
        self._engine.flush()
        self._loaded = _Loaded(
            segments=segments,
            carried_msrs=carried,
            msr_names=frozenset(state.msrs).union(ALWAYS_SAVED_MSRS),
            msr_values=msr_values,
            cr8=state.control["cr8"],
            apic_base=state.control["apic_base"],
        )

    def _load_registers(self, state: CpuState, msr_values: Mapping[int, int]) -> None:
        registers = self._registers
        registers.general = [state.general[name] for name in GENERAL_REGISTERS]
        registers.debug = [state.debug[name] for name in DEBUG_REGISTERS]
        registers.msrs = list(msr_values.values())
        load_xsave(registers.xsave, state.xsave)
        registers.write()

    def _load_context(
        self, state: CpuState, segments: Mapping[str, tuple[RawSegment, Segment]], tsc_offset: int
    ) -> None:
        context, start, control = self._context, self._start, state.control
        context.save()
        block = [number for name in layout.SEGMENT_BLOCK_ORDER for number in segments[name][0]]
        block += (*state.gdt, *state.idt)
        block += (control["cr0"], 0, control["cr2"], control["cr3"], control["cr4"])
        data = context.data
        layout.SEGMENT_BLOCK.pack_into(data, start + layout.SEGMENT_BLOCK_START, *block)
        layout.U32.pack_into(data, start + layout.HFLAGS, mode_flags(state))
        layout.U64.pack_into(data, start + layout.EFER, control["efer"])
        layout.U64.pack_into(data, start + layout.XCR0, state.xcr0)
        layout.U64.pack_into(data, start + layout.TSC_OFFSET, tsc_offset)
        context.restore()
