"""Numbers and layouts of the KVM interface on x86-64 (linux/kvm.h, asm/kvm.h); nothing else.

An ioctl number carries the size of its struct in bits 16..29, so each number here is computed from
the struct it belongs to: a layout that is wrong gives a number that the kernel refuses.
"""

from __future__ import annotations

from struct import Struct

API_VERSION = 12  # the only one that Linux has had since 2.6.22

# ---- struct layouts -----------------------------------------------------------------------------

# rax rbx rcx rdx rsi rdi rsp rbp r8..r15 rip rflags: the order of x86_state.GENERAL_REGISTERS
REGS = Struct("<18Q")
# 8 segments: base, limit, selector, attribute bytes (type present dpl db s l g avl unusable);
# gdt and idt: base, limit; cr0 cr2 cr3 cr4 cr8 efer apic_base; bitmap of injected interrupts,
# which stays zero because VCPU_EVENTS carries the same fact
SREGS = Struct("<" + "QIH9sx" * 8 + "QH6x" * 2 + "7Q" + "32x")
XCRS = Struct("<II" + "IIQ" + "368x")  # count, flags, then (number, 0, value); XCR0 alone is used
DEBUGREGS = Struct("<7Q72x")  # dr0..dr3, dr6, dr7, flags
# exception: injected nr has_error_code pending error_code; interrupt: injected nr soft shadow;
# nmi: injected pending masked; sipi_vector; flags; smi: smm pending inside_nmi latched_init;
# triple_fault; exception_has_payload; exception_payload
VCPU_EVENTS = Struct("<4BI" + "4B" + "3Bx" + "I" + "I" + "4B" + "B26x" + "BQ")
MP_STATE = Struct("<I")
MSR_HEADER = Struct("<II")  # count, 0
MSR_ENTRY = Struct("<IIQ")  # index, 0, value
MSR_LIST_HEADER = Struct("<I")
CPUID_HEADER = Struct("<II")  # count, 0
CPUID_ENTRY = Struct("<10I")  # function, index, flags, eax, ebx, ecx, edx, 3 x 0
MEMORY_REGION = Struct("<IIQQQ")  # slot, flags, guest address, size, host address
DEVICE_ATTR = Struct("<IIQQ")  # flags, group, attribute, address of the value
ENABLE_CAP = Struct("<II4Q64x")  # capability, flags, arguments
CLOCK_DATA = Struct("<QII32x")  # clock in ns, flags, 0
PIT_CONFIG = Struct("<I60x")
IDENTITY_MAP = Struct("<Q")
IRQ_LEVEL = Struct("<II")  # GSI, level
IRQCHIP_HEADER = Struct("<II")  # chip, 0

IRQCHIP_STATE_SIZE_BYTES = 512
PIT_STATE_SIZE_BYTES = 112
LAPIC_SIZE_BYTES = 1024
XSAVE_SIZE_BYTES = 4096  # KVM_GET_XSAVE; KVM_GET_XSAVE2 has the size that CAP_XSAVE2 returns

# ---- ioctl numbers ------------------------------------------------------------------------------

_READ, _WRITE = 2, 1  # what the kernel does to our memory is the other way round: _IOR fills it


def _io(number: int) -> int:
    return 0xAE00 | number


def _ior(number: int, size_bytes: int) -> int:
    return _READ << 30 | size_bytes << 16 | _io(number)


def _iow(number: int, size_bytes: int) -> int:
    return _WRITE << 30 | size_bytes << 16 | _io(number)


def _iowr(number: int, size_bytes: int) -> int:
    return (_READ | _WRITE) << 30 | size_bytes << 16 | _io(number)


IOEVENTFD = Struct("<QQIiI36x")  # value, address, size, fd, flags
IOEVENTFD_DATAMATCH = 1
_IRQCHIP_SIZE_BYTES = IRQCHIP_HEADER.size + IRQCHIP_STATE_SIZE_BYTES

