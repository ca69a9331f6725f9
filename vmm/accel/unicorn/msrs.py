"""Which model-specific registers Unicorn holds, which only travel through, which are refused.

*Held* ones are the engine's own. *Carried* ones have no effect in a software CPU (feature reports,
mitigations, machine-check banks, another hypervisor's leftovers): they are kept aside and given
back by the next save, and the guest meanwhile reads zero. Any other MSR is refused unless it is
zero: it would have to do something here, or we do not know what it is.
"""

from __future__ import annotations

from collections.abc import Mapping

from vmm.errors import AccelError

MSR_TSC, MSR_APIC_BASE, MSR_EFER = 0x10, 0x1B, 0xC000_0080
MSR_FS_BASE, MSR_GS_BASE = 0xC000_0100, 0xC000_0101
# These have fields of their own in CpuState; as MSRs they are second names for the same values.
ALIASED_MSRS = frozenset((MSR_TSC, MSR_APIC_BASE, MSR_EFER, MSR_FS_BASE, MSR_GS_BASE))

# sysenter cs/esp/eip, star, lstar, cstar, sfmask, kernel_gs_base: part of every saved state.
ALWAYS_SAVED_MSRS = (
    0x174, 0x175, 0x176,
    0xC000_0081, 0xC000_0082, 0xC000_0083, 0xC000_0084, 0xC000_0102,
)  # fmt: skip
# misc_enable, PAT, tsc_aux, MTRRs: saved when the loaded state had them or the guest changed them,
# because a host whose CPU model lacks one refuses it even with its reset value.
_SAVED_IF_USED_MSRS = (
    0x1A0, 0x277, 0xC000_0103,
    *range(0x200, 0x210), 0x250, 0x258, 0x259, *range(0x268, 0x270), 0x2FF,
)  # fmt: skip
HELD_MSRS = ALWAYS_SAVED_MSRS + _SAVED_IF_USED_MSRS

_PASSIVE_MSRS = frozenset(
    (
        0x34, 0x3A, 0x3B, 0x48, 0x8B, 0x9E, 0xCE, 0xCF, 0xFE, 0x10A, 0x122, 0x140, 0x179, 0x17A,
        0x17B, 0x1D9, 0x1DB, 0x1DC, 0x1DD, 0x1DE, 0x1FC, 0x345, 0x38F,
        *range(0x400, 0x480),  # machine-check banks
        *range(0x480, 0x492),  # reports of VT-x features
        0x4B56_4D00, 0x4B56_4D05, 0x4B56_4D06,  # KVM: wall clock written once, polling hint, vector
        0xC000_0104, 0xC001_0015, 0xC001_011F, 0xC001_1029,
    )
)  # fmt: skip

_NAMES = {
    0x12: "old kvmclock", 0x6E0: "TSC deadline timer", 0xD90: "MPX", 0xDA0: "XSS",
    0x4B56_4D01: "kvmclock", 0x4B56_4D02: "KVM asynchronous page faults",
    0x4B56_4D03: "KVM steal time", 0x4B56_4D04: "KVM paravirtual EOI", 0xC001_0117: "SVM host save",
}  # fmt: skip


def carried_msrs(msrs: Mapping[int, int]) -> dict[int, int]:
    """The MSRs of a state that only travel through; raises AccelError for one that cannot."""
    carried = {
        index: value
        for index, value in msrs.items()
        if index not in _HELD and index not in ALIASED_MSRS
    }
    for index, value in carried.items():
        if value and index not in _PASSIVE_MSRS:
            name = f" ({_NAMES[index]})" if index in _NAMES else ""
            raise AccelError(
                f"MSR {index:#x}{name} is {value:#x}, and unicorn does not have it: expected 0. "
                "Load this state with kvm"
            )
    return carried


_HELD = frozenset(HELD_MSRS)
