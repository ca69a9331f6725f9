"""Running and stopping under Unicorn: traps that KVM does not have, so the contract is silent."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.contract import accel_contract as contract
from tests.contract.accel_contract import CODE, DATA, MMIO, RecordingBus, Rig, long_mode
from tests.unit.accel import unicorn_programs as programs
from vmm.accel.base import StopReason, Vcpu

KICKS = 100


@pytest.fixture
def rig() -> Iterator[Rig]:
    with_memory = Rig()
    yield with_memory
    with_memory.close()


def loaded(rig: Rig, code: bytes, **registers: int) -> Vcpu:
    """A vCPU about to run 64-bit `code`."""
    rig.memory.write(CODE, code)
    vcpu = rig.vcpu("unicorn")
    vcpu.load(long_mode(vcpu.save(), **registers))
    return vcpu


def test_slice_that_ends_behind_a_byte_f4_is_not_taken_for_a_halt(rig: Rig) -> None:
    vcpu = loaded(rig, programs.FALSE_HALTS_64)

    assert vcpu.run(RecordingBus()).reason is StopReason.HALTED

    state = vcpu.save()
    assert (state.general["rcx"], state.general["rip"]) == (0, CODE + len(programs.FALSE_HALTS_64))
    assert state.mp_state == "halted"


def test_halted_state_loads_as_halted_and_the_next_run_goes_on_behind_it(rig: Rig) -> None:
    vcpu = loaded(rig, b"\xf4\xe6\x80\xf4")  # hlt; out 0x80, al; hlt
    bus = RecordingBus()
    assert vcpu.run(bus).reason is StopReason.HALTED
    other = rig.vcpu("unicorn")

    other.load(vcpu.save())

    assert other.save().mp_state == "halted"
    assert bus.log == []
    assert other.run(bus).reason is StopReason.HALTED
    assert bus.log == [("out", 0x80, 1, 0)]


def test_guest_that_halts_while_it_is_kicked_is_halted(rig: Rig) -> None:
    vcpu = loaded(rig, b"\x90" * 10 + b"\xf4")
    vcpu.run(RecordingBus())  # translate
    vcpu.load(long_mode(vcpu.save()))
    bus = RecordingBus()

    vcpu.kick()
    assert vcpu.run(bus).reason is StopReason.KICKED
    assert vcpu.save().mp_state == "runnable"
    vcpu.clear_kick()
    assert vcpu.run(bus).reason is StopReason.HALTED


def test_kick_during_a_device_access_stops_behind_it_and_repeats_nothing(rig: Rig) -> None:
    vcpu = loaded(rig, programs.STORE_TO_DEVICE_64, rbx=MMIO)
    bus = RecordingBus()
    bus.on_access = vcpu.kick

    for turn in range(KICKS):
        assert vcpu.run(bus).reason is StopReason.KICKED
        vcpu.clear_kick()
        general = vcpu.save().general
        assert (general["rax"], general["rip"]) == (turn, CODE + 2)
    assert bus.log == [("store", MMIO, 4, turn) for turn in range(KICKS)]


@pytest.mark.parametrize(
    ("code", "accesses"),
    [
        ("48 01 03", [("load", 8), ("store", 8)]),  # add [rbx], rax
        ("f0 48 01 03", [("load", 8), ("store", 8)]),  # lock add [rbx], rax
        ("01 03", [("load", 4), ("store", 4)]),  # add [rbx], eax
        ("48 63 03", [("load", 4)]),  # movsxd rax, dword [rbx]
        ("48 0f c3 03", [("store", 8)]),  # movnti [rbx], rax
        ("48 a5", [("load", 8), ("store", 8)]),  # movsq
    ],
)
def test_device_access_has_the_width_of_the_instruction(
    rig: Rig, code: str, accesses: list[tuple[str, int]]
) -> None:
    vcpu = loaded(rig, bytes.fromhex(code) + b"\xf4", rbx=MMIO, rsi=MMIO, rdi=MMIO + 0x100)
    bus = RecordingBus()

    assert vcpu.run(bus).reason is StopReason.HALTED
    assert [(kind, size) for kind, _, size, _ in bus.log] == accesses


def test_instruction_across_a_page_end_is_read_whole(rig: Rig) -> None:
    vcpu = loaded(rig, b"", rbx=MMIO, rax=0x0123_4567_89AB_CDEF)
    start = CODE + 0xFFF
    rig.memory.write(start, b"\x48\x89\x03\xf4")  # mov [rbx], rax; hlt
    vcpu.load(replace(vcpu.save(), general={**vcpu.save().general, "rip": start}))
    bus = RecordingBus()

    assert vcpu.run(bus).reason is StopReason.HALTED
    assert bus.log == [("store", MMIO, 8, 0x0123_4567_89AB_CDEF)]


def test_address_without_ram_reads_all_ones_and_drops_writes(rig: Rig) -> None:
    code = bytes.fromhex("8b 03 89 43 04 f4")  # mov eax, [rbx]; mov [rbx+4], eax; hlt
    vcpu = loaded(rig, code, rbx=contract.RAM_SIZE_BYTES)
    bus = RecordingBus()

    assert vcpu.run(bus).reason is StopReason.HALTED
    assert vcpu.save().general["rax"] == 0xFFFF_FFFF
    assert [entry[:3] for entry in bus.log] == [
        ("load", contract.RAM_SIZE_BYTES, 4),
        ("store", contract.RAM_SIZE_BYTES + 4, 4),
    ]


class BrokenDeviceError(Exception):
    """What a device bug raises."""


@pytest.mark.parametrize("code", ["e4 60", "e6 60", "8b 03", "89 03"])
def test_what_a_device_raises_comes_out_of_run_once(rig: Rig, code: str) -> None:
    vcpu = loaded(rig, bytes.fromhex(code) + b"\x90\xf4", rbx=MMIO)
    bus = RecordingBus()

    def fail() -> None:
        raise BrokenDeviceError

    bus.on_access = fail
    with pytest.raises(BrokenDeviceError):
        vcpu.run(bus)

    assert vcpu.save().general["rip"] == CODE + 2
    assert vcpu.run(RecordingBus()).reason is StopReason.HALTED


def test_exception_with_an_idt_is_an_error_that_names_it(rig: Rig) -> None:
    vcpu = loaded(rig, programs.DIVIDE_BY_ZERO_64)
    vcpu.load(replace(vcpu.save(), idt=(0x6000, 0xFFF)))

    for _ in range(3):  # not a double fault the second time
        stop = vcpu.run(RecordingBus())
        assert stop.reason is StopReason.ERROR
        assert "exception 0 at rip 0x1002" in stop.detail


def test_exception_without_an_idt_is_a_triple_fault(rig: Rig) -> None:
    vcpu = loaded(rig, programs.DIVIDE_BY_ZERO_64)

    assert vcpu.run(RecordingBus()).reason is StopReason.SHUTDOWN


def test_jump_to_where_no_ram_is_stops_with_a_reason(rig: Rig) -> None:
    vcpu = loaded(rig, b"\xff\xe0", rax=MMIO)  # jmp rax

    stop = vcpu.run(RecordingBus())

    assert stop.reason is StopReason.ERROR
    assert f"{MMIO:#x}" in stop.detail


def test_slices_leave_the_page_fault_address_alone(rig: Rig) -> None:
    """The engine's own `until` handling would overwrite CR2 after each slice."""
    vcpu = loaded(rig, programs.FALSE_HALTS_64)
    state = vcpu.save()
    vcpu.load(replace(state, control={**state.control, "cr2": 0xDEAD_B000}))

    vcpu.run(RecordingBus())

    assert vcpu.save().control["cr2"] == 0xDEAD_B000


