"""What only KVM has: in-kernel chips, several CPUs, refusals that name the register."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contract.accel_contract import (
    CODE,
    DEADLINE_S,
    HALT,
    READ_PORT_64,
    RecordingBus,
    Rig,
    long_mode,
    run_until,
)
from vmm.accel.base import GuestVm, StopReason, VmOptions
from vmm.accel.kick import install_kick_handler
from vmm.accel.kvm import chips
from vmm.accel.kvm.chips import ClockState, IrqchipState, PitState, at_one_moment
from vmm.accel.x86_state import CpuState
from vmm.errors import AccelError

pytestmark = pytest.mark.needs_kvm

SIPI_PAGE = 0x1  # the start-up vector: the second CPU begins at this page, in real mode
BOOT_CODE = 0x2000
PIC_INPUTS = 0  # of struct kvm_pic_state: the levels last seen (last_irr)

# The first CPU sends INIT and SIPI to APIC id 1, says so, and halts.
START_SECOND_CPU_64 = bytes.fromhex(
    "bb 10 03 e0 fe"  # mov ebx, 0xfee00310
    "c7 03 00 00 00 01"  # mov dword [rbx], 1 << 24
    "bb 00 03 e0 fe"  # mov ebx, 0xfee00300
    "c7 03 00 45 00 00"  # mov dword [rbx], 0x4500 (INIT)
    "c7 03 01 46 00 00"  # mov dword [rbx], 0x4601 (SIPI, page 1)
    "e6 80"  # out 0x80, al
    "f4"  # hlt
)
SECOND_CPU_16 = bytes.fromhex(
    "b0 55"  # mov al, 0x55
    "e6 81"  # out 0x81, al
    "fa f4"  # cli; hlt
)
READ_CR8_64 = bytes.fromhex(
    "44 0f 20 c0"  # mov rax, cr8
    "e6 80"  # out 0x80, al
    "f4"  # hlt
)
IRQCHIP = VmOptions(vcpu_count=2, kernel_irqchip=True)


@pytest.fixture
def rig() -> Iterator[Rig]:
    install_kick_handler()
    with_memory = Rig()
    yield with_memory
    with_memory.close()


def started_second_cpu(rig: Rig) -> tuple[GuestVm, RecordingBus]:
    """A VM whose two CPUs have run and are kicked while they wait in the kernel's hlt."""
    rig.memory.write(BOOT_CODE, START_SECOND_CPU_64)
    rig.memory.write(SIPI_PAGE << 12, SECOND_CPU_16)
    vm = rig.vm("kvm", IRQCHIP)
    first, second = vm.vcpus
    first.load(long_mode(first.save(), rip=BOOT_CODE))
    first_bus, bus = RecordingBus(), RecordingBus()
    first_future = run_until(first, first_bus, 1)
    second_future = run_until(second, bus, 1)
    for vcpu, future in ((first, first_future), (second, second_future)):
        vcpu.kick()
        assert future.result(DEADLINE_S).reason is StopReason.KICKED
        vcpu.clear_kick()
    return vm, bus


def test_second_cpu_starts_by_init_and_sipi(rig: Rig) -> None:
    _, bus = started_second_cpu(rig)

    assert bus.log == [("out", 0x81, 1, 0x55)]


def test_cpus_that_wait_in_the_kernel_are_moved_with_chips_and_apics(rig: Rig) -> None:
    vm, _ = started_second_cpu(rig)
    machine, cpus = vm.save(), [vcpu.save() for vcpu in vm.vcpus]
    successor = rig.vm("kvm", IRQCHIP)

    successor.load(machine)
    for vcpu, cpu in zip(successor.vcpus, cpus, strict=True):
        vcpu.load(cpu)

    again = [vcpu.save() for vcpu in successor.vcpus]
    assert [timeless(cpu) for cpu in again] == [timeless(cpu) for cpu in cpus]
    assert successor.save()[0] == machine[0]
    assert {cpu.mp_state for cpu in cpus} <= {"halted", "runnable"}


def timeless(cpu: CpuState) -> CpuState:
    return replace(cpu, tsc=0, tsc_host_ns=0)


def test_interrupt_line_reaches_its_input_of_the_pic(rig: Rig) -> None:
    vm = rig.vm("kvm", IRQCHIP)
    lines = {gsi: vm.irq_line(gsi) for gsi in (3, 4)}

    for gsi, level in ((3, True), (4, True), (3, False)):
        line = lines[gsi]
        assert line is not None
        line(level)

    irqchip = vm.save()[0]
    assert isinstance(irqchip, IrqchipState)
    assert irqchip.pic_master[PIC_INPUTS] == 1 << 4


