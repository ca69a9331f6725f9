from __future__ import annotations

import ctypes
import mmap
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmm.accel.base import MappedSlot, VmOptions
from vmm.accel.kick import KICK_SIGNAL, install_kick_handler
from vmm.accel.kvm.cpuid import CpuidOptions, guest_cpuid
from vmm.accel.kvm.system import KvmAccelerator
from vmm.errors import AccelError, AccelUnavailable

PAGE = 4096


@pytest.fixture
def kvm() -> Iterator[KvmAccelerator]:
    install_kick_handler()
    accelerator = KvmAccelerator()
    yield accelerator
    accelerator.close()


def test_missing_device_is_unavailable_and_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(AccelUnavailable) as caught:
        KvmAccelerator(tmp_path / "kvm")

    text = str(caught.value)
    assert text.startswith("Could not access KVM kernel module: No such file or directory")
    assert "-accel unicorn" in text


def test_denied_device_is_unavailable_and_names_the_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def denied(*_arguments: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)

    with pytest.raises(AccelUnavailable, match=r"KVM kernel module: Permission denied.*group kvm"):
        KvmAccelerator()


def test_device_that_is_not_kvm_is_unavailable() -> None:
    with pytest.raises(AccelUnavailable, match="kvm version not supported: expected 12, got -1"):
        KvmAccelerator(Path("/dev/null"))


@pytest.mark.needs_kvm
def test_missing_capability_is_unavailable_by_name(kvm: KvmAccelerator) -> None:
    with pytest.raises(AccelUnavailable, match="KVM_CAP_FLYING"):
        kvm.require({"KVM_CAP_FLYING": 0x7FFF_FFFF})


@pytest.mark.needs_kvm
@pytest.mark.parametrize(
    ("options", "text"),
    [
        (VmOptions(0), r"cpus requested \(0\)"),
        (VmOptions(100_000), r"cpus requested \(100000\) exceeds"),
        (VmOptions(1, cpu_model="vax"), "unable to find CPU model 'vax'"),
        (VmOptions(1, properties={"wings": "2"}), "Property 'kvm-accel.wings' not found"),
    ],
)
def test_wrong_option_is_refused_by_name(
    kvm: KvmAccelerator, options: VmOptions, text: str
) -> None:
    with pytest.raises(AccelError, match=text):
        kvm.create_vm(options)


@pytest.mark.needs_kvm
def test_vm_is_refused_while_a_kick_would_end_the_process(kvm: KvmAccelerator) -> None:
    previous = signal.signal(KICK_SIGNAL, signal.SIG_DFL)
    try:
        with pytest.raises(AccelError, match="install_kick_handler"):
            kvm.create_vm(VmOptions(1))
    finally:
        signal.signal(KICK_SIGNAL, previous)


@pytest.mark.needs_kvm
def test_refused_memory_slot_is_named_and_leaves_no_fd(kvm: KvmAccelerator) -> None:
    with mmap.mmap(-1, PAGE) as memory:
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        slots = [MappedSlot(0, PAGE, address), MappedSlot(0, PAGE, address)]
        before = len(list(Path("/proc/self/fd").iterdir()))

        vm = kvm.create_vm(VmOptions(1))
        with pytest.raises(AccelError, match=r"memory slot 2 \(0x0 to 0x1000\).*EEXIST"):
            vm.map_ram(slots)
        vm.close()

        assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.needs_kvm
def test_cpuid_does_not_depend_on_the_host_cpu_that_is_asked(kvm: KvmAccelerator) -> None:
    options = CpuidOptions(vcpu_count=2, kernel_irqchip=True, tsc_deadline=True)
    allowed = os.sched_getaffinity(0)
    answers = set()
    try:
        for cpu in allowed:
            os.sched_setaffinity(0, {cpu})
            answers.add(guest_cpuid(kvm.supported_cpuid(), 1, options))
    finally:
        os.sched_setaffinity(0, allowed)

    assert len(answers) == 1


@pytest.mark.needs_kvm
def test_device_fd_does_not_survive_exec_and_closes_once(kvm: KvmAccelerator) -> None:
    assert not os.get_inheritable(kvm.fileno())
    kvm.close()
    kvm.close()
