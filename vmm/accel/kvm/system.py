"""/dev/kvm itself: is it there, what can it do, make a VM."""

from __future__ import annotations

import os
import signal
import struct
from pathlib import Path

from vmm.accel.base import VmOptions
from vmm.accel.kick import KICK_SIGNAL
from vmm.accel.kvm import abi
from vmm.accel.kvm.cpuid import (
    ENTRIES_MAX,
    CpuidEntry,
    CpuidOptions,
    from_wire,
    guest_cpuid,
    missing_features,
)
from vmm.accel.kvm.ioctl import Buffer, blocking_ioctl, checked_ioctl
from vmm.accel.kvm.vm import KvmVm
from vmm.errors import AccelError, AccelUnavailable

DEVICE = Path("/dev/kvm")

_REQUIRED = {
    "KVM_CAP_USER_MEMORY": abi.CAP_USER_MEMORY,
    "KVM_CAP_SET_TSS_ADDR": abi.CAP_SET_TSS_ADDR,
    "KVM_CAP_SET_IDENTITY_MAP_ADDR": abi.CAP_SET_IDENTITY_MAP_ADDR,
    "KVM_CAP_EXT_CPUID": abi.CAP_EXT_CPUID,
    "KVM_CAP_MP_STATE": abi.CAP_MP_STATE,
    "KVM_CAP_VCPU_EVENTS": abi.CAP_VCPU_EVENTS,
    "KVM_CAP_DEBUGREGS": abi.CAP_DEBUGREGS,
    "KVM_CAP_XSAVE": abi.CAP_XSAVE,
    "KVM_CAP_XCRS": abi.CAP_XCRS,
    "KVM_CAP_GET_TSC_KHZ": abi.CAP_GET_TSC_KHZ,
    "KVM_CAP_IMMEDIATE_EXIT": abi.CAP_IMMEDIATE_EXIT,  # the newest of these: Linux 4.13
}
_REQUIRED_FOR_IRQCHIP = {
    "KVM_CAP_IRQCHIP": abi.CAP_IRQCHIP,
    "KVM_CAP_PIT2": abi.CAP_PIT2,
    "KVM_CAP_PIT_STATE2": abi.CAP_PIT_STATE2,
    "KVM_CAP_ADJUST_CLOCK": abi.CAP_ADJUST_CLOCK,
}

# Indices asked for in one call. Linux has a few hundred; the call fails loudly when there are more.
_MAX_MSRS = 2048

CPU_MODELS = ("max", "host")


