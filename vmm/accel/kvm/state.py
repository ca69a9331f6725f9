"""Kernel structs <-> CpuSection, without an allocation that can be avoided: this is blackout code.

`VcpuBuffers` owns one buffer for each struct, made once. General, system and debug registers travel
as the kernel has them, so they are only copied. The `read_*` functions turn a filled buffer into
architecture terms, the `write_*` functions fill a buffer; neither calls the kernel. Names of events
are the wire format of `CpuSection`, so they never change.
"""

from __future__ import annotations

import functools
import struct
from array import array
from collections.abc import Mapping, Sequence

from vmm.accel.kvm import abi
from vmm.accel.kvm.ioctl import Buffer
from vmm.accel.x86_section import DEBUG, SYSTEM
from vmm.errors import AccelError

_XSAVE_BASE_SIZE_BYTES = 576  # legacy region and header (SDM vol. 1, 13.4)

# One name for each field of abi.VCPU_EVENTS; None where it is not state.
_EVENT_FIELDS = (
    "exception_injected", "exception_nr", "exception_has_error_code", "exception_pending",
    "exception_error_code",
    "interrupt_injected", "interrupt_nr", "interrupt_soft", "interrupt_shadow",
    "nmi_injected", "nmi_pending", "nmi_masked",
    None, None,  # sipi_vector (part of mp_state here), flags
    "smm", "smi_pending", "smm_inside_nmi", "smi_latched_init",
    "triple_fault_pending",
    "exception_has_payload", "exception_payload",
)  # fmt: skip
_EVENT_NAMES = tuple(name for name in _EVENT_FIELDS if name is not None)
_EVENT_FLAGS_INDEX = 13
# Without one of these nothing is pending, and what the other fields say is left over.
_EVENT_CAUSES = tuple(
    _EVENT_FIELDS.index(name)
    for name in (
        "exception_injected", "exception_pending", "interrupt_injected", "interrupt_shadow",
        "nmi_injected", "nmi_pending", "nmi_masked", "smm", "smi_pending", "smm_inside_nmi",
        "smi_latched_init", "triple_fault_pending",
    )
)  # fmt: skip
_EXCEPTION_DETAILS = (
    "exception_nr", "exception_has_error_code", "exception_error_code", "exception_has_payload",
    "exception_payload",
)  # fmt: skip
_INTERRUPT_DETAILS = ("interrupt_nr", "interrupt_soft")

MP_STATES = ("runnable", "uninitialized", "init-received", "halted", "sipi-received")


class VcpuBuffers:
    """One vCPU's kernel structs."""

    def __init__(self, msr_indices: Sequence[int], xsave_size_bytes: int) -> None:
        self.regs = Buffer(abi.REGS.size)
        self.sregs = Buffer(abi.SREGS.size)
        self.xcrs = Buffer(abi.XCRS.size)
        self.xsave = Buffer(xsave_size_bytes)
        self.debugregs = Buffer(abi.DEBUGREGS.size)
        self.events = Buffer(abi.VCPU_EVENTS.size)
        self.mp_state = Buffer(abi.MP_STATE.size)
        self.lapic = Buffer(abi.LAPIC_SIZE_BYTES)
        self.msrs = MsrBuffer(msr_indices)
        # The parts that travel; what follows them in the kernel's structs stays zero.
        self.system = memoryview(self.sregs.data)[: SYSTEM.size]
        self.debug = memoryview(self.debugregs.data)[: DEBUG.size]


class MsrBuffer(Buffer):
    """struct kvm_msrs for a fixed list of indices; the values are one strided view of it."""

    __slots__ = ("_values", "indices")

    def __init__(self, indices: Sequence[int]) -> None:
        super().__init__(abi.MSR_HEADER.size + len(indices) * abi.MSR_ENTRY.size)
        self.indices = tuple(indices)
        abi.MSR_HEADER.pack_into(self.data, 0, len(indices), 0)
        for place, index in enumerate(indices):
            offset = abi.MSR_HEADER.size + place * abi.MSR_ENTRY.size
            abi.MSR_ENTRY.pack_into(self.data, offset, index, 0, 0)
        self._values = memoryview(self.data).cast("Q")[2::2]

    def values(self) -> list[int]:
        """The values in the order of `indices`."""
        return self._values.tolist()

    def first(self, count: int) -> bytes:
        """The first `count` values, 8 bytes each."""
        return self._values[:count].tobytes()

    def value_at(self, place: int) -> int:
        """One value, by its place in `indices`."""
        return self._values[place]

    def set_values(self, values: array[int] | memoryview) -> None:
        """Replace the first values, in the order of `indices`."""
        self._values[: len(values)] = memoryview(values)

    def set_count(self, count: int) -> None:
        """Let the next call move only the first `count` MSRs."""
        abi.MSR_HEADER.pack_into(self.data, 0, count, 0)


# ---- XCR0, XSAVE --------------------------------------------------------------------------------


def read_xcr0(buffers: VcpuBuffers) -> int:
    """XCR0, the only extended control register there is."""
    xcr0: int = abi.XCRS.unpack(buffers.xcrs.data)[4]
    return xcr0


