"""How one KVM vCPU's TSC is read and set; what it is set to, `vmm.accel.tsc` says."""

from __future__ import annotations

import time
from array import array

from vmm.accel.kvm import abi
from vmm.accel.kvm.ioctl import Buffer, blocking_ioctl, checked_ioctl, os_refusal, state_ioctl
from vmm.accel.kvm.state import MsrBuffer
from vmm.accel.tsc import TscReading
from vmm.errors import AccelError

MSR_TSC = 0x10

_U64 = 2**64
_PROBE_CYCLES = 1 << 40  # some minutes: far more than two readings of one offset could differ


class VcpuTsc:
    """One vCPU's TSC: its value and, from Linux 5.16 on, its offset to the host's.

    Every method raises AccelError when KVM refuses.
    """

    def __init__(self, vcpu_fd: int) -> None:
        self._fd = vcpu_fd  # owned by the vCPU
        self._value = MsrBuffer((MSR_TSC,))
        self._offset = array("Q", [0])
        self._attribute = Buffer(abi.DEVICE_ATTR.size)
        offset_address, _ = self._offset.buffer_info()
        abi.DEVICE_ATTR.pack_into(
            self._attribute.data, 0, 0, abi.TSC_CTRL_GROUP, abi.TSC_OFFSET_ATTR, offset_address
        )
        answer = blocking_ioctl(vcpu_fd, abi.HAS_DEVICE_ATTR, self._attribute.address)
        self.has_offset = bool(answer == 0)
        self.fixed_offset = self._probe_fixed_offset() if self.has_offset else None

    def read(self) -> tuple[int, int, int | None]:
        """(guest TSC, CLOCK_MONOTONIC in ns just before that, offset or None)."""
        host_ns = time.monotonic_ns()
        self._transfer_value(abi.GET_MSRS)
        return self._value.values()[0], host_ns, self.read_offset()

    def set(self, reading: TscReading, tsc: int, tsc_host_ns: int, tsc_offset: int | None) -> None:
        """Let the saved TSC go on from now."""
        now_ns = time.monotonic_ns()
        offset = reading.offset_for(tsc, tsc_host_ns, tsc_offset, now_ns)
        if self.fixed_offset is not None:
            elapsed_cycles = reading.cycles(max(0, now_ns - tsc_host_ns))
            _require_forward(self.fixed_offset, offset, elapsed_cycles)
            return
        if self.has_offset:
            self._write_offset(offset)
            return
        self._value.set_values(array("Q", [(reading.host_tsc_at(now_ns) + offset) % _U64]))
        self._transfer_value(abi.SET_MSRS)

    def _probe_fixed_offset(self) -> int | None:
        """The offset, when setting another one succeeds but changes nothing; None = it can be set.

        So it is under paravirtual KVM: its guests execute rdtsc on the host's counter itself.
        """
        before = self.read_offset()
        assert before is not None
        self._write_offset(before ^ _PROBE_CYCLES)
        after = self.read_offset()
        self._write_offset(before)
        return before if after == before else None

    def _write_offset(self, offset: int) -> None:
        self._offset[0] = offset
        if state_ioctl(self._fd, abi.SET_DEVICE_ATTR, self._attribute.address) < 0:
            raise os_refusal(f"setting the TSC offset to {offset:#x}")

    def _transfer_value(self, request: int) -> None:
        if state_ioctl(self._fd, request, self._value.address) != 1:
            raise os_refusal("reading or setting the TSC")

    def read_offset(self) -> int | None:
        """Guest minus host TSC, unsigned 64-bit; None on a kernel that does not say."""
        if not self.has_offset:
            return None
        if state_ioctl(self._fd, abi.GET_DEVICE_ATTR, self._attribute.address) < 0:
            raise os_refusal("reading the TSC offset")
        return self._offset[0]


def _require_forward(fixed_offset: int, wanted_offset: int, elapsed_cycles: int) -> None:
    """A TSC that cannot be moved may run ahead of the saved one, but never start below it."""
    behind = (wanted_offset - fixed_offset + _U64 // 2) % _U64 - _U64 // 2
    if behind > elapsed_cycles:
        raise AccelError(
            "this host's KVM cannot move the TSC: the guest's would go back by "
            f"{behind - elapsed_cycles} cycles; use a host that has run longer, or another "
            "accelerator"
        )


def read_host_tsc(vcpu_fd: int) -> TscReading:
    """The host's TSC now; without offsets a new vCPU's own, whose base then does not matter."""
    khz = checked_ioctl(vcpu_fd, abi.GET_TSC_KHZ, 0, "reading the TSC frequency")
    tsc, host_ns, offset = VcpuTsc(vcpu_fd).read()
    return TscReading((tsc - (offset or 0)) % _U64, host_ns, khz)