def test_machine_without_chips_has_no_interrupt_lines(rig: Rig) -> None:
    assert rig.vm("kvm").irq_line(4) is None


def test_new_second_cpu_waits_for_init(rig: Rig) -> None:
    vm = rig.vm("kvm", IRQCHIP)

    assert [vcpu.save().mp_state for vcpu in vm.vcpus] == ["runnable", "uninitialized"]


def test_kick_reaches_a_cpu_that_waits_for_init(rig: Rig) -> None:
    vm = rig.vm("kvm", IRQCHIP)
    bus = RecordingBus()
    future = run_until(vm.vcpus[1], bus, 0)

    vm.vcpus[1].kick()

    assert future.result(DEADLINE_S).reason is StopReason.KICKED
    assert vm.vcpus[1].save().mp_state == "uninitialized"


def test_machine_state_is_chips_pit_and_clock_and_the_clock_goes_on(rig: Rig) -> None:
    vm, successor = rig.vm("kvm", IRQCHIP), rig.vm("kvm", IRQCHIP)
    irqchip, pit, clock = vm.save()
    assert isinstance(irqchip, IrqchipState)
    assert isinstance(pit, PitState)
    assert isinstance(clock, ClockState)
    changed = replace(irqchip, ioapic=irqchip.ioapic[:16] + b"\x01" + irqchip.ioapic[17:])
    ahead = replace(clock, clock_ns=clock.clock_ns + 3600 * 10**9)

    for _ in range(2):
        successor.load((changed, pit, ahead))

    irqchip_after, _, clock_after = successor.save()
    assert isinstance(clock_after, ClockState)
    assert irqchip_after == changed
    elapsed_ns = clock_after.host_ns - ahead.host_ns
    assert abs(clock_after.clock_ns - ahead.clock_ns - elapsed_ns) < 10**9
    assert clock_after.clock_ns > ahead.clock_ns


def test_interrupt_line_reaches_the_8259_and_only_where_it_is_in_the_kernel(rig: Rig) -> None:
    vm = rig.vm("kvm", IRQCHIP)
    set_level = vm.irq_line(4)
    assert set_level is not None

    def request_register() -> int:
        chips = vm.save()[0]
        assert isinstance(chips, IrqchipState)
        return chips.pic_master[1] & 1 << 4  # struct kvm_pic_state: last_irr, irr, ...

    assert request_register() == 0
    set_level(True)
    assert request_register() == 1 << 4
    set_level(False)
    assert request_register() == 1 << 4  # an edge is remembered
    assert rig.vm("kvm").irq_line(4) is None


def test_machine_state_of_the_wrong_shape_is_refused(rig: Rig) -> None:
    vm = rig.vm("kvm", IRQCHIP)
    irqchip, pit, clock = vm.save()

    with pytest.raises(AccelError, match=r"kvm-irqchip.*kvm-pit.*kvm-clock"):
        vm.load((irqchip, clock))
    with pytest.raises(AccelError, match="the PIT has 3 bytes, not 112"):
        vm.load((irqchip, PitState(pit=b"bad"), clock))
    with pytest.raises(AccelError, match="expected the states"):
        rig.vm("kvm").load((pit,))


def test_state_with_apic_does_not_load_where_there_is_none_and_back(rig: Rig) -> None:
    with_apic, without = rig.vm("kvm", IRQCHIP).vcpus[0], rig.vcpu("kvm")

    with pytest.raises(AccelError, match=r"has a local APIC.*kernel-irqchip"):
        without.load(with_apic.save())
    with pytest.raises(AccelError, match=r"has no local APIC.*kernel-irqchip"):
        with_apic.load(without.save())


def test_apic_page_of_the_wrong_size_is_refused(rig: Rig) -> None:
    vcpu = rig.vm("kvm", IRQCHIP).vcpus[0]

    with pytest.raises(AccelError, match="local APIC has 3 bytes, not 1024"):
        vcpu.load(replace(vcpu.save(), lapic=b"bad"))


def test_cpu_that_waits_for_init_needs_an_in_kernel_irqchip(rig: Rig) -> None:
    vcpu = rig.vcpu("kvm")

    with pytest.raises(AccelError, match="MP state 'uninitialized'"):
        vcpu.load(replace(vcpu.save(), mp_state="uninitialized"))