class KvmAccelerator:
    """The open /dev/kvm. Raises AccelUnavailable when this machine has no usable one."""

    name = "kvm"

    def __init__(self, device: Path = DEVICE) -> None:
        self._fd = _open(device)
        try:
            self._check_version()
            self.require(_REQUIRED)
            self.max_vcpus = self.capability(abi.CAP_MAX_VCPUS)
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """The fd of /dev/kvm, which stays owned by this object."""
        return self._fd

    def capability(self, number: int) -> int:
        """What KVM_CHECK_EXTENSION says: 0 = absent, otherwise 1 or a quantity."""
        answer: int = blocking_ioctl(self._fd, abi.CHECK_EXTENSION, number)
        return max(0, answer)

    def require(self, capabilities: dict[str, int]) -> None:
        """Raise AccelUnavailable that names the first capability this kernel lacks."""
        for name, number in capabilities.items():
            if not self.capability(number):
                raise AccelUnavailable(
                    f"kvm does not support {name}; a newer host kernel is needed, "
                    "or '-accel unicorn'"
                )

    def cpuid_options(self, options: VmOptions) -> CpuidOptions:
        """What of a VM with `options` its CPUs can see."""
        return CpuidOptions(
            vcpu_count=options.vcpu_count,
            kernel_irqchip=options.kernel_irqchip,
            tsc_deadline=self.capability(abi.CAP_TSC_DEADLINE_TIMER) > 0,
        )

    def cpu_problems(self, options: VmOptions) -> tuple[str, ...]:
        """See Accelerator.cpu_problems: names each CPUID leaf."""
        if options.cpu is None:
            return ()
        try:
            promised = from_wire(options.cpu)
        except ValueError as error:
            return (f"HELLO has no usable CPUID: {error}",)
        ours = guest_cpuid(self.supported_cpuid(), 0, self.cpuid_options(options))
        return missing_features(promised, ours)

    def create_vm(self, options: VmOptions) -> KvmVm:
        """Make a VM without RAM; its vCPUs are in reset state.

        Raises AccelError when an option is wrong or KVM refuses, AccelUnavailable when this kernel
        lacks what `options` needs.
        """
        self._check_options(options)
        if signal.getsignal(KICK_SIGNAL) in (signal.SIG_DFL, signal.SIG_IGN, None):
            raise AccelError(
                f"no handler for {KICK_SIGNAL.name}: the process calls install_kick_handler() on "
                "its main thread first, or the first kick would end it"
            )
        if options.kernel_irqchip:
            self.require(_REQUIRED_FOR_IRQCHIP)
        return KvmVm(self, options)

    def supported_cpuid(self) -> tuple[CpuidEntry, ...]:
        """Every CPUID entry that KVM can give a guest on this host."""
        buffer = Buffer(abi.CPUID_HEADER.size + ENTRIES_MAX * abi.CPUID_ENTRY.size)
        abi.CPUID_HEADER.pack_into(buffer.data, 0, ENTRIES_MAX, 0)
        checked_ioctl(
            self._fd, abi.GET_SUPPORTED_CPUID, buffer.address, "reading the supported CPUID"
        )
        count, _ = abi.CPUID_HEADER.unpack_from(buffer.data)
        end = abi.CPUID_HEADER.size + count * abi.CPUID_ENTRY.size
        entries = abi.CPUID_ENTRY.iter_unpack(buffer.data[abi.CPUID_HEADER.size : end])
        return tuple(CpuidEntry(*fields[:7]) for fields in entries)

    def msr_indices(self) -> tuple[int, ...]:
        """The MSRs that hold guest state, according to this kernel."""
        buffer = Buffer(4 + 4 * _MAX_MSRS)
        abi.MSR_LIST_HEADER.pack_into(buffer.data, 0, _MAX_MSRS)
        checked_ioctl(self._fd, abi.GET_MSR_INDEX_LIST, buffer.address, "reading the MSR list")
        (count,) = abi.MSR_LIST_HEADER.unpack_from(buffer.data)
        return struct.unpack_from(f"<{count}I", buffer.data, abi.MSR_LIST_HEADER.size)

    def close(self) -> None:
        """Close /dev/kvm; VMs made from it live on until they are closed."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _check_version(self) -> None:
        version = blocking_ioctl(self._fd, abi.GET_API_VERSION, None)
        if version != abi.API_VERSION:
            raise AccelUnavailable(
                f"kvm version not supported: expected {abi.API_VERSION}, got {version}"
            )

    def _check_options(self, options: VmOptions) -> None:
        for name in options.properties:
            if name != "kernel-irqchip":  # folded into options.kernel_irqchip by the command line
                raise AccelError(f"Property 'kvm-accel.{name}' not found")
        if options.cpu_model not in CPU_MODELS:
            raise AccelError(
                f"unable to find CPU model '{options.cpu_model}'; "
                f"kvm has {' and '.join(CPU_MODELS)}, which are the same"
            )
        if not 1 <= options.vcpu_count <= self.max_vcpus:
            raise AccelError(
                f"Number of SMP cpus requested ({options.vcpu_count}) exceeds the maximum cpus "
                f"supported by KVM ({self.max_vcpus})"
            )


def _open(device: Path) -> int:
    try:
        return os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        advice = "load the kvm module of this CPU, or use '-accel unicorn'"
        if isinstance(error, PermissionError):
            advice = f"give this user access to {device} (group kvm), or use '-accel unicorn'"
        raise AccelUnavailable(
            f"Could not access KVM kernel module: {error.strerror} ({device}); {advice}"
        ) from error
