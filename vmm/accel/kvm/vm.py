"""A KVM virtual machine: memory slots, in-kernel chips where asked for, and the vCPUs."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol

from cpr.vmstate import VmState
from vmm.accel.base import CpuDescription, MappedSlot, VmOptions
from vmm.accel.kvm import abi
from vmm.accel.kvm.chips import CHIP_STATE_TYPES, Chips
from vmm.accel.kvm.cpuid import (
    CpuidEntry,
    CpuidOptions,
    from_wire,
    guest_cpuid,
    renumbered,
    to_wire,
)
from vmm.accel.kvm.ioctl import Buffer, blocking_ioctl, checked_ioctl
from vmm.accel.kvm.msrs import state_msrs
from vmm.accel.kvm.rehearsal import SIZE_BYTES as REHEARSAL_SIZE_BYTES
from vmm.accel.kvm.rehearsal import RehearsalCode
from vmm.accel.kvm.tsc import read_host_tsc
from vmm.accel.kvm.vcpu import KvmVcpu, VcpuContext
from vmm.errors import AccelError

# Four pages that Intel's virtualization needs for real mode, in the part of the PC hole where QEMU
# has them too. AMD's does not use them.
_IDENTITY_MAP_ADDRESS = 0xFEFF_C000
_TSS_ADDRESS = 0xFEFF_D000

_REHEARSAL_SLOT = 0
_FIRST_RAM_SLOT = 1

_4_GIB = 4 << 30
_1_GIB = 1 << 30  # the rehearsal's slot lies on such a border, above all RAM


class System(Protocol):
    """What a VM asks of /dev/kvm."""

    def fileno(self) -> int:
        """Its fd."""
        ...

    def capability(self, number: int) -> int:
        """0 = absent."""
        ...

    def supported_cpuid(self) -> tuple[CpuidEntry, ...]:
        """All that a guest can be given."""
        ...

    def cpuid_options(self, options: VmOptions) -> CpuidOptions:
        """What of a VM with `options` its CPUs can see."""
        ...

    def msr_indices(self) -> tuple[int, ...]:
        """The kernel's list."""
        ...


