"""The accelerator contract (vmm/accel/base.py), once for each accelerator."""

from __future__ import annotations

import os
import random
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contract import accel_contract as contract
from tests.contract.accel_contract import (
    CODE,
    COUNTER,
    DATA,
    DEADLINE_S,
    MMIO,
    RecordingBus,
    Rig,
    long_mode,
    open_accelerator,
    real_mode,
    run_until,
    vcpu_thread,
)
from vmm.accel.base import StopReason, Vcpu, VmOptions
from vmm.accel.kick import install_kick_handler
from vmm.accel.x86_state import CpuState
from vmm.errors import AccelError

KICKS = 200
SCATTER_TURNS = 3000
SCATTER_FACTOR = 0x5851_F42D_4C95_7F2D
SCATTER_SIZE_BYTES = 0x2000


@pytest.fixture
def rig() -> Iterator[Rig]:
    install_kick_handler()
    with_memory = Rig()
    yield with_memory
    with_memory.close()


# ---- running code -------------------------------------------------------------------------------


def test_real_mode_port_accesses_reach_the_bus_in_order_and_size(rig: Rig, accel: str) -> None:
    rig.memory.write(CODE, contract.PORT_ACCESSES_16)
    rig.memory.write(0x2000, b"hello")
    vcpu = rig.vcpu(accel)
    vcpu.load(real_mode(vcpu.save()))
    bus = RecordingBus(
        {("in", 0x60): 0xA5, ("in", 0x61): 0xBEEF, ("in", 0x62): 0x1234_5678, ("in", 0x63): 0x7E}
    )

    stop = vcpu.run(bus)

    assert stop.reason is StopReason.HALTED, stop
    assert bus.log == [
        ("out", 0x3F8, 1, 0x41),
        ("out", 0x3F8, 2, 0x4342),
        ("out", 0x3F8, 4, 0x4746_4544),
        ("in", 0x60, 1, 0xA5),
        ("out", 0x80, 1, 0xA5),
        ("in", 0x61, 2, 0xBEEF),
        ("out", 0x80, 2, 0xBEEF),
        ("in", 0x62, 4, 0x1234_5678),
        ("out", 0x80, 4, 0x1234_5678),
        *(("out", 0x3F8, 1, byte) for byte in b"hello"),
        *[("in", 0x63, 1, 0x7E)] * 3,
    ]
    assert rig.memory.read(0x2100, 4) == b"\x7e\x7e\x7e\x00"


def test_mmio_accesses_of_every_size_reach_the_bus_and_come_back(rig: Rig, accel: str) -> None:
    rig.memory.write(CODE, contract.MMIO_ACCESSES_64)
    vcpu = rig.vcpu(accel)
    vcpu.load(long_mode(vcpu.save()))
    value = 0x8877_6655_4433_2211
    bus = RecordingBus({("load", MMIO + offset): value for offset in (0, 8, 16, 24)})

    stop = vcpu.run(bus)

    assert stop.reason is StopReason.HALTED, stop
    assert [entry for entry in bus.log if entry[0] == "store"] == [
        ("store", MMIO + 0x100, 8, value),
        ("store", MMIO + 0x108, 4, value & 0xFFFF_FFFF),
        ("store", MMIO + 0x110, 2, value & 0xFFFF),
        ("store", MMIO + 0x118, 1, value & 0xFF),
    ]
    assert [entry for entry in bus.log if entry[0] == "load"] == [
        ("load", MMIO, 8, value),
        ("load", MMIO + 8, 4, value & 0xFFFF_FFFF),
        ("load", MMIO + 16, 2, value & 0xFFFF),
        ("load", MMIO + 24, 1, value & 0xFF),
    ]


def test_halt_stops_after_the_instruction(rig: Rig, accel: str) -> None:
    rig.memory.write(CODE, contract.HALT)
    vcpu = rig.vcpu(accel)
    vcpu.load(long_mode(vcpu.save()))

    assert vcpu.run(RecordingBus()).reason is StopReason.HALTED
    assert vcpu.save().general["rip"] == CODE + 1