def test_code_changed_by_the_host_is_seen_after_a_load(rig: Rig) -> None:
    vcpu = loaded(rig, b"\xb0\x01\xf4")  # mov al, 1; hlt
    start = vcpu.save()
    vcpu.run(RecordingBus())

    rig.memory.write(CODE, b"\xb0\x02\xf4")  # mov al, 2; hlt
    vcpu.load(start)
    vcpu.run(RecordingBus())

    assert vcpu.save().general["rax"] == 2


def test_page_tables_changed_by_the_host_are_seen_after_a_load(rig: Rig) -> None:
    vcpu = loaded(rig, bytes.fromhex("48 8b 04 25 00 00 03 00 f4"))  # mov rax, [DATA]; hlt
    rig.memory.write(DATA, struct.pack("<Q", 0x1111))
    rig.memory.write(0x20_0000 + DATA, struct.pack("<Q", 0x2222))
    rig.memory.write(0x20_0000 + CODE, rig.memory.read(CODE, 16))
    start = vcpu.save()
    vcpu.run(RecordingBus())
    assert vcpu.save().general["rax"] == 0x1111

    first_2_mib = contract.PAGE_TABLES + 0x2000
    rig.memory.write(first_2_mib, struct.pack("<Q", 0x20_0000 | 0x83))
    vcpu.load(start)
    vcpu.run(RecordingBus())

    assert vcpu.save().general["rax"] == 0x2222


def test_guest_reads_the_time_stamp_counter_that_the_state_reports(rig: Rig) -> None:
    vcpu = loaded(rig, b"\x0f\x31\xf4")  # rdtsc; hlt
    start = vcpu.save()
    vcpu.load(replace(start, tsc=5 << 40, tsc_offset=None))

    before = vcpu.save().tsc
    vcpu.run(RecordingBus())
    after = vcpu.save()

    read = after.general["rdx"] << 32 | after.general["rax"]
    assert 5 << 40 <= before <= read <= after.tsc < 6 << 40


def test_interrupt_shadow_of_sti_is_saved_and_loaded(rig: Rig) -> None:
    vcpu = loaded(rig, b"\x90\xfb\xe6\x80\xf4")  # nop; sti; out 0x80, al; hlt
    state = vcpu.save()
    shadowed = replace(state, events={"interrupt_shadow": 1})

    vcpu.load(shadowed)

    assert vcpu.save().events == {"interrupt_shadow": 1}
    vcpu.run(RecordingBus())
    assert vcpu.save().events == {}