class KvmVm:
    """Owns the VM's fd and its vCPUs. Raises AccelError when KVM refuses any part of it."""

    def __init__(self, system: System, options: VmOptions) -> None:
        self._options = options
        self._rehearsal_address = _4_GIB
        self._fd = checked_ioctl(system.fileno(), abi.CREATE_VM, 0, "creating a VM")
        self.vcpus: tuple[KvmVcpu, ...] = ()
        with ExitStack() as undo:
            undo.callback(self.close)
            self._place_intel_pages()
            self._chips = Chips(self._fd) if options.kernel_irqchip else None
            self._enable_exact_events(system)
            self._create_vcpus(system)
            undo.pop_all()

    def map_ram(self, slots: Sequence[MappedSlot]) -> None:
        """See GuestVm.map_ram (KVM API, KVM_SET_USER_MEMORY_REGION)."""
        for number, slot in enumerate(slots, _FIRST_RAM_SLOT):
            self._set_slot(number, slot)
        top = max((slot.guest_start + slot.size_bytes for slot in slots), default=0)
        self._rehearsal_address = -(-max(top, _4_GIB) // _1_GIB) * _1_GIB

    def state_types(self) -> tuple[type[VmState], ...]:
        """The types that `save` returns, in its order; none when every chip is in user space."""
        return CHIP_STATE_TYPES if self._options.kernel_irqchip else ()

    def save(self) -> tuple[VmState, ...]:
        """State of the in-kernel chips; raises AccelError when KVM refuses."""
        return self._chips.save() if self._chips is not None else ()

    def load(self, states: Sequence[VmState]) -> None:
        """Replace all of what `save` gives; raises AccelError naming the part."""
        expected = self.state_types()
        if tuple(type(state) for state in states) != expected:
            raise AccelError(
                f"expected the states {[kind.NAME for kind in expected]}, got "
                f"{[state.NAME for state in states]}"
            )
        if self._chips is not None:
            self._chips.load(states)

    def cpu_description(self) -> CpuDescription | None:
        """CPUID of vCPU 0; the others differ in their APIC ids."""
        return to_wire(self._cpuid)

    def was_paused(self) -> None:
        """See GuestVm.was_paused (KVM API, KVM_KVMCLOCK_CTRL)."""
        if self._options.kernel_irqchip:  # without it the guest sees no paravirtual clock
            for vcpu in self.vcpus:
                vcpu.was_paused()

    def irq_line(self, gsi: int) -> Callable[[bool], None] | None:
        """See GuestVm.irq_line. KVM ignores the level of an input that does not exist."""
        return None if self._chips is None else self._chips.irq_line(gsi)

    def signal_on_store(self, address: int, size: int, value: int, eventfd: int) -> bool:
        """See GuestVm.signal_on_store (KVM API, KVM_IOEVENTFD)."""
        request = Buffer(abi.IOEVENTFD.size)
        flags = abi.IOEVENTFD_DATAMATCH
        abi.IOEVENTFD.pack_into(request.data, 0, value, address, size, eventfd, flags)
        what = f"an eventfd for {value:#x} at {address:#x}"
        checked_ioctl(self._fd, abi.SET_IOEVENTFD, request.address, what)
        return True

    def close(self) -> None:
        """Release the vCPUs, then the VM; their threads have ended."""
        for vcpu in self.vcpus:
            vcpu.close()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    # ---- construction ---------------------------------------------------------------------------

    def _place_intel_pages(self) -> None:
        checked_ioctl(self._fd, abi.SET_TSS_ADDR, _TSS_ADDRESS, "placing the TSS")
        address = Buffer(abi.IDENTITY_MAP.size)
        abi.IDENTITY_MAP.pack_into(address.data, 0, _IDENTITY_MAP_ADDRESS)
        checked_ioctl(
            self._fd, abi.SET_IDENTITY_MAP_ADDR, address.address, "placing the identity map"
        )

    def _set_slot(self, number: int, slot: MappedSlot) -> None:
        region = Buffer(abi.MEMORY_REGION.size)
        abi.MEMORY_REGION.pack_into(
            region.data, 0, number, 0, slot.guest_start, slot.size_bytes, slot.host_address
        )
        end = slot.guest_start + slot.size_bytes
        what = f"memory slot {number} ({slot.guest_start:#x} to {end:#x})"
        checked_ioctl(self._fd, abi.SET_USER_MEMORY_REGION, region.address, what)

    def _enable_exact_events(self, system: System) -> None:
        """Let pending exceptions and triple faults be told apart from injected ones.

        Otherwise one that is pending when the guest stops would arrive changed, or not at all, at
        the successor (KVM API, KVM_CAP_EXCEPTION_PAYLOAD and KVM_CAP_X86_TRIPLE_FAULT_EVENT).
        """
        for capability in (abi.CAP_EXCEPTION_PAYLOAD, abi.CAP_TRIPLE_FAULT_EVENT):
            if system.capability(capability):
                _enable(self._fd, capability)

    def _create_vcpus(self, system: System) -> None:
        options = self._options
        if options.cpu is None:
            self._cpuid = guest_cpuid(system.supported_cpuid(), 0, system.cpuid_options(options))
        else:
            self._cpuid = from_wire(options.cpu)
        context: VcpuContext | None = None
        for index in range(self._options.vcpu_count):
            fd = checked_ioctl(self._fd, abi.CREATE_VCPU, index, f"creating vCPU {index}")
            with ExitStack() as undo:
                undo.callback(os.close, fd)
                if system.capability(abi.CAP_ENFORCE_PV_FEATURE_CPUID):
                    _enable(fd, abi.CAP_ENFORCE_PV_FEATURE_CPUID)
                _set_cpuid(fd, renumbered(self._cpuid, index))
                if context is None:  # all vCPUs are alike: the first one is asked
                    context = self._context(system, fd)
                vcpu = KvmVcpu(fd, index, context)
                undo.pop_all()
            self.vcpus = (*self.vcpus, vcpu)

    def _context(self, system: System, vcpu_fd: int) -> VcpuContext:
        xsave2_size_bytes = blocking_ioctl(self._fd, abi.CHECK_EXTENSION, abi.CAP_XSAVE2)
        page_size = checked_ioctl(
            system.fileno(), abi.GET_VCPU_MMAP_SIZE, 0, "reading the run page size"
        )
        return VcpuContext(
            run_page_size_bytes=page_size,
            xsave_size_bytes=max(abi.XSAVE_SIZE_BYTES, xsave2_size_bytes),
            has_xsave2=xsave2_size_bytes > 0,
            has_lapic=self._options.kernel_irqchip,
            msr_indices=state_msrs(vcpu_fd, system.msr_indices()),
            tsc=read_host_tsc(vcpu_fd),
            rehearsal_memory=self._rehearsal_memory,
        )

    @contextmanager
    def _rehearsal_memory(self) -> Iterator[RehearsalCode]:
        """A memory slot that exists while the block runs."""
        code = RehearsalCode(self._rehearsal_address)
        address = ctypes.addressof(ctypes.c_char.from_buffer(code.memory))
        try:
            self._set_slot(
                _REHEARSAL_SLOT, MappedSlot(code.guest_start, REHEARSAL_SIZE_BYTES, address)
            )
            try:
                yield code
            finally:  # size 0 deletes the slot
                self._set_slot(_REHEARSAL_SLOT, MappedSlot(code.guest_start, 0, address))
        finally:
            code.close()


def _enable(fd: int, capability: int) -> None:
    request = Buffer(abi.ENABLE_CAP.size)
    abi.ENABLE_CAP.pack_into(request.data, 0, capability, 0, 1, 0, 0, 0)
    checked_ioctl(fd, abi.ENABLE_CAP_IOCTL, request.address, f"enabling capability {capability}")


def _set_cpuid(vcpu_fd: int, entries: Sequence[CpuidEntry]) -> None:
    buffer = Buffer(abi.CPUID_HEADER.size + len(entries) * abi.CPUID_ENTRY.size)
    abi.CPUID_HEADER.pack_into(buffer.data, 0, len(entries), 0)
    for place, e in enumerate(entries):
        offset = abi.CPUID_HEADER.size + place * abi.CPUID_ENTRY.size
        values = (e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx, 0, 0, 0)
        abi.CPUID_ENTRY.pack_into(buffer.data, offset, *values)
    checked_ioctl(vcpu_fd, abi.SET_CPUID2, buffer.address, "setting the CPUID")
