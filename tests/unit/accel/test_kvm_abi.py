"""The computed ioctl numbers against the ones a C compiler gives for linux/kvm.h on x86-64."""

from __future__ import annotations

import pytest

from vmm.accel.kvm import abi

NUMBERS = {
    "GET_API_VERSION": 0xAE00,
    "CREATE_VM": 0xAE01,
    "GET_MSR_INDEX_LIST": 0xC004AE02,
    "CHECK_EXTENSION": 0xAE03,
    "GET_VCPU_MMAP_SIZE": 0xAE04,
    "GET_SUPPORTED_CPUID": 0xC008AE05,
    "CREATE_VCPU": 0xAE41,
    "SET_USER_MEMORY_REGION": 0x4020AE46,
    "SET_TSS_ADDR": 0xAE47,
    "SET_IDENTITY_MAP_ADDR": 0x4008AE48,
    "CREATE_IRQCHIP": 0xAE60,
    "IRQ_LINE": 0x4008AE61,
    "GET_IRQCHIP": 0xC208AE62,
    "SET_IRQCHIP": 0x8208AE63,
    "CREATE_PIT2": 0x4040AE77,
    "GET_PIT2": 0x8070AE9F,
    "SET_PIT2": 0x4070AEA0,
    "GET_CLOCK": 0x8030AE7C,
    "SET_CLOCK": 0x4030AE7B,
    "RUN": 0xAE80,
    "GET_REGS": 0x8090AE81,
    "SET_REGS": 0x4090AE82,
    "GET_SREGS": 0x8138AE83,
    "SET_SREGS": 0x4138AE84,
    "GET_MSRS": 0xC008AE88,
    "SET_MSRS": 0x4008AE89,
    "GET_LAPIC": 0x8400AE8E,
    "SET_LAPIC": 0x4400AE8F,
    "SET_CPUID2": 0x4008AE90,
    "GET_MP_STATE": 0x8004AE98,
    "SET_MP_STATE": 0x4004AE99,
    "GET_VCPU_EVENTS": 0x8040AE9F,
    "SET_VCPU_EVENTS": 0x4040AEA0,
    "GET_DEBUGREGS": 0x8080AEA1,
    "SET_DEBUGREGS": 0x4080AEA2,
    "ENABLE_CAP_IOCTL": 0x4068AEA3,
    "GET_TSC_KHZ": 0xAEA3,
    "GET_XSAVE": 0x9000AEA4,
    "SET_XSAVE": 0x5000AEA5,
    "GET_XCRS": 0x8188AEA6,
    "SET_XCRS": 0x4188AEA7,
    "GET_XSAVE2": 0x9000AECF,
    "SET_DEVICE_ATTR": 0x4018AEE1,
    "GET_DEVICE_ATTR": 0x4018AEE2,
    "HAS_DEVICE_ATTR": 0x4018AEE3,
}


@pytest.mark.parametrize("name", NUMBERS)
def test_ioctl_number_is_the_kernel_s(name: str) -> None:
    assert getattr(abi, name) == NUMBERS[name]
