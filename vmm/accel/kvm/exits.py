"""The page that KVM_RUN shares with us (struct kvm_run), and what each exit asks of the VMM.

An access is complete only when KVM_RUN is called again: `in` changes its register then (KVM API,
5, the note under KVM_EXIT_IO). So an exit is served here, and the run loop always goes back.
"""

from __future__ import annotations

import mmap
import struct

from vmm.accel.base import IoBus, StopReason, VcpuStop
from vmm.accel.kvm import abi

_UNION_U64 = abi.RUN_UNION // 8
_MMIO_DATA_U64 = _UNION_U64 + 1
_NOTHING_TO_DO = frozenset({abi.EXIT_IRQ_WINDOW_OPEN, abi.EXIT_INTR, abi.EXIT_SET_TPR})

# struct kvm_run's members after the exit reason
_MMIO = struct.Struct("<QQIB")  # address, data, length, is_write
_INTERNAL_ERROR = struct.Struct("<IIQ")  # suberror, ndata, flags or first datum
_EMULATION_FAILURE = struct.Struct("<16xB15s")  # instruction size, instruction
_FAIL_ENTRY = struct.Struct("<QI")  # hardware reason, host CPU
_SYSTEM_EVENT = struct.Struct("<I")  # type


def _pieces(length: int) -> tuple[tuple[int, int, int], ...]:
    """An access of `length` bytes as (offset, size, mask) of sizes that are powers of two."""
    found, offset = [], 0
    while offset < length:
        size = next(size for size in (8, 4, 2, 1) if size <= length - offset)
        found.append((offset, size, (1 << 8 * size) - 1))
        offset += size
    return tuple(found)


_PIECES = {length: _pieces(length) for length in range(9)}


class RunPage:
    """The mapping and the views of it that the run loop reads."""

    __slots__ = ("_mapping", "u8", "u16", "u32", "u64")

    def __init__(self, vcpu_fd: int, size_bytes: int) -> None:
        self._mapping = mmap.mmap(vcpu_fd, size_bytes)
        self.u8 = memoryview(self._mapping)
        self.u16 = self.u8.cast("H")
        self.u32 = self.u8.cast("I")
        self.u64 = self.u8.cast("Q")

    def close(self) -> None:
        """Unmap; every view is gone afterwards."""
        for view in (self.u64, self.u32, self.u16, self.u8):
            view.release()
        self._mapping.close()


def serve_io(page: RunPage, bus: IoBus) -> None:
    """KVM_EXIT_IO: `count` accesses of `size` bytes to one port (string I/O has count > 1)."""
    word = page.u64[_UNION_U64]
    size, port, count = word >> 8 & 0xFF, word >> 16 & 0xFFFF, word >> 32
    offset = page.u64[_UNION_U64 + 1]
    is_write = word & 0xFF == abi.IO_OUT
    data = page.u8
    for start in range(offset, offset + count * size, size):
        if is_write:
            if size == 1:
                value = data[start]
            elif size == 2:
                value = page.u16[start >> 1]
            else:
                value = page.u32[start >> 2]
            bus.pio_write(port, size, value)
        else:
            value = bus.pio_read(port, size)
            data[start : start + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")


def serve_mmio(page: RunPage, bus: IoBus) -> None:
    """KVM_EXIT_MMIO: 1 to 8 bytes at a physical address.

    KVM cuts an access at page borders, so any length can come; the bus knows powers of two only.
    """
    address, data, length, is_write = _MMIO.unpack_from(page.u8, abi.RUN_UNION)
    if is_write:
        for offset, size, mask in _PIECES[length]:
            bus.mmio_write(address + offset, size, data >> 8 * offset & mask)
    else:
        data = 0
        for offset, size, mask in _PIECES[length]:
            data |= (bus.mmio_read(address + offset, size) & mask) << 8 * offset
        page.u64[_MMIO_DATA_U64] = data


def stop_of(page: RunPage) -> VcpuStop | None:
    """What an exit that is no device access means to the VMM; None = go on running."""
    reason = page.u32[abi.RUN_EXIT_REASON_U32]
    if reason in _NOTHING_TO_DO:
        return None
    if reason == abi.EXIT_HLT:
        return VcpuStop(StopReason.HALTED)
    if reason == abi.EXIT_SHUTDOWN:
        return VcpuStop(StopReason.SHUTDOWN, "triple fault")
    if reason == abi.EXIT_SYSTEM_EVENT:
        return _system_event(page)
    return VcpuStop(StopReason.ERROR, _failure(page, reason))


def _system_event(page: RunPage) -> VcpuStop:
    (event,) = _SYSTEM_EVENT.unpack_from(page.u8, abi.RUN_UNION)
    if event in (abi.SYSTEM_EVENT_SHUTDOWN, abi.SYSTEM_EVENT_RESET):
        return VcpuStop(StopReason.SHUTDOWN, f"KVM system event {event}")
    return VcpuStop(StopReason.ERROR, f"KVM: unknown system event {event}")


def _failure(page: RunPage, reason: int) -> str:
    if reason == abi.EXIT_INTERNAL_ERROR:
        return _internal_error(page)
    if reason == abi.EXIT_FAIL_ENTRY:
        hardware_reason, cpu = _FAIL_ENTRY.unpack_from(page.u8, abi.RUN_UNION)
        return (
            f"KVM: entry failed, hardware error {hardware_reason:#x} on host CPU {cpu}: the "
            "virtualization hardware refused the CPU state"
        )
    return f"KVM: unknown exit reason {reason}"


def _internal_error(page: RunPage) -> str:
    suberror, count, flags = _INTERNAL_ERROR.unpack_from(page.u8, abi.RUN_UNION)
    text = f"KVM internal error. Suberror: {suberror}"
    if suberror == abi.INTERNAL_ERROR_EMULATION:
        text += " (emulation failure)"
        if count and flags & abi.EMULATION_HAS_INSTRUCTION_BYTES:
            size, instruction = _EMULATION_FAILURE.unpack_from(page.u8, abi.RUN_UNION)
            text += f", instruction bytes {instruction[:size].hex(' ')}"
    return text
