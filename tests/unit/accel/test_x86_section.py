from __future__ import annotations

from dataclasses import fields, replace

import pytest

from cpr.errors import StateError
from cpr.vmstate import Section
from tests.framework.scripted_accel import reset_state
from vmm.accel.kvm import abi
from vmm.accel.x86_section import DEBUG, GENERAL, SYSTEM, CpuSection
from vmm.accel.x86_state import (
    CONTROL_REGISTERS,
    DEBUG_REGISTERS,
    GENERAL_REGISTERS,
    SEGMENT_REGISTERS,
    CpuState,
)
from vmm.errors import AccelError

U64_MAX = 2**64 - 1


def cpu() -> CpuState:
    # attributes that use every bit in some segment: type, S, DPL, P, AVL, L, D/B, G, unusable
    words = (0xA09B, 0xC093, 0x1_F0FF, 0x008B, 0x0082, 0x00F3, 0x1_0000, 0x50FA)
    return replace(
        reset_state(),
        general={name: U64_MAX - place for place, name in enumerate(GENERAL_REGISTERS)},
        segments={
            name: (0x10 + place, 2**63 + place, 0xFFFF_FFFF - place, words[place])
            for place, name in enumerate(SEGMENT_REGISTERS)
        },
        gdt=(0x1000, 0x7F),
        idt=(0x2000, 0xFFF),
        control={name: 0x100 + place for place, name in enumerate(CONTROL_REGISTERS)},
        debug={name: 0x200 + place for place, name in enumerate(DEBUG_REGISTERS)},
        msrs={0x277: U64_MAX, 0xC000_0081: 5},
    )


def test_packed_state_unpacks_to_the_same() -> None:
    assert CpuSection.of(cpu()).state() == cpu()
    assert {field.name for field in fields(CpuState)} - {"segments", "gdt", "idt", "control"} == (
        {field.name for field in fields(CpuSection)} - {"system", "msr_indices", "msr_values"}
    ) | {"msrs"}


def test_section_survives_its_encoding() -> None:
    section = CpuSection.of(cpu())

    assert Section.save("cpu0", section).load(CpuSection) == section


def test_task_priority_is_read_without_unpacking() -> None:
    assert CpuSection.of(cpu()).cr8 == cpu().control["cr8"]


def test_layouts_are_the_beginning_of_the_kernel_s_structs() -> None:
    assert GENERAL.size == abi.REGS.size
    assert SYSTEM.size == abi.SREGS.size - 32  # bitmap of interrupts, which stays zero
    assert DEBUG.size == 48 < abi.DEBUGREGS.size  # dr0..dr3, dr6, dr7


def test_kernel_s_own_layout_of_a_code_segment_is_understood() -> None:
    # struct kvm_segment of asm/kvm.h, as KVM gives a 64-bit code segment of privilege level 3
    raw = bytes.fromhex(
        "0000000000000000 ffffffff 3300"  # base, limit, selector
        "0b 01 03 00 01 01 01 00"  # type present dpl db s l g avl
        "00 00"  # unusable, padding
    )
    section = CpuSection.of(cpu())

    state = replace(section, system=raw + section.system[len(raw) :]).state()

    assert state.segments["cs"] == (0x33, 0, 0xFFFF_FFFF, 0xA0FB)


def without(register: str) -> dict[str, int]:
    return {name: 0 for name in GENERAL_REGISTERS if name != register}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"general": without("r9")}, "'r9'"),
        ({"general": without("r9") | {"r9": 2**64}}, "r9=18446744073709551616"),
        ({"segments": {}}, "'cs'"),
        ({"gdt": (0, 2**16)}, "gdt="),
        ({"debug": {"dr0": 0}}, "'dr1'"),
        ({"msrs": {1: -1}}, "an MSR of the saved CPU is not a 64-bit"),
        ({"msrs": {2**32: 1}}, "number of an MSR of the saved CPU is not a 32-bit"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_register_that_is_missing_or_does_not_fit_is_named(
    changes: dict[str, object], named: str
) -> None:
    with pytest.raises(AccelError, match=named):
        CpuSection.of(replace(cpu(), **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("general", bytes(143), "general has 143 bytes, expected 144"),
        ("system", bytes(281), "system has 281 bytes, expected 280"),
        ("debug", b"", "debug has 0 bytes, expected 48"),
        ("msr_indices", bytes(12), "12 bytes and msr_values 16, expected 4 and 8 for each"),
        ("msr_indices", bytes(7), "7 bytes and msr_values 16, expected 4 and 8 for each"),
    ],
)
def test_field_of_another_size_is_refused_with_its_section(
    field: str, value: bytes, problem: str
) -> None:
    fields_sent = CpuSection.of(cpu()).to_map() | {field: value}

    with pytest.raises(StateError, match=f"section 'cpu0': .*{problem}"):
        CpuSection.from_map(fields_sent, version=1, section="cpu0")


def test_odd_number_of_bytes_of_msrs_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 4 and 8 for each MSR"):
        replace(CpuSection.of(cpu()), msr_indices=bytes(2), msr_values=bytes(4))