def test_triple_fault_is_reported_as_shutdown(rig: Rig, accel: str) -> None:
    rig.memory.write(CODE, contract.PAGE_FAULT_64)
    vcpu = rig.vcpu(accel)
    vcpu.load(long_mode(vcpu.save()))

    assert vcpu.run(RecordingBus()).reason is StopReason.SHUTDOWN


def test_undefined_instruction_stops_the_guest_with_a_reason(rig: Rig, accel: str) -> None:
    rig.memory.write(CODE, contract.UNDEFINED_64)
    vcpu = rig.vcpu(accel)
    vcpu.load(long_mode(vcpu.save()))

    stop = vcpu.run(RecordingBus())

    assert stop.reason in (StopReason.SHUTDOWN, StopReason.ERROR)
    assert stop.detail


# ---- kicks --------------------------------------------------------------------------------------


def test_kicks_stop_an_endless_loop_between_two_instructions(rig: Rig, accel: str) -> None:
    rig.memory.write(CODE, contract.COUNT_FOREVER_64)
    vcpu = rig.vcpu(accel)
    vcpu.load(long_mode(vcpu.save()))
    bus = RecordingBus()
    accesses = random.Random(1)

    for _ in range(KICKS):
        future = run_until(vcpu, bus, accesses.randint(1, 4))
        vcpu.kick()
        stop = future.result(DEADLINE_S)
        assert stop.reason is StopReason.KICKED, stop
        vcpu.clear_kick()
        general = vcpu.save().general
        stored = general["rip"] == CODE + contract.COUNT_FOREVER_STORE_BYTES
        assert rig.memory.read_u64(COUNTER) == general["rax"] + stored, general
    assert len(bus.log) >= KICKS


def test_kick_before_run_returns_without_entering_the_guest(rig: Rig, accel: str) -> None:
    rig.memory.write(CODE, contract.READ_PORT_64)
    vcpu = rig.vcpu(accel)
    vcpu.load(long_mode(vcpu.save()))
    bus = RecordingBus()

    vcpu.kick()
    assert vcpu.run(bus).reason is StopReason.KICKED
    assert vcpu.run(bus).reason is StopReason.KICKED  # until somebody clears it
    assert (vcpu.save().general["rip"], bus.log) == (CODE, [])

    vcpu.clear_kick()
    assert vcpu.run(bus).reason is StopReason.HALTED


def test_kick_during_a_port_read_completes_the_read_first(rig: Rig, accel: str) -> None:
    rig.memory.write(CODE, contract.READ_PORT_64)
    vcpu = rig.vcpu(accel)
    vcpu.load(long_mode(vcpu.save()))
    bus = RecordingBus({("in", 0x60): 0x5A})
    bus.on_access = vcpu.kick

    assert vcpu.run(bus).reason is StopReason.KICKED
    kicked = vcpu.save().general
    assert (kicked["rax"], kicked["rip"]) == (0x5A, CODE + 2)

    vcpu.clear_kick()
    assert vcpu.run(bus).reason is StopReason.HALTED
    assert vcpu.save().general["rbx"] == 1
    assert len(bus.log) == 1


# ---- state --------------------------------------------------------------------------------------


def unusual_state(reset: CpuState) -> CpuState:
    """64-bit mode with something in every register that an accelerator must carry."""
    general = {name: 0x0123_4567_89AB_0000 + place for place, name in enumerate(reset.general)}
    state = long_mode(reset, **{**general, "rip": CODE, "rflags": 0xCD7, "rsp": 0x1FF8})
    segments = dict(state.segments)
    segments["fs"] = (*segments["fs"][:1], 0x1234_5000, *segments["fs"][2:])
    segments["gs"] = (*segments["gs"][:1], 0xFFFF_8000_1234_0000, *segments["gs"][2:])
    return replace(
        state,
        segments=segments,
        idt=(0x6000, 0xFFF),
        control={**state.control, "cr2": 0xDEAD_B000},
        debug={"dr0": 0x1000, "dr1": 0x2000, "dr2": 0x3000, "dr3": 0x4000}
        | {"dr6": 0xFFFF_0FF0, "dr7": 0x400},
        msrs={**reset.msrs, **UNUSUAL_MSRS},
        xsave=unusual_xsave(),
    )


