"""What the guest's CPUID instruction answers: what this host and KVM can do, minus what would lie.

KVM_GET_SUPPORTED_CPUID copies some fields from whatever host CPU the call runs on (APIC ids, the
topology leaves). Those are replaced by the guest's own, so that the answer depends only on the
host, the kernel, and the VM's options.

A guest keeps its answers for as long as it lives: an update tells the successor all of them (in
HELLO), and the successor gives them to its vCPUs as they are, or refuses while the guest still runs
when this host or kernel lacks a feature that they promise. Virtualization in the guest is masked:
an update carries no nested state.

Register meanings: Intel SDM vol. 2A, CPUID; leaf 0x4000_0001: KVM's cpuid.rst.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass, fields, replace

from vmm.accel.kvm import abi

_LEAF_HIGHEST = 0x0
_LEAF_FEATURES = 0x1
_LEAF_CACHES = 0x4
_LEAF_TOPOLOGY = 0xB
_LEAF_TOPOLOGY_V2 = 0x1F
_LEAF_AMD_FEATURES = 0x8000_0001
_LEAF_AMD_SIZES = 0x8000_0008
_LEAF_AMD_SVM = 0x8000_000A
_LEAF_AMD_TOPOLOGY = 0x8000_001E
_HYPERVISOR_LEAVES = range(0x4000_0000, 0x4001_0000)

_ECX_VMX = 1 << 5  # of leaf 1
_ECX_SVM = 1 << 2  # of leaf 0x8000_0001
_ECX_X2APIC = 1 << 21
_ECX_TSC_DEADLINE = 1 << 24
_ECX_HYPERVISOR = 1 << 31
_EDX_APIC = 1 << 9
_EDX_HTT = 1 << 28  # the logical processor count in ebx is valid

ENTRIES_MAX = 256  # KVM's own limit (KVM_MAX_CPUID_ENTRIES)
_TOPOLOGY_SMT = 1 << 8
_TOPOLOGY_CORE = 2 << 8


@dataclass(frozen=True, slots=True)
class CpuidEntry:
    """One answer; `flags` says whether ecx (`index`) selects it."""

    function: int
    index: int
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int


@dataclass(frozen=True, slots=True)
class CpuidOptions:
    """What of the VM the CPUs can see."""

    vcpu_count: int
    kernel_irqchip: bool
    tsc_deadline: bool


def guest_cpuid(
    supported: Iterable[CpuidEntry], vcpu_index: int, options: CpuidOptions
) -> tuple[CpuidEntry, ...]:
    """The entries for one vCPU, whose APIC id is its index."""
    kept = [entry for entry in supported if _is_kept(entry, options)]
    entries = [_fitted(entry, options) for entry in kept]
    if any(e.function == _LEAF_HIGHEST and e.eax >= _LEAF_TOPOLOGY for e in kept):
        entries.extend(_topology(options.vcpu_count))
    return renumbered(entries, vcpu_index)


def renumbered(entries: Iterable[CpuidEntry], vcpu_index: int) -> tuple[CpuidEntry, ...]:
    """The entries with the APIC id of this vCPU, by which alone vCPUs differ."""
    return tuple(_renumbered(entry, vcpu_index) for entry in entries)


def _renumbered(entry: CpuidEntry, vcpu_index: int) -> CpuidEntry:
    if entry.function == _LEAF_FEATURES:
        return replace(entry, ebx=entry.ebx & 0x00FF_FFFF | (vcpu_index & 0xFF) << 24)
    if entry.function == _LEAF_TOPOLOGY:
        return replace(entry, edx=vcpu_index)
    if entry.function == _LEAF_AMD_TOPOLOGY:
        return replace(entry, eax=vcpu_index, ebx=entry.ebx & ~0xFF | vcpu_index & 0xFF)
    return entry


def missing_features(promised: Iterable[CpuidEntry], ours: Iterable[CpuidEntry]) -> tuple[str, ...]:
    """What the entries of a running guest promise and `ours`, of the same VM here, do not have."""
    here = {(entry.function, entry.index): entry for entry in ours}
    problems = []
    for entry in promised:
        for register in _FEATURES.get((entry.function, entry.index), ()):
            mine = here.get((entry.function, entry.index))
            value = getattr(entry, register)
            lacking = value & ~(0 if mine is None else getattr(mine, register))
            if lacking:
                problems.append(
                    f"CPUID leaf {entry.function:#x}, index {entry.index}: {register} of the guest "
                    f"is {value:#x}, and this host does not have bits {lacking:#x}"
                )
    return tuple(problems)


# (leaf, index) -> registers in which each bit is a feature that the guest may use.
_FEATURES: Mapping[tuple[int, int], tuple[str, ...]] = {
    (0x1, 0): ("ecx", "edx"),
    (0x6, 0): ("eax",),
    (0x7, 0): ("ebx", "ecx", "edx"),
    (0x7, 1): ("eax", "ebx", "ecx", "edx"),
    (0x7, 2): ("edx",),
    (0xD, 0): ("eax", "edx"),
    (0xD, 1): ("eax", "ecx", "edx"),
    (0x4000_0001, 0): ("eax",),
    (0x8000_0001, 0): ("ecx", "edx"),
    (0x8000_0007, 0): ("edx",),
    (0x8000_0008, 0): ("ebx",),
    (0x8000_0021, 0): ("eax",),
}


def to_wire(entries: Iterable[CpuidEntry]) -> list[list[int]]:
    """As HELLO carries them: the fields of each entry in order."""
    return [list(astuple(entry)) for entry in entries]


def from_wire(value: object) -> tuple[CpuidEntry, ...]:
    """The opposite. Raises ValueError for anything that `to_wire` does not make."""
    if not isinstance(value, list) or len(value) > ENTRIES_MAX:
        raise ValueError(f"expected at most {ENTRIES_MAX} CPUID entries")
    for entry in value:
        if not isinstance(entry, list) or len(entry) != _FIELDS:
            raise ValueError(f"{entry!r} is not a CPUID entry of {_FIELDS} numbers")
        if any(type(number) is not int or not 0 <= number < 1 << 32 for number in entry):
            raise ValueError(f"{entry!r}: a register of 32 bits does not hold that")
    return tuple(CpuidEntry(*entry) for entry in value)


_FIELDS = len(fields(CpuidEntry))


def _is_kept(entry: CpuidEntry, options: CpuidOptions) -> bool:
    if entry.function in _HYPERVISOR_LEAVES:
        # KVM's paravirtual clock, steal time and EOI live in the kernel beside its irqchip. A VM
        # without that keeps the same small state as under any other accelerator.
        return options.kernel_irqchip
    return entry.function not in (_LEAF_TOPOLOGY, _LEAF_TOPOLOGY_V2, _LEAF_AMD_SVM)


def _fitted(entry: CpuidEntry, options: CpuidOptions) -> CpuidEntry:
    if entry.function == _LEAF_FEATURES:
        return _features(entry, options)
    if entry.function == _LEAF_AMD_FEATURES:
        return replace(entry, ecx=entry.ecx & ~_ECX_SVM)
    if entry.function == _LEAF_CACHES:
        cores = min(options.vcpu_count, 64) - 1  # a 6-bit field: cores per package, less one
        return replace(entry, eax=entry.eax & 0x0000_3FFF | cores << 26)
    if entry.function == _LEAF_AMD_SIZES and entry.ecx:  # zero on Intel
        id_bits = (options.vcpu_count - 1).bit_length()
        return replace(entry, ecx=(options.vcpu_count - 1) & 0xFF | id_bits << 12)
    if entry.function == _LEAF_AMD_TOPOLOGY:
        return replace(entry, ebx=0, ecx=0)  # one thread a core, one node
    return entry


def _features(entry: CpuidEntry, options: CpuidOptions) -> CpuidEntry:
    count = min(options.vcpu_count, 0xFF)
    ebx = entry.ebx & 0x0000_FFFF | count << 16
    ecx = (entry.ecx | _ECX_HYPERVISOR) & ~_ECX_VMX
    edx = entry.edx & ~_EDX_HTT
    if options.vcpu_count > 1:
        edx |= _EDX_HTT
    if not options.kernel_irqchip:  # no local APIC at all: say so
        ecx &= ~(_ECX_X2APIC | _ECX_TSC_DEADLINE)
        edx &= ~_EDX_APIC
    elif options.tsc_deadline:
        ecx |= _ECX_TSC_DEADLINE
    return replace(entry, ebx=ebx, ecx=ecx, edx=edx)


def _topology(vcpu_count: int) -> Iterator[CpuidEntry]:
    """One package of single-threaded cores; edx, the x2APIC id on every level, comes later."""
    id_bits = (vcpu_count - 1).bit_length()
    levels = ((0, 1, _TOPOLOGY_SMT), (id_bits, vcpu_count, _TOPOLOGY_CORE), (0, 0, 0))
    for index, (shift, count, level) in enumerate(levels):
        yield CpuidEntry(
            _LEAF_TOPOLOGY, index, abi.CPUID_FLAG_INDEXED, shift, count, level | index, 0
        )
