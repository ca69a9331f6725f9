"""The cheapest way to take a whole CPU state out of a vCPU and put it into another; the floor's.

The real hand-over names every register, checks every type and can change accelerators. The floor
moves the kernel's own structs and checks nothing: what is left is the work that nobody can save.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any, Protocol

from tools.lab.errors import LabError
from vmm.accel.base import Vcpu
from vmm.accel.kvm import abi
from vmm.accel.kvm.ioctl import Buffer, state_ioctl
from vmm.accel.kvm.state import MsrBuffer
from vmm.accel.kvm.vcpu import KvmVcpu
from vmm.accel.x86_section import CpuSection

# The XSAVE area without extended components (SDM vol. 1, 13.4); the built-in guest uses none.
_XSAVE_BASE_BYTES = 576


class BareCpu(Protocol):
    """Reads and replaces a stopped vCPU's whole state as one CBOR map."""

    def read(self) -> Mapping[str, Any]:
        """Read everything that `Vcpu.save` reads."""
        ...

    def write(self, fields: Mapping[str, Any]) -> None:
        """Set everything that `Vcpu.load` sets."""
        ...


def bare_cpu(vcpu: Vcpu) -> BareCpu:
    """Give the cheapest access that this accelerator has."""
    return BareKvmCpu(vcpu) if isinstance(vcpu, KvmVcpu) else NamedCpu(vcpu)


class NamedCpu:
    """Any accelerator: its own save and load, without sections, versions and digests."""

    def __init__(self, vcpu: Vcpu) -> None:
        self._vcpu = vcpu

    def read(self) -> Mapping[str, Any]:
        """Registers by name."""
        return self._vcpu.capture().to_map()

    def write(self, fields: Mapping[str, Any]) -> None:
        """Registers by name; the types are believed."""
        self._vcpu.restore(CpuSection(**fields))


class BareKvmCpu:
    """KVM: the kernel's structs as they are, in buffers made once.

    Without an in-kernel interrupt controller there is no LAPIC and no run state to move.
    """

    def __init__(self, vcpu: KvmVcpu) -> None:
        self._fd = vcpu._fd  # noqa: SLF001 - the floor goes below the public interface on purpose
        structs = {
            "regs": (abi.GET_REGS, abi.SET_REGS, abi.REGS.size),
            "sregs": (abi.GET_SREGS, abi.SET_SREGS, abi.SREGS.size),
            "xcrs": (abi.GET_XCRS, abi.SET_XCRS, abi.XCRS.size),
            "xsave": (abi.GET_XSAVE, abi.SET_XSAVE, abi.XSAVE_SIZE_BYTES),
            "debugregs": (abi.GET_DEBUGREGS, abi.SET_DEBUGREGS, abi.DEBUGREGS.size),
            "events": (abi.GET_VCPU_EVENTS, abi.SET_VCPU_EVENTS, abi.VCPU_EVENTS.size),
        }
        buffers = {name: Buffer(size_bytes) for name, (_get, _set, size_bytes) in structs.items()}
        self._views = {name: memoryview(buffer.data) for name, buffer in buffers.items()}
        self._views["xsave"] = self._views["xsave"][:_XSAVE_BASE_BYTES]
        self._msrs = MsrBuffer(tuple(vcpu.save().msrs))
        self._views["msrs"] = memoryview(self._msrs.data)[abi.MSR_HEADER.size :]
        self._tsc_offset = array("Q", [0])
        self._views["tsc-offset"] = memoryview(self._tsc_offset).cast("B")
        attribute = Buffer(abi.DEVICE_ATTR.size)
        self._pinned = (buffers, attribute)
        address, _ = self._tsc_offset.buffer_info()
        abi.DEVICE_ATTR.pack_into(
            attribute.data, 0, 0, abi.TSC_CTRL_GROUP, abi.TSC_OFFSET_ATTR, address
        )
        addresses = {name: buffer.address for name, buffer in buffers.items()}
        self._gets = [(get, addresses[name]) for name, (get, _set, _size) in structs.items()]
        self._sets = [(set_, addresses[name]) for name, (_get, set_, _size) in structs.items()]
        self._gets.append((abi.GET_DEVICE_ATTR, attribute.address))
        self._sets.append((abi.SET_DEVICE_ATTR, attribute.address))

    def read(self) -> Mapping[str, Any]:
        """One ioctl for each struct, one for the MSRs, one for the TSC offset."""
        self._transfer(self._gets, abi.GET_MSRS)
        return {name: bytes(view) for name, view in self._views.items()}

    def write(self, fields: Mapping[str, Any]) -> None:
        """Set the same; control registers before what they enable, MSRs last."""
        for name, view in self._views.items():
            view[:] = fields[name]
        self._transfer(self._sets, abi.SET_MSRS)

    def _transfer(self, plan: list[tuple[int, int]], msrs: int) -> None:
        fd = self._fd
        for request, address in plan:
            if state_ioctl(fd, request, address) < 0:
                raise LabError(f"floor: ioctl {request:#x} failed")
        if state_ioctl(fd, msrs, self._msrs.address) != len(self._msrs.indices):
            raise LabError("floor: KVM refused an MSR")