UNUSUAL_MSRS = {
    0x174: 0x10,  # SYSENTER_CS
    0x175: 0xFFFF_8000_0000_1000,  # SYSENTER_ESP
    0x176: 0xFFFF_8000_0000_2000,  # SYSENTER_EIP
    0xC000_0081: 0x0023_0010_0000_0000,  # STAR
    0xC000_0082: 0xFFFF_8000_0000_3000,  # LSTAR
    0xC000_0083: 0xFFFF_8000_0000_4000,  # CSTAR
    0xC000_0084: 0x4_7700,  # SFMASK
    0xC000_0102: 0xFFFF_8000_0000_5000,  # KERNEL_GS_BASE
}


def unusual_xsave() -> bytes:
    """x87 with three registers in use and unusual modes, every XMM register, MXCSR."""
    area = bytearray(576)
    # control word, status word (TOP = 5), abridged tags of registers 5 to 7, MXCSR
    struct.pack_into("<HHB", area, 0, 0x27F, 0x2800, 0b1110_0000)
    struct.pack_into("<I", area, 24, 0x1FA5)
    for place, mantissa in enumerate((0xC000_0000_0000_0000, 0x8000_0000_0000_0000, 0xA << 60)):
        struct.pack_into("<QH", area, 32 + 16 * place, mantissa, 0x3FFF + place)
    for register in range(16):
        struct.pack_into("<QQ", area, 160 + 16 * register, 0x1111 * register, ~register & 2**64 - 1)
    struct.pack_into("<Q", area, 512, 0b11)  # x87 and SSE are in use
    return bytes(area)


CARRIED = ("general", "segments", "gdt", "idt", "control", "debug", "msrs", "xcr0", "events")


def carried(state: CpuState) -> dict[str, object]:
    """What two saves of one CPU must agree in: all but time, and what the XSAVE header repeats."""
    fields = {name: getattr(state, name) for name in CARRIED}
    x87_and_sse = state.xsave[:5], state.xsave[24:28], state.xsave[32:416]
    return {**fields, "xsave": x87_and_sse, "mp_state": state.mp_state, "lapic": state.lapic}


def test_unusual_state_survives_load_and_save(rig: Rig, accel: str) -> None:
    vcpu = rig.vcpu(accel)
    state = unusual_state(vcpu.save())

    vcpu.load(state)

    assert carried(vcpu.save()) == carried(state)


def test_saved_state_loads_again_and_saves_identically(rig: Rig, accel: str) -> None:
    vcpu, other = rig.vcpu(accel), rig.vcpu(accel)
    vcpu.load(unusual_state(vcpu.save()))
    saved = vcpu.save()

    for target in (vcpu, other, other):
        target.load(saved)
        again = target.save()
        assert replace(again, tsc=0, tsc_host_ns=0) == replace(saved, tsc=0, tsc_host_ns=0)


def test_msrs_that_a_state_does_not_name_get_their_reset_values(rig: Rig, accel: str) -> None:
    vcpu = rig.vcpu(accel)
    reset = vcpu.save()
    vcpu.load(unusual_state(reset))

    vcpu.load(replace(long_mode(reset), msrs={0xC000_0082: 0x7000}))

    assert vcpu.save().msrs == {**reset.msrs, 0xC000_0082: 0x7000}


def test_msr_that_does_not_exist_is_refused_by_number(rig: Rig, accel: str) -> None:
    vcpu = rig.vcpu(accel)
    reset = vcpu.save()

    with pytest.raises(AccelError, match="0x4dead"):
        vcpu.load(replace(reset, msrs={**reset.msrs, 0x4_DEAD: 1}))

    vcpu.load(reset)  # a refusal leaves a vCPU that can be loaded


