"""The paths of one vCPU that a healthy host does not take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contract.accel_contract import (
    CODE,
    READ_PORT_64,
    RecordingBus,
    Rig,
    long_mode,
    open_accelerator,
)
from vmm.accel.base import StopReason, VmOptions
from vmm.accel.kick import install_kick_handler
from vmm.accel.kvm import rehearsal, vm
from vmm.accel.kvm.vcpu import KvmVcpu
from vmm.errors import AccelError

pytestmark = pytest.mark.needs_kvm

NO_SUCH_MSR = 0x4_DEAD
DAYS_OF_CYCLES = 10**15


@pytest.fixture
def rig() -> Iterator[Rig]:
    install_kick_handler()
    with_memory = Rig()
    yield with_memory
    with_memory.close()


def kvm_vcpu(rig: Rig, options: VmOptions | None = None) -> KvmVcpu:
    vcpu = rig.vm("kvm", options).vcpus[0]
    assert isinstance(vcpu, KvmVcpu)
    return vcpu


def test_kernel_without_tsc_offsets_still_lets_the_counter_go_on(rig: Rig) -> None:
    vcpu, successor = kvm_vcpu(rig), kvm_vcpu(rig)
    for each in (vcpu, successor):
        each._tsc.has_offset, each._tsc.fixed_offset = False, None
    saved = vcpu.save()
    assert saved.tsc_offset is None

    successor.load(saved)

    assert saved.tsc <= successor.save().tsc < saved.tsc + DAYS_OF_CYCLES


def test_counter_of_a_host_far_ahead_goes_on_or_is_refused_but_never_goes_back(rig: Rig) -> None:
    vcpu = kvm_vcpu(rig)
    saved = vcpu.save()
    elsewhere = replace(saved, tsc=saved.tsc + DAYS_OF_CYCLES)

    if vcpu._tsc.fixed_offset is None:
        vcpu.load(elsewhere)
        assert vcpu.save().tsc >= elsewhere.tsc
    else:  # paravirtual KVM
        with pytest.raises(AccelError, match="cannot move the TSC: the guest's would go back by"):
            vcpu.load(elsewhere)


def test_counter_that_cannot_be_moved_may_run_ahead(rig: Rig) -> None:
    vcpu = kvm_vcpu(rig)
    saved = vcpu.save()
    vcpu._tsc.fixed_offset = vcpu._tsc.read_offset()

    vcpu.load(replace(saved, tsc=1000, tsc_offset=None))

    assert vcpu.save().tsc >= saved.tsc


def test_offset_that_can_be_set_is_set(rig: Rig) -> None:
    vcpu = kvm_vcpu(rig)
    saved = vcpu.save()
    vcpu._tsc.fixed_offset = None

    vcpu.load(saved)

    assert vcpu.save().tsc_offset == saved.tsc_offset


def test_run_that_the_kernel_refuses_is_an_error_with_its_text(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    vcpu = kvm_vcpu(rig)
    with Path("/dev/null").open() as not_a_vcpu, monkeypatch.context() as patched:
        patched.setattr(vcpu, "_fd", not_a_vcpu.fileno())

        stop = vcpu.run(RecordingBus())

    assert stop.reason is StopReason.ERROR
    assert stop.detail == "KVM_RUN of vCPU 0: Inappropriate ioctl for device"


def test_calls_that_the_kernel_refuses_name_what_was_moved(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    vcpu = kvm_vcpu(rig)
    saved = vcpu.save()
    with Path("/dev/null").open() as not_a_vcpu, monkeypatch.context() as patched:
        patched.setattr(vcpu, "_fd", not_a_vcpu.fileno())

        with pytest.raises(AccelError, match=r"reading the general registers.*ENOTTY"):
            vcpu.save()
        with pytest.raises(AccelError, match=r"setting the general registers.*ENOTTY"):
            vcpu.load(saved)

        patched.setattr(vcpu, "_gets", ())
        with pytest.raises(AccelError, match=r"moving the MSRs of vCPU 0.*ENOTTY"):
            vcpu.save()

    with Path("/dev/null").open() as not_a_vcpu, monkeypatch.context() as patched:
        patched.setattr(vcpu._tsc, "_fd", not_a_vcpu.fileno())
        with pytest.raises(AccelError, match=r"reading the TSC offset.*ENOTTY"):
            vcpu.save()
        patched.setattr(vcpu._tsc, "fixed_offset", None)
        with pytest.raises(AccelError, match=r"setting the TSC offset to 0x.*ENOTTY"):
            vcpu.load(saved)
        with pytest.raises(AccelError, match="reading or setting the TSC"):
            vcpu._tsc.read()


def test_vcpu_that_cannot_be_read_at_birth_leaves_nothing_behind(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_a_wrong_one(_fd: int, listed: tuple[int, ...]) -> tuple[int, ...]:
        return (listed[0], NO_SUCH_MSR)

    accelerator = open_accelerator("kvm")
    before = open_fds(), run_pages()
    monkeypatch.setattr(vm, "state_msrs", with_a_wrong_one)

    with pytest.raises(AccelError, match="MSR 0x4dead of vCPU 0 cannot be read"):
        accelerator.create_vm(VmOptions(1))

    assert (open_fds(), run_pages()) == before
    accelerator.close()


def open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def run_pages() -> int:
    return Path("/proc/self/maps").read_text().count("kvm-vcpu")


def test_msrs_outside_the_list_that_other_fields_hold_are_accepted(rig: Rig) -> None:
    vcpu = kvm_vcpu(rig)
    reset = vcpu.save()
    elsewhere = {0x10: 1, 0x1B: 2, 0xC000_0080: 3, 0xC000_0100: 4, 0xC000_0101: 5}

    vcpu.load(replace(reset, msrs={**reset.msrs, **elsewhere}))

    after = vcpu.save()
    assert (after.msrs, after.control) == (reset.msrs, reset.control)


def test_a_counter_of_hyper_v_is_no_state_and_may_come_from_elsewhere(rig: Rig) -> None:
    vcpu = kvm_vcpu(rig)
    reset = vcpu.save()
    assert not any(0x4000_0000 <= index < 0x4000_0200 for index in reset.msrs)

    vcpu.load(replace(reset, msrs={**reset.msrs, 0x4000_0010: 123}))  # VP_RUNTIME

    assert vcpu.save().msrs == reset.msrs


def test_access_that_a_device_fails_does_not_leak_into_the_next_state(rig: Rig) -> None:
    rig.memory.write(CODE, READ_PORT_64)
    vcpu = kvm_vcpu(rig)
    state = long_mode(vcpu.save())
    vcpu.load(state)
    bus = RecordingBus()

    def fail() -> None:
        raise RuntimeError("the device is broken")

    bus.on_access = fail
    with pytest.raises(RuntimeError, match="the device is broken"):
        vcpu.run(bus)

    vcpu.load(state)
    good_bus = RecordingBus({("in", 0x60): 7})
    assert vcpu.run(good_bus).reason is StopReason.HALTED
    assert good_bus.log == [("in", 0x60, 1, 7)]
    assert vcpu.save().general["rax"] == 7


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("f4", "the rehearsal of vCPU 0 ended with .*HALTED"),
        ("e4 60", "the rehearsal read 1 byte.* port 0x60"),
    ],
    ids=["hlt", "in"],
)
def test_rehearsal_that_goes_wrong_is_an_error_and_its_memory_goes_away(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, code: str, problem: str
) -> None:
    vcpu = kvm_vcpu(rig)
    with monkeypatch.context() as patched:
        patched.setattr(rehearsal, "_CODE", bytes.fromhex(code))
        with pytest.raises(AccelError, match=problem):
            vcpu.rehearse()

    rig.memory.write(CODE, READ_PORT_64)
    vcpu.rehearse()  # the slot is free again
    vcpu.load(long_mode(vcpu.save()))
    assert vcpu.run(RecordingBus()).reason is StopReason.HALTED