GET_API_VERSION = _io(0x00)
CREATE_VM = _io(0x01)
GET_MSR_INDEX_LIST = _iowr(0x02, MSR_LIST_HEADER.size)
CHECK_EXTENSION = _io(0x03)
GET_VCPU_MMAP_SIZE = _io(0x04)
GET_SUPPORTED_CPUID = _iowr(0x05, CPUID_HEADER.size)
CREATE_VCPU = _io(0x41)
SET_USER_MEMORY_REGION = _iow(0x46, MEMORY_REGION.size)
SET_TSS_ADDR = _io(0x47)
SET_IDENTITY_MAP_ADDR = _iow(0x48, IDENTITY_MAP.size)
CREATE_IRQCHIP = _io(0x60)
IRQ_LINE = _iow(0x61, IRQ_LEVEL.size)
GET_IRQCHIP = _iowr(0x62, _IRQCHIP_SIZE_BYTES)
SET_IRQCHIP = _ior(0x63, _IRQCHIP_SIZE_BYTES)
SET_IOEVENTFD = _iow(0x79, IOEVENTFD.size)
CREATE_PIT2 = _iow(0x77, PIT_CONFIG.size)
SET_CLOCK = _iow(0x7B, CLOCK_DATA.size)
GET_CLOCK = _ior(0x7C, CLOCK_DATA.size)
GET_PIT2 = _ior(0x9F, PIT_STATE_SIZE_BYTES)
SET_PIT2 = _iow(0xA0, PIT_STATE_SIZE_BYTES)
RUN = _io(0x80)
GET_REGS = _ior(0x81, REGS.size)
SET_REGS = _iow(0x82, REGS.size)
GET_SREGS = _ior(0x83, SREGS.size)
SET_SREGS = _iow(0x84, SREGS.size)
GET_MSRS = _iowr(0x88, MSR_HEADER.size)
SET_MSRS = _iow(0x89, MSR_HEADER.size)
GET_LAPIC = _ior(0x8E, LAPIC_SIZE_BYTES)
SET_LAPIC = _iow(0x8F, LAPIC_SIZE_BYTES)
KVMCLOCK_CTRL = _io(0xAD)
SET_CPUID2 = _iow(0x90, CPUID_HEADER.size)
GET_MP_STATE = _ior(0x98, MP_STATE.size)
SET_MP_STATE = _iow(0x99, MP_STATE.size)
GET_VCPU_EVENTS = _ior(0x9F, VCPU_EVENTS.size)
SET_VCPU_EVENTS = _iow(0xA0, VCPU_EVENTS.size)
GET_DEBUGREGS = _ior(0xA1, DEBUGREGS.size)
SET_DEBUGREGS = _iow(0xA2, DEBUGREGS.size)
GET_TSC_KHZ = _io(0xA3)
ENABLE_CAP_IOCTL = _iow(0xA3, ENABLE_CAP.size)
GET_XSAVE = _ior(0xA4, XSAVE_SIZE_BYTES)
SET_XSAVE = _iow(0xA5, XSAVE_SIZE_BYTES)
GET_XCRS = _ior(0xA6, XCRS.size)
SET_XCRS = _iow(0xA7, XCRS.size)
GET_XSAVE2 = _ior(0xCF, XSAVE_SIZE_BYTES)
SET_DEVICE_ATTR = _iow(0xE1, DEVICE_ATTR.size)
GET_DEVICE_ATTR = _iow(0xE2, DEVICE_ATTR.size)
HAS_DEVICE_ATTR = _iow(0xE3, DEVICE_ATTR.size)

# ---- capabilities (KVM_CHECK_EXTENSION) ---------------------------------------------------------

CAP_IRQCHIP = 0
CAP_USER_MEMORY = 3
CAP_SET_TSS_ADDR = 4
CAP_EXT_CPUID = 7
CAP_NR_MEMSLOTS = 10
CAP_MP_STATE = 14
CAP_PIT2 = 33
CAP_PIT_STATE2 = 35
CAP_SET_IDENTITY_MAP_ADDR = 37
CAP_ADJUST_CLOCK = 39
CAP_VCPU_EVENTS = 41
CAP_DEBUGREGS = 50
CAP_XSAVE = 55
CAP_XCRS = 56
CAP_GET_TSC_KHZ = 61
CAP_MAX_VCPUS = 66
CAP_TSC_DEADLINE_TIMER = 72
CAP_IMMEDIATE_EXIT = 136
CAP_EXCEPTION_PAYLOAD = 164
CAP_ENFORCE_PV_FEATURE_CPUID = 190
CAP_XSAVE2 = 208
CAP_TRIPLE_FAULT_EVENT = 218

# ---- the shared run page, struct kvm_run --------------------------------------------------------

RUN_IMMEDIATE_EXIT = 1  # byte offset; non-zero makes KVM_RUN return EINTR at once
RUN_EXIT_REASON_U32 = 8 // 4  # index in units of 4 bytes
RUN_CR8_U64 = 16 // 8  # read by KVM_RUN when there is no in-kernel LAPIC
RUN_UNION = 32  # what follows depends on the exit reason

EXIT_UNKNOWN = 0
EXIT_IO = 2
EXIT_HLT = 5
EXIT_MMIO = 6
EXIT_IRQ_WINDOW_OPEN = 7
EXIT_SHUTDOWN = 8
EXIT_FAIL_ENTRY = 9
EXIT_INTR = 10
EXIT_SET_TPR = 11
EXIT_INTERNAL_ERROR = 17
EXIT_SYSTEM_EVENT = 24

IO_OUT = 1  # direction of EXIT_IO
INTERNAL_ERROR_EMULATION = 1  # suberror
EMULATION_HAS_INSTRUCTION_BYTES = 1  # flag
SYSTEM_EVENT_SHUTDOWN = 1
SYSTEM_EVENT_RESET = 2

# ---- flags and indices --------------------------------------------------------------------------

EVENT_VALID_NMI_PENDING = 1
EVENT_VALID_SHADOW = 4
EVENT_VALID_SMM = 8
EVENT_VALID_PAYLOAD = 16
EVENT_VALID_TRIPLE_FAULT = 32

CPUID_FLAG_INDEXED = 1  # the entry is one of several of its function, told apart by ecx
IRQCHIP_COUNT = 3  # PIC master, PIC slave, IOAPIC
TSC_CTRL_GROUP = 0  # device attribute of a vCPU (KVM API, devices/vcpu)
TSC_OFFSET_ATTR = 0
PIT_SPEAKER_DUMMY = 1  # the kernel answers port 0x61 as well
