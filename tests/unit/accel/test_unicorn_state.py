"""What Unicorn refuses, carries and derives of a saved CPU."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.contract.accel_contract import CODE, RecordingBus, Rig, long_mode, real_mode
from vmm.accel.unicorn.mmio import moves_8_bytes
from vmm.accel.unicorn.msrs import HELD_MSRS, carried_msrs
from vmm.accel.unicorn.state import (
    check_loadable,
    load_xsave,
    mode_flags,
    raw_segment,
    reset_state,
    segment_from_raw,
)
from vmm.accel.x86_state import CpuState, Segment
from vmm.errors import AccelError

RESET = reset_state(host_ns=0, tsc_offset=0)
PAT_RESET = 0x0007_0406_0007_0406


@pytest.fixture
def rig() -> Iterator[Rig]:
    with_memory = Rig()
    yield with_memory
    with_memory.close()


def control(**changes: int) -> dict[str, Any]:
    return {"control": {**RESET.control, **changes}}


def check(state: CpuState) -> None:
    check_loadable(state)
    carried_msrs(state.msrs)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lapic": bytes(1024)}, "local APIC"),
        ({"events": {"nmi_pending": 1}}, "nmi_pending"),
        ({"events": {"interrupt_shadow": 1, "nmi_masked": 1}}, "nmi_masked"),
        ({"mp_state": "init-received"}, "init-received"),
        (control(cr4=1 << 23), "CR4 .* 0x800000"),  # CET
        (control(efer=1 << 13), "EFER .* 0x2000"),  # LMSLE
        ({"xcr0": 7}, "XCR0 .* 0x4"),
        ({"xsave": bytes(512)}, "512 bytes"),
        ({"xsave": bytes(520) + b"\x01" + bytes(55)}, "compacted"),
        ({"xsave": bytes(512) + b"\x07" + bytes(63) + b"\x01" * 256}, "components 0x7"),
        ({"general": {"rax": 0}}, "general registers"),
        ({"debug": {**RESET.debug, "dr4": 0}}, "dr4"),
        ({"msrs": {0x6E0: 5}}, "TSC deadline timer"),
        ({"msrs": {0x4B56_4D01: 0x1001}}, "kvmclock"),
    ],
)
def test_state_that_unicorn_cannot_hold_is_refused_by_name(
    changes: dict[str, Any], named: str
) -> None:
    state = replace(RESET, **changes)

    with pytest.raises(AccelError, match=named):
        check(state)


def test_reset_state_is_loadable() -> None:
    check_loadable(RESET)


def test_extended_components_in_their_initial_state_are_accepted() -> None:
    check_loadable(replace(RESET, xsave=RESET.xsave[:512] + b"\x07" + bytes(63) + bytes(256)))


def test_refused_state_leaves_the_vcpu_as_it_was(rig: Rig) -> None:
    vcpu = rig.vcpu("unicorn")
    before = vcpu.save()

    with pytest.raises(AccelError):
        vcpu.load(replace(before, general={**before.general, "rbx": 7}, lapic=bytes(1024)))

    after = vcpu.save()
    assert replace(after, tsc=0, tsc_host_ns=0) == replace(before, tsc=0, tsc_host_ns=0)


def test_register_wider_than_64_bits_is_refused(rig: Rig) -> None:
    vcpu = rig.vcpu("unicorn")
    state = vcpu.save()

    with pytest.raises(AccelError, match="does not fit"):
        vcpu.load(replace(state, general={**state.general, "rbx": 1 << 64}))

    vcpu.load(state)


def test_new_vcpu_is_in_the_reset_state(rig: Rig) -> None:
    state = rig.vcpu("unicorn").save()

    assert replace(state, tsc=0, tsc_host_ns=0, tsc_offset=0) == RESET


# ---- MSRs ---------------------------------------------------------------------------------------


def test_msrs_without_effect_come_back_with_the_next_save(rig: Rig) -> None:
    vcpu = rig.vcpu("unicorn")
    foreign = {0x10A: 0xD08E_0EB, 0x48: 0, 0x4B56_4D01: 0, 0xCE: 1 << 31, 0x1B: 0xFEE0_0900}

    vcpu.load(replace(RESET, msrs={**RESET.msrs, **foreign}))

    assert vcpu.save().msrs == {**RESET.msrs, **foreign}


def test_every_held_msr_survives_load_and_save(rig: Rig) -> None:
    vcpu = rig.vcpu("unicorn")
    # 16-bit values: sysenter_cs keeps no more
    msrs = {index: 0x1001 + place for place, index in enumerate(HELD_MSRS)}

    vcpu.load(replace(RESET, msrs=msrs))

    assert vcpu.save().msrs == msrs


def test_second_names_of_registers_follow_the_registers(rig: Rig) -> None:
    vcpu = rig.vcpu("unicorn")
    state = long_mode(vcpu.save())
    segments = {**state.segments, "gs": (0x10, 0x7000, 0xFFFF_FFFF, 0xC093)}
    msrs = {**state.msrs, 0xC000_0080: 0x500, 0xC000_0101: 0x7000}

    vcpu.load(replace(state, segments=segments, msrs=msrs))

    assert vcpu.save().msrs == msrs


def test_msr_that_the_guest_wrote_is_saved_though_the_state_did_not_have_it(rig: Rig) -> None:
    # mov ecx, 0x277 (PAT); xor edx, edx; mov eax, 6; wrmsr; hlt
    rig.memory.write(CODE, bytes.fromhex("b9 77 02 00 00 31 d2 b8 06 00 00 00 0f 30 f4"))
    vcpu = rig.vcpu("unicorn")
    vcpu.load(long_mode(vcpu.save()))
    assert 0x277 not in vcpu.save().msrs

    vcpu.run(RecordingBus())

    assert vcpu.save().msrs[0x277] == 6


# ---- x87, SSE -----------------------------------------------------------------------------------


def test_components_that_are_not_in_use_load_as_their_initial_state() -> None:
    area = bytearray(b"\xee" * 576)
    struct.pack_into("<QQ", area, 512, 0, 0)
    view = memoryview(bytearray(576))

    load_xsave(view, bytes(area))

    assert view[:24] == b"\x7f\x03" + bytes(22)
    assert not any(view[32:416])
    assert view[24:32] == b"\xee" * 8  # MXCSR belongs to no component's initial state
    assert view[512:520] == struct.pack("<Q", 3)


def test_guest_computes_with_the_loaded_x87_and_sse_registers(rig: Rig) -> None:
    code = "d8 c166 0f fe c1f4"  # fadd st, st(1); paddd xmm0, xmm1; hlt
    rig.memory.write(CODE, bytes.fromhex(code))
    area = bytearray(RESET.xsave)
    struct.pack_into("<HHB", area, 0, 0x37F, 6 << 11, 0b1100_0000)  # TOP 6, two in use
    struct.pack_into("<QH", area, 32, 0xC000 << 48, 0x4000)  # ST0 = 3.0
    struct.pack_into("<QH", area, 48, 0x8000 << 48, 0x4001)  # ST1 = 4.0
    struct.pack_into("<4I", area, 160, 1, 2, 3, 4)
    struct.pack_into("<4I", area, 176, 10, 20, 30, 40)
    vcpu = rig.vcpu("unicorn")
    vcpu.load(replace(long_mode(vcpu.save()), xsave=bytes(area)))

    vcpu.run(RecordingBus())

    end = vcpu.save().xsave
    assert struct.unpack_from("<QH", end, 32) == (0xE000 << 48, 0x4001)  # 7.0
    assert struct.unpack_from("<QH", end, 48) == (0x8000 << 48, 0x4001)
    assert struct.unpack_from("<4I", end, 160) == (11, 22, 33, 44)
    assert end[4] == 0b1100_0000


# ---- segments, modes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "segment",
    [(0x08, 0, 0xFFFF_FFFF, 0xA09B), (0x13, 0x1234, 0xFFF, 0x00F3), (0, 0, 0, 0x1_0000)],
)
def test_segment_survives_the_way_to_the_engine_and_back(segment: Segment) -> None:
    assert segment_from_raw(raw_segment(segment)) == segment


def protected(base: int = 0, *, big: bool, dpl: int = 0) -> CpuState:
    code_rights = 0x9B | (0x4000 if big else 0)
    data: Segment = (0x10 | dpl, base, 0xFFFF_FFFF, 0x93 | 0x4000 * big | dpl << 5)
    segments = {
        **RESET.segments,
        **dict.fromkeys(("ds", "es", "fs", "gs", "ss"), data),
        "cs": (0x08 | dpl, base, 0xFFFF_FFFF, code_rights | dpl << 5),
    }
    return replace(RESET, segments=segments, **control(cr0=0x11))


PE, CS32, SS32, ADD_BASES, LMA, CS64 = 0x80, 0x10, 0x20, 0x40, 0x4000, 0x8000


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (real_mode(RESET), ADD_BASES),
        (protected(big=True), PE | CS32 | SS32),
        (protected(big=True, dpl=3), PE | CS32 | SS32 | 3),
        (protected(0x1000, big=True), PE | CS32 | SS32 | ADD_BASES),
        (protected(big=False), PE | ADD_BASES),
        (long_mode(RESET), PE | CS32 | SS32 | LMA | CS64 | 1 << 9 | 1 << 22),  # MP, OSFXSR
        (replace(RESET, general={**RESET.general, "rflags": 1 << 17}), ADD_BASES),
        (
            replace(protected(big=True), general={**RESET.general, "rflags": 1 << 17}),
            PE | CS32 | SS32 | ADD_BASES | 3,
        ),
        (replace(RESET, events={"interrupt_shadow": 1}), ADD_BASES | 8),
    ],
)
def test_mode_flags_follow_from_segments_and_control_registers(
    state: CpuState, expected: int
) -> None:
    assert mode_flags(state) == expected


@pytest.mark.parametrize(
    ("code", "wide"),
    [
        ("48 89 03", True),  # mov [rbx], rax
        ("f0 48 01 03", True),  # lock add [rbx], rax
        ("4d 89 03", True),  # mov [r11], r8
        ("66 48 0f 7e 03", True),  # movq [rbx], xmm0
        ("89 03 f4", False),  # mov [rbx], eax
        ("44 89 03", False),  # mov [rbx], r8d
        ("48 63 03", False),  # movsxd rax, [rbx]
        ("48 db 03", False),  # fild dword [rbx]
        ("f3 48 0f 11 03", False),  # movss [rbx], xmm0
        ("48", False),
    ],
)
def test_width_of_an_access_is_read_off_the_instruction(code: str, wide: bool) -> None:
    assert moves_8_bytes(bytes.fromhex(code)) is wide