def test_refused_msr_is_named_with_its_value(rig: Rig) -> None:
    vcpu = rig.vcpu("kvm")
    reset = vcpu.save()

    with pytest.raises(AccelError, match=r"0xc0000082 \(LSTAR\).*set to 0x8000000000000000"):
        vcpu.load(replace(reset, msrs={**reset.msrs, 0xC000_0082: 1 << 63}))

    vcpu.load(reset)


def test_msr_that_is_no_64_bit_number_is_refused(rig: Rig) -> None:
    vcpu = rig.vcpu("kvm")
    reset = vcpu.save()

    with pytest.raises(AccelError, match="not a 64-bit number"):
        vcpu.load(replace(reset, msrs={**reset.msrs, 0xC000_0082: 1 << 64}))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: replace(state, xcr0=0), "extended control registers.*xcr0=0x0"),
        (
            lambda state: replace(state, control={**state.control, "cr4": 1 << 63}),
            "segment and control registers.*cr4=0x8000000000000000",
        ),
        (
            lambda state: replace(state, debug={**state.debug, "dr7": 1 << 40}),
            "debug registers.*dr7=0x10000000000",
        ),
    ],
)
def test_refused_register_is_named_with_its_value(rig: Rig, change: object, named: str) -> None:
    vcpu = rig.vcpu("kvm")
    reset = vcpu.save()
    assert callable(change)

    with pytest.raises(AccelError, match=f"{named}"):
        vcpu.load(change(reset))

    vcpu.load(reset)


def test_task_priority_survives_the_next_entry(rig: Rig) -> None:
    """Without an in-kernel APIC, KVM_RUN takes CR8 from the run page, not from what was set."""
    rig.memory.write(CODE, READ_CR8_64)
    vcpu = rig.vcpu("kvm")
    state = long_mode(vcpu.save())
    vcpu.load(replace(state, control={**state.control, "cr8": 5}))
    bus = RecordingBus()

    assert vcpu.run(bus).reason is StopReason.HALTED

    assert bus.log == [("out", 0x80, 1, 5)]
    assert vcpu.save().control["cr8"] == 5


def test_running_cpu_is_neither_saved_nor_loaded(rig: Rig) -> None:
    rig.memory.write(CODE, READ_PORT_64)
    vcpu = rig.vcpu("kvm")
    state = long_mode(vcpu.save())
    vcpu.load(state)
    refusals: list[str] = []

    def try_both() -> None:
        for attempt in (vcpu.save, lambda: vcpu.load(state)):
            with pytest.raises(AccelError, match="vCPU 0 runs") as caught:
                attempt()
            refusals.append(str(caught.value))

    bus = RecordingBus()
    bus.on_access = try_both

    assert vcpu.run(bus).reason is StopReason.HALTED
    assert len(refusals) == 2


def test_rehearsal_works_beside_an_in_kernel_irqchip_on_every_cpu(rig: Rig) -> None:
    rig.memory.write(CODE, HALT)
    vm = rig.vm("kvm", IRQCHIP)
    states = [vcpu.save() for vcpu in vm.vcpus]

    for vcpu, state in zip(vm.vcpus, states, strict=True):
        vcpu.rehearse()
        vcpu.load(state)

    assert [timeless(vcpu.save()) for vcpu in vm.vcpus] == [timeless(state) for state in states]


def test_close_unmaps_the_run_pages(rig: Rig) -> None:
    def run_pages() -> int:
        return Path("/proc/self/maps").read_text().count("kvm-vcpu")

    before = run_pages()
    vm = rig.vm("kvm", IRQCHIP)
    assert run_pages() == before + 2

    vm.close()
    vm.close()

    assert run_pages() == before


MS = 1_000_000


@pytest.mark.parametrize(
    ("times_ns", "used"),
    [
        ((5 * MS, 5 * MS + 9_000), [5 * MS]),
        ((5 * MS, 8 * MS, 9 * MS, 9 * MS + 9_000), [5 * MS, 9 * MS]),  # it lost the processor
    ],
)
def test_kvmclock_is_read_and_set_at_the_time_that_goes_with_it(
    monkeypatch: pytest.MonkeyPatch, times_ns: tuple[int, ...], used: list[int]
) -> None:
    told: list[int] = []
    clock = iter(times_ns)
    monkeypatch.setattr(time, "monotonic_ns", lambda: next(clock))
    assert at_one_moment(told.append) == used[-1]
    assert told == used


def test_on_a_machine_too_busy_the_last_try_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    clock = iter(range(0, 1000 * MS, MS))
    monkeypatch.setattr(time, "monotonic_ns", lambda: next(clock))
    assert at_one_moment(told.append) == told[-1]
    assert len(told) == chips._MOMENT_TRIES