def write_xcr0(buffers: VcpuBuffers, xcr0: int) -> None:
    """Raises AccelError when the value is not 64 bits."""
    try:
        abi.XCRS.pack_into(buffers.xcrs.data, 0, 1, 0, 0, 0, xcr0)
    except struct.error as error:
        raise _unfit("extended control registers", {"xcr0": xcr0}, error) from error


def read_xsave(buffers: VcpuBuffers) -> bytes:
    """The XSAVE area up to the last byte that is not zero, and at least to its header's end."""
    data = bytes(buffers.xsave.data)
    return data[: max(_XSAVE_BASE_SIZE_BYTES, len(data.rstrip(b"\0")))]


def write_xsave(buffers: VcpuBuffers, area: bytes) -> None:
    """Raises AccelError when the area is too short, or larger than this CPU can hold."""
    size_bytes = len(buffers.xsave.data)
    if len(area) < _XSAVE_BASE_SIZE_BYTES or any(area[size_bytes:]):
        raise AccelError(
            f"the XSAVE area has {len(area)} bytes; this CPU takes {_XSAVE_BASE_SIZE_BYTES} to "
            f"{size_bytes}. The source's CPU has state that this one cannot hold"
        )
    buffers.xsave.data[:] = area[:size_bytes].ljust(size_bytes, b"\0")


# ---- events and run state -----------------------------------------------------------------------


def read_events(buffers: VcpuBuffers) -> dict[str, int]:
    """What is pending, injected or masked; what is zero, and what means nothing, is left out."""
    values = abi.VCPU_EVENTS.unpack(buffers.events.data)
    if not any(map(values.__getitem__, _EVENT_CAUSES)):
        return {}
    events = {
        name: value for name, value in zip(_EVENT_FIELDS, values, strict=True) if name and value
    }
    # KVM leaves the vector of the last exception or interrupt behind after its delivery.
    if "exception_injected" not in events and "exception_pending" not in events:
        for name in _EXCEPTION_DETAILS:
            events.pop(name, None)
    if "interrupt_injected" not in events:
        for name in _INTERRUPT_DETAILS:
            events.pop(name, None)
    return events


def write_events(buffers: VcpuBuffers, events: Mapping[str, int], valid_flags: int) -> None:
    """Fill the struct; `valid_flags` tells KVM which of its optional parts count.

    Raises AccelError for an event this build does not know, or that this kernel cannot take.
    """
    if not events:
        buffers.events.data[:] = _no_events(valid_flags)
        return
    unknown = sorted(set(events).difference(_EVENT_NAMES))
    if unknown:
        raise AccelError(f"CPU event(s) {', '.join(unknown)} are not known to this build")
    optional = {
        "triple_fault_pending": abi.EVENT_VALID_TRIPLE_FAULT,
        "exception_has_payload": abi.EVENT_VALID_PAYLOAD,
        "exception_pending": abi.EVENT_VALID_PAYLOAD,
        "smm": abi.EVENT_VALID_SMM,
        "smi_pending": abi.EVENT_VALID_SMM,
    }
    for name, flag in optional.items():
        if events.get(name) and not valid_flags & flag:
            raise AccelError(f"the CPU event '{name}' cannot be set on this host kernel")
    values = [events.get(name, 0) if name else 0 for name in _EVENT_FIELDS]
    values[_EVENT_FLAGS_INDEX] = valid_flags
    try:
        abi.VCPU_EVENTS.pack_into(buffers.events.data, 0, *values)
    except struct.error as error:
        raise _unfit("events", events, error) from error


@functools.lru_cache(maxsize=8)
def _no_events(valid_flags: int) -> bytes:
    values = [0] * len(_EVENT_FIELDS)
    values[_EVENT_FLAGS_INDEX] = valid_flags
    return abi.VCPU_EVENTS.pack(*values)


def read_event_flags(buffers: VcpuBuffers) -> int:
    """Which optional parts of the struct the kernel reported."""
    flags: int = abi.VCPU_EVENTS.unpack(buffers.events.data)[_EVENT_FLAGS_INDEX]
    return flags


def read_mp_state(buffers: VcpuBuffers) -> str:
    """The run state; only an in-kernel irqchip has any but "runnable"."""
    (number,) = abi.MP_STATE.unpack(buffers.mp_state.data)
    if number >= len(MP_STATES):
        raise AccelError(f"KVM reports MP state {number}, which an x86 CPU does not have")
    return MP_STATES[number]


def write_mp_state(buffers: VcpuBuffers, mp_state: str) -> None:
    """Raises AccelError for a name that is not one of MP_STATES."""
    if mp_state not in MP_STATES:
        raise AccelError(f"MP state '{mp_state}' is not one of {', '.join(MP_STATES)}")
    abi.MP_STATE.pack_into(buffers.mp_state.data, 0, MP_STATES.index(mp_state))


def _unfit(what: str, values: Mapping[str, object], error: Exception) -> AccelError:
    shown = ", ".join(f"{name}={value!r}" for name, value in values.items())
    return AccelError(f"the {what} of the saved CPU cannot be loaded ({error}): {shown}")
