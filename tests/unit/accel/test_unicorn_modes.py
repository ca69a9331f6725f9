"""Real, protected and long mode in one engine, and switches between them, also across an update.

What a guest prints and leaves in RAM is compared with what its listing says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.contract.accel_contract import RecordingBus, Rig, long_mode, real_mode
from tests.unit.accel.unicorn_programs import BOOT_SECTOR, UNREAL_MODE
from vmm.accel.base import StopReason, Vcpu
from vmm.accel.kick import install_kick_handler
from vmm.accel.x86_state import CpuState

BOOT = 0x7C00
CODE_32, DATA_32 = (0x08, 0, 0xFFFF_FFFF, 0xC09B), (0x10, 0, 0xFFFF_FFFF, 0xC093)
CODE_64 = (0x18, 0, 0xFFFF_FFFF, 0xA09B)


@pytest.fixture
def rig() -> Iterator[Rig]:
    with_memory = Rig()
    with_memory.memory.write(BOOT, BOOT_SECTOR)
    yield with_memory
    with_memory.close()


def letters(bus: RecordingBus) -> bytes:
    return bytes(value for kind, port, _, value in bus.log if (kind, port) == ("out", 0x80))


def assert_boot_sector_ended(rig: Rig, bus: RecordingBus, end: CpuState) -> None:
    assert letters(bus) == b"RPHL"
    assert rig.memory.read(0x12350, 2) == b"\xef\xbe"  # es:0x10 of real mode
    assert rig.memory.read_u64(0x100000) == 5000
    assert rig.memory.read_u64(0x3000) == 0x1234_5678_9ABC_DEF0
    assert end.segments["cs"] == CODE_64
    assert end.segments["ds"] == DATA_32
    assert (end.control["efer"], end.control["cr0"]) == (0x500, 0x8000_0011)
    assert end.control["cr2"] == 0


def test_boot_sector_goes_from_real_over_protected_to_long_mode(rig: Rig) -> None:
    vcpu = rig.vcpu("unicorn")
    vcpu.load(real_mode(vcpu.save(), rip=BOOT))
    bus = RecordingBus()

    stop = vcpu.run(bus)

    assert stop.reason is StopReason.HALTED, stop
    assert_boot_sector_ended(rig, bus, vcpu.save())


def run_kicked_at_every_access(vcpus: list[Vcpu], start: CpuState) -> tuple[CpuState, RecordingBus]:
    """Run to hlt, going on in the next of `vcpus` after each device access."""
    bus, state = RecordingBus(), start
    for turn in range(1000):
        vcpu = vcpus[turn % len(vcpus)]
        vcpu.load(state)
        bus.on_access = vcpu.kick
        stop = vcpu.run(bus)
        vcpu.clear_kick()
        state = vcpu.save()
        if stop.reason is StopReason.HALTED:
            return state, bus
        assert stop.reason is StopReason.KICKED, stop
    raise AssertionError("the guest does not end")


def test_every_mode_survives_a_move_to_another_vm(rig: Rig) -> None:
    vcpus = [rig.vcpu("unicorn"), rig.vcpu("unicorn")]

    end, bus = run_kicked_at_every_access(vcpus, real_mode(vcpus[0].save(), rip=BOOT))

    assert_boot_sector_ended(rig, bus, end)


@pytest.mark.needs_kvm
def test_every_mode_survives_moves_between_unicorn_and_kvm(rig: Rig) -> None:
    install_kick_handler()
    vcpus = [rig.vcpu("unicorn"), rig.vcpu("kvm")]

    end, bus = run_kicked_at_every_access(vcpus, real_mode(vcpus[0].save(), rip=BOOT))

    assert letters(bus) == b"RPHL"
    assert rig.memory.read_u64(0x3000) == 0x1234_5678_9ABC_DEF0
    assert end.segments["cs"] == CODE_64


def test_protected_mode_segments_are_as_the_descriptor_said(rig: Rig) -> None:
    vcpu = rig.vcpu("unicorn")
    vcpu.load(real_mode(vcpu.save(), rip=BOOT))
    bus = RecordingBus()
    bus.on_access = lambda: vcpu.kick() if letters(bus) == b"RP" else None

    assert vcpu.run(bus).reason is StopReason.KICKED

    state = vcpu.save()
    assert {name: state.segments[name] for name in ("cs", "ds", "es", "ss")} == {
        "cs": CODE_32, "ds": DATA_32, "es": DATA_32, "ss": DATA_32
    }  # fmt: skip
    assert state.gdt == (BOOT + 0xE4, 31)
    assert state.general["rip"] == BOOT + 0x4C


def test_real_mode_code_segment_with_a_base_runs_at_that_base(rig: Rig) -> None:
    rig.memory.write(0x2_3456, b"\xe6\x80\x90\xf4")  # out 0x80, al; nop; hlt
    vcpu = rig.vcpu("unicorn")
    start = real_mode(vcpu.save(), rip=0x456, rax=0x41)
    segments = {**start.segments, "cs": (0x2300, 0x2_3000, 0xFFFF, 0x9B)}
    vcpu.load(replace(start, segments=segments))
    bus = RecordingBus()
    bus.on_access = vcpu.kick

    assert vcpu.run(bus).reason is StopReason.KICKED
    assert vcpu.save().general["rip"] == 0x458
    vcpu.clear_kick()
    assert vcpu.run(bus).reason is StopReason.HALTED
    assert vcpu.save().general["rip"] == 0x45A
    assert letters(bus) == b"A"


def test_unreal_mode_keeps_its_4_gib_segment_across_a_move(rig: Rig) -> None:
    rig.memory.write(0x1000, UNREAL_MODE)
    first, second = rig.vcpu("unicorn"), rig.vcpu("unicorn")
    first.load(real_mode(first.save(), rip=0x1000))
    bus = RecordingBus({("in", 0x60): 0x5A})
    bus.on_access = first.kick
    assert first.run(bus).reason is StopReason.KICKED

    moved = first.save()
    assert moved.segments["es"] == (0x08, 0, 0xFFFF_FFFF, 0xC093)  # accessed bit set by loading
    assert not moved.control["cr0"] & 1
    second.load(moved)

    assert second.run(bus).reason is StopReason.HALTED
    assert second.save().segments["es"] == moved.segments["es"]
    assert rig.memory.read(0x20_0000, 1) == b"\x5a"


def test_machine_leaves_long_mode_when_an_older_state_is_loaded(rig: Rig) -> None:
    """Loading starts from a pristine engine: nothing of the state before shows."""
    vcpu = rig.vcpu("unicorn")
    start = real_mode(vcpu.save(), rip=BOOT)
    vcpu.load(long_mode(start))

    vcpu.load(start)

    bus = RecordingBus()
    assert vcpu.run(bus).reason is StopReason.HALTED
    assert_boot_sector_ended(rig, bus, vcpu.save())
