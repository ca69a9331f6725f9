"""Which MSRs are CPU state under KVM: found out once for each VM by trying.

The kernel's own list (KVM_GET_MSR_INDEX_LIST) also has MSRs that this host cannot set, and counters
that KVM derives from the time. What can be read, written back, and then reads the same is state.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from vmm.accel.kvm import abi
from vmm.accel.kvm.ioctl import os_refusal, state_ioctl
from vmm.accel.kvm.state import MsrBuffer
from vmm.accel.kvm.tsc import MSR_TSC

MSR_TSC_DEADLINE = 0x6E0
_MSR_APIC_BASE = 0x1B
_MSR_EFER = 0xC000_0080
_MSR_FS_BASE = 0xC000_0100
_MSR_GS_BASE = 0xC000_0101

# Writing a KVM wall-clock MSR asks for the time to be written into guest RAM, once; the guest
# writes it whenever it wants the time (KVM's msr.rst). That is a command, not state, and loading
# a state must not touch RAM, which may still belong to another process.
_COMMANDS = frozenset({0x11, 0x4B56_4D00})

# Hyper-V's interface (TLFS, appendix F), which no guest of ours is shown. Some of it counts time:
# now and then two readings agree, and such an MSR would be taken for state by one process and not
# by its successor.
_HYPER_V = frozenset(range(0x4000_0000, 0x4000_0200))

# Other fields of CpuState hold these; a state from elsewhere may have them here as well.
NOT_MSR_STATE = _HYPER_V | {MSR_TSC, _MSR_APIC_BASE, _MSR_EFER, _MSR_FS_BASE, _MSR_GS_BASE}

_NAMES = {
    0x174: "SYSENTER_CS",
    0x175: "SYSENTER_ESP",
    0x176: "SYSENTER_EIP",
    0x1A0: "MISC_ENABLE",
    0x277: "PAT",
    MSR_TSC: "TSC",
    MSR_TSC_DEADLINE: "TSC_DEADLINE",
    0xC000_0081: "STAR",
    0xC000_0082: "LSTAR",
    0xC000_0083: "CSTAR",
    0xC000_0084: "SFMASK",
    0xC000_0102: "KERNEL_GS_BASE",
    0xC000_0103: "TSC_AUX",
}


def name_of(index: int) -> str:
    """An MSR's number, with its name where we know it."""
    return f"{index:#x} ({_NAMES[index]})" if index in _NAMES else f"{index:#x}"


def state_msrs(vcpu_fd: int, listed: Sequence[int]) -> tuple[int, ...]:
    """The MSRs of `listed` that are state, TSC_DEADLINE last; `vcpu_fd` is in reset state.

    Raises AccelError when KVM fails in another way than by refusing an MSR.
    """
    candidates = [index for index in listed if index not in NOT_MSR_STATE | _COMMANDS]
    candidates.sort(key=lambda index: index == MSR_TSC_DEADLINE)
    before = _accepted(vcpu_fd, abi.GET_MSRS, dict.fromkeys(candidates, 0))
    settable = _accepted(vcpu_fd, abi.SET_MSRS, before)
    after = _accepted(vcpu_fd, abi.GET_MSRS, settable)
    return tuple(index for index, value in after.items() if value == before[index])


def _accepted(vcpu_fd: int, request: int, msrs: dict[int, int]) -> dict[int, int]:
    """The part of `msrs` that `request` takes, with the values it left; order is kept."""
    accepted: dict[int, int] = {}
    rest = list(msrs)
    while rest:
        buffer = MsrBuffer(rest)
        buffer.set_values(array("Q", [msrs[index] for index in rest]))
        done = state_ioctl(vcpu_fd, request, buffer.address)
        if done < 0:
            raise os_refusal("probing the MSRs")
        accepted.update(zip(rest[:done], buffer.values(), strict=False))
        rest = rest[done + 1 :]
    return accepted
