from __future__ import annotations

from dataclasses import replace

import pytest

from vmm.accel.kvm.cpuid import (
    ENTRIES_MAX,
    CpuidEntry,
    CpuidOptions,
    from_wire,
    guest_cpuid,
    missing_features,
    renumbered,
    to_wire,
)

ONE = CpuidOptions(vcpu_count=1, kernel_irqchip=False, tsc_deadline=True)
FOUR_WITH_IRQCHIP = CpuidOptions(vcpu_count=4, kernel_irqchip=True, tsc_deadline=True)

X2APIC, TSC_DEADLINE, HYPERVISOR = 1 << 21, 1 << 24, 1 << 31
APIC, HTT = 1 << 9, 1 << 28


def entry(function: int, index: int = 0, **registers: int) -> CpuidEntry:
    return replace(CpuidEntry(function, index, 0, 0, 0, 0, 0), **registers)


SUPPORTED = (
    entry(0x0, eax=0xD),
    entry(0x1, ebx=0x0702_0800, ecx=X2APIC, edx=APIC),
    entry(0x4, eax=0x1C00_4121),
    entry(0xB, eax=1, ebx=2, ecx=0x100, edx=7),
    entry(0x4000_0000, eax=0x4000_0001),
    entry(0x4000_0001, eax=0xFF),
    entry(0x8000_0008, eax=0x3030, ecx=0x701F),
    entry(0x8000_001E, eax=7, ebx=3, ecx=1),
)


def by_leaf(vcpu_index: int, options: CpuidOptions) -> dict[tuple[int, int], CpuidEntry]:
    entries = guest_cpuid(SUPPORTED, vcpu_index, options)
    table = {(found.function, found.index): found for found in entries}
    assert len(table) == len(entries), "an entry is there twice"
    return table


def test_apic_ids_are_the_vcpu_s_and_not_those_of_the_host_cpu() -> None:
    table = by_leaf(2, FOUR_WITH_IRQCHIP)

    assert table[0x1, 0].ebx == 0x0204_0800  # id 2, four logical processors, the rest as it was
    assert {table[0xB, level].edx for level in range(3)} == {2}
    assert (table[0x8000_001E, 0].eax, table[0x8000_001E, 0].ecx) == (2, 0)


def test_topology_is_one_package_of_single_threaded_cores() -> None:
    table = by_leaf(0, FOUR_WITH_IRQCHIP)

    assert (table[0xB, 0].eax, table[0xB, 0].ebx, table[0xB, 0].ecx) == (0, 1, 0x100)
    assert (table[0xB, 1].eax, table[0xB, 1].ebx, table[0xB, 1].ecx) == (2, 4, 0x201)
    assert (table[0xB, 2].eax, table[0xB, 2].ebx, table[0xB, 2].ecx) == (0, 0, 2)
    assert table[0x4, 0].eax == 3 << 26 | 0x121
    assert table[0x8000_0008, 0].ecx == 2 << 12 | 3
    assert table[0x1, 0].edx & HTT


def test_irqchip_in_user_space_hides_the_apic_and_the_paravirtual_leaves() -> None:
    table = by_leaf(0, ONE)

    assert not table[0x1, 0].edx & (APIC | HTT)
    assert not table[0x1, 0].ecx & (X2APIC | TSC_DEADLINE)
    assert table[0x1, 0].ecx & HYPERVISOR
    assert not [leaf for leaf, _ in table if 0x4000_0000 <= leaf < 0x4001_0000]


def test_irqchip_in_the_kernel_offers_apic_deadline_timer_and_paravirtual_leaves() -> None:
    table = by_leaf(0, FOUR_WITH_IRQCHIP)

    assert table[0x1, 0].edx & APIC
    assert table[0x1, 0].ecx & (X2APIC | TSC_DEADLINE) == X2APIC | TSC_DEADLINE
    assert table[0x4000_0001, 0].eax == 0xFF


def test_topology_leaf_is_left_out_where_the_host_ends_before_it() -> None:
    supported = (entry(0x0, eax=0x7), entry(0x1), entry(0x7))

    entries = guest_cpuid(supported, 0, FOUR_WITH_IRQCHIP)

    assert [found.function for found in entries] == [0x0, 0x1, 0x7]


def test_intel_leaf_without_core_count_stays_zero() -> None:
    (found,) = guest_cpuid((entry(0x8000_0008, eax=0x3030),), 0, FOUR_WITH_IRQCHIP)[:1]

    assert (found.eax, found.ecx) == (0x3030, 0)


def test_virtualization_is_not_offered_because_no_nested_state_travels() -> None:
    vmx, svm = 1 << 5, 1 << 2
    supported = (
        entry(0x1, ecx=vmx | 1),
        entry(0x8000_0001, ecx=svm | 1),
        entry(0x8000_000A, eax=1),
    )
    table = {found.function: found for found in guest_cpuid(supported, 0, FOUR_WITH_IRQCHIP)}
    assert not table[0x1].ecx & vmx
    assert table[0x8000_0001].ecx == 1
    assert 0x8000_000A not in table


@pytest.mark.parametrize("options", [ONE, FOUR_WITH_IRQCHIP])
def test_a_guest_s_answers_come_back_from_the_wire_and_fit_every_vcpu(
    options: CpuidOptions,
) -> None:
    first = guest_cpuid(SUPPORTED, 0, options)
    kept = from_wire(to_wire(first))
    assert kept == first
    for index in range(options.vcpu_count):
        assert renumbered(kept, index) == guest_cpuid(SUPPORTED, index, options)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "expected at most 256 CPUID entries"),
        ([[0] * 7] * (ENTRIES_MAX + 1), "expected at most 256"),
        ([7], "is not a CPUID entry of 7 numbers"),
        ([[0] * 6], "is not a CPUID entry of 7 numbers"),
        ([[0] * 6 + [1 << 32]], "does not hold that"),
        ([[0] * 6 + [-1]], "does not hold that"),
        ([[0] * 6 + [True]], "does not hold that"),
        ([[0] * 6 + ["1"]], "does not hold that"),
    ],
)
def test_what_is_no_list_of_entries_is_refused(value: object, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        from_wire(value)


def test_features_that_are_promised_and_not_here_are_named_by_leaf_and_bits() -> None:
    guest = (entry(0x1, ecx=0b111, eax=99), entry(0x7, 0, ebx=0x20), entry(0x7, 1, eax=0x10))
    here = (entry(0x1, ecx=0b101, eax=1), entry(0x7, 0, ebx=0x60))
    assert missing_features(guest, guest) == ()
    assert missing_features(guest, here) == (
        "CPUID leaf 0x1, index 0: ecx of the guest is 0x7, and this host does not have bits 0x2",
        "CPUID leaf 0x7, index 1: eax of the guest is 0x10, and this host does not have bits 0x10",
    )