def test_time_stamp_counter_never_goes_back_in_a_successor(rig: Rig, accel: str) -> None:
    vcpu, successor = rig.vcpu(accel), rig.vcpu(accel)
    before = vcpu.save()
    for _ in range(3):
        successor.load(before)
        after = successor.save()
        assert after.tsc >= before.tsc
        assert after.tsc_host_ns >= before.tsc_host_ns
        before = after


# ---- continuing elsewhere -----------------------------------------------------------------------


def scatter_start(reset: CpuState) -> CpuState:
    return long_mode(reset, rax=1, rbx=SCATTER_FACTOR, rcx=SCATTER_TURNS, rdi=DATA)


def scatter_result(rig: Rig, state: CpuState) -> tuple[dict[str, int], bytes]:
    memory = rig.memory.read(DATA, SCATTER_SIZE_BYTES)
    return {**state.general, "rflags": state.general["rflags"] & 0xED5}, memory


def clear_scatter(rig: Rig) -> None:
    rig.memory.write(DATA, bytes(SCATTER_SIZE_BYTES))
    rig.memory.write(contract.STACK_TOP - 16, bytes(16))


def run_with_swaps(vcpus: list[Vcpu], seed: int) -> tuple[CpuState, RecordingBus, int]:
    """Run the scatter program to its end, moving to another vCPU at random accesses."""
    chance = random.Random(seed)
    bus = RecordingBus({("in", 0x60): 0x3C})
    state, swaps = scatter_start(vcpus[0].save()), 0
    while True:
        vcpu = vcpus[swaps % len(vcpus)]
        vcpu.load(state)
        remaining = chance.randint(1, 40)
        bus.on_access = _kick_after(vcpu, remaining)
        stop = vcpu.run(bus)
        vcpu.clear_kick()
        state = vcpu.save()
        if stop.reason is StopReason.HALTED:
            return state, bus, swaps
        assert stop.reason is StopReason.KICKED, stop
        swaps += 1


def _kick_after(vcpu: Vcpu, accesses: int) -> Callable[[], None]:
    counter = iter(range(accesses - 1, -1, -1))

    def count() -> None:
        if next(counter, 0) == 0:
            vcpu.kick()

    return count


def undisturbed(rig: Rig, accel: str) -> tuple[dict[str, int], bytes, list[object]]:
    clear_scatter(rig)
    vcpu = rig.vcpu(accel)
    vcpu.load(scatter_start(vcpu.save()))
    bus = RecordingBus({("in", 0x60): 0x3C})
    assert vcpu.run(bus).reason is StopReason.HALTED
    return (*scatter_result(rig, vcpu.save()), list(bus.log))


def test_second_vm_over_the_same_ram_continues_bit_exactly(rig: Rig, accel: str) -> None:
    rig.memory.write(CODE, contract.SCATTER_64)
    expected = undisturbed(rig, accel)

    clear_scatter(rig)
    state, bus, swaps = run_with_swaps([rig.vcpu(accel), rig.vcpu(accel)], seed=2)

    assert swaps > 5
    assert (*scatter_result(rig, state), bus.log) == expected


@pytest.mark.needs_kvm
@pytest.mark.parametrize("order", [("kvm", "unicorn"), ("unicorn", "kvm")])
def test_guest_continues_bit_exactly_across_accelerators(rig: Rig, order: tuple[str, str]) -> None:
    rig.memory.write(CODE, contract.SCATTER_64)
    expected = undisturbed(rig, order[0])
    assert undisturbed(rig, order[1]) == expected

    clear_scatter(rig)
    state, bus, swaps = run_with_swaps([rig.vcpu(name) for name in order], seed=3)

    assert swaps > 5
    assert (*scatter_result(rig, state), bus.log) == expected


@pytest.mark.needs_kvm
@pytest.mark.parametrize("order", [("kvm", "unicorn"), ("unicorn", "kvm")])
def test_unusual_state_survives_the_way_over_another_accelerator(
    rig: Rig, order: tuple[str, str]
) -> None:
    first, second = (rig.vcpu(name) for name in order)
    first.load(unusual_state(first.save()))
    saved = first.save()

    second.load(saved)
    first.load(second.save())

    after = first.save()
    brought = {index: after.msrs[index] for index in saved.msrs}  # the other may add its own
    assert carried(replace(after, msrs=brought)) == carried(saved)


# ---- several vCPUs, rehearsal, end ---------------------------------------------------------------


@pytest.mark.needs_kvm
def test_kvm_vcpus_run_at_the_same_time_on_coherent_memory(rig: Rig) -> None:
    turns = 20_000
    rig.memory.write(CODE, contract.ATOMIC_COUNT_64)
    vm = rig.vm("kvm", VmOptions(vcpu_count=2))
    for vcpu in vm.vcpus:
        vcpu.load(long_mode(vcpu.save(), rcx=turns))

    with vcpu_thread() as first, vcpu_thread() as second:
        bus = RecordingBus()
        futures = [start(vcpu, bus) for start, vcpu in zip((first, second), vm.vcpus, strict=True)]
        stops = [future.result(DEADLINE_S) for future in futures]

    assert [stop.reason for stop in stops] == [StopReason.HALTED] * 2
    assert rig.memory.read_u64(COUNTER) == 2 * turns


def test_unicorn_refuses_a_second_vcpu(rig: Rig) -> None:
    with pytest.raises(AccelError, match=r"unicorn.*1 vCPU"):
        rig.vm("unicorn", VmOptions(vcpu_count=2))


def test_rehearsal_leaves_guest_ram_alone_and_the_vcpu_loadable(rig: Rig, accel: str) -> None:
    rig.memory.write(CODE, contract.READ_PORT_64)
    vcpu = rig.vcpu(accel)
    state = long_mode(vcpu.save())
    rig.memory.write(DATA, os.urandom(1 << 20))
    before = rig.memory.read(0, rig.memory.size_bytes)

    for _ in range(2):
        vcpu.rehearse()
        vcpu.load(state)

    assert rig.memory.read(0, rig.memory.size_bytes) == before
    bus = RecordingBus()
    with vcpu_thread() as start:  # another thread than the one that rehearsed
        assert start(vcpu, bus).result(DEADLINE_S).reason is StopReason.HALTED
    assert bus.log == [("in", 0x60, 1, 0xFF)]


def test_machine_state_has_the_announced_types_and_loads_again(rig: Rig, accel: str) -> None:
    vm = rig.vm(accel)
    states = vm.save()

    assert tuple(type(state) for state in states) == vm.state_types()
    vm.load(states)


def test_guest_may_be_told_of_a_pause_whether_it_cares_or_not(rig: Rig, accel: str) -> None:
    for irqchip in (False, True) if accel == "kvm" else (False,):
        accelerator = open_accelerator(accel)
        vm = accelerator.create_vm(VmOptions(1, kernel_irqchip=irqchip))
        vm.was_paused()
        vm.close()
        accelerator.close()


def test_cpus_are_what_a_running_guest_s_were(rig: Rig, accel: str) -> None:
    accelerator = open_accelerator(accel)
    described = accelerator.create_vm(VmOptions(1))
    cpu = described.cpu_description()
    described.close()
    options = VmOptions(1, cpu=cpu)
    assert accelerator.cpu_problems(options) == ()
    again = accelerator.create_vm(options)
    assert again.cpu_description() == cpu
    again.close()
    accelerator.close()


def _open_fds() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def test_closing_leaves_no_fd_and_no_thread(rig: Rig, accel: str) -> None:
    def cycle() -> None:
        accelerator = open_accelerator(accel)
        vm = accelerator.create_vm(VmOptions(1))
        vm.vcpus[0].rehearse()
        vm.close()
        accelerator.close()

    cycle()  # what a library opens once for the whole process
    before = _open_fds(), threading.active_count()
    for _ in range(3):
        cycle()
    assert (_open_fds(), threading.active_count()) == before
