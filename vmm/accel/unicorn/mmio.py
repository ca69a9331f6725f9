"""Device accesses of 8 bytes, which the engine delivers as two of 4.

A device must see what the guest did: a 64-bit register written in halves is another thing than one
written at once. The engine does not say which it was, so at a 4-byte access whose address is a
multiple of 8 we look at the instruction: a general-register one with a REX.W prefix moves 8 bytes,
and the next access of the same instruction is the other half. (Not joined: `push`, `pop`, x87 and
SSE memory operands, which no driver aims at device registers.)
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from vmm.accel.base import IoBus
from vmm.accel.unicorn import library
from vmm.accel.unicorn.engine import PAGE_SIZE_BYTES, Engine
from vmm.accel.unicorn.registers import RIP_ID

_HALF_BYTES = 4
_HALF_MASK = 0xFFFF_FFFF
_LONGEST_INSTRUCTION_BYTES = 15
_LEGACY_PREFIXES = b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3"
_REX_W_MASK, _REX_W = 0xF8, 0x48
_ESCAPE = 0x0F
# Opcodes whose memory operand REX.W does not widen: movsxd and x87.
_NARROW = frozenset((0x63, *range(0xD8, 0xE0)))
# Behind 0x0f, those whose operand it does: cmovcc, movq, bt/bts/btr/btc, shld/shrd, imul, cmpxchg,
# popcnt, bsf/bsr, xadd, movnti.
_WIDE_ESCAPED = frozenset(
    (
        *range(0x40, 0x50), 0x6E, 0x7E, 0xA3, 0xA4, 0xA5, 0xAB, 0xAC, 0xAD, 0xAF,
        0xB1, 0xB3, 0xB8, 0xBA, 0xBB, 0xBC, 0xBD, 0xC1, 0xC3,
    )
)  # fmt: skip


class WideAccesses:
    """Between the engine and the bus; `executed` counts the instructions of the slice."""

    def __init__(
        self, engine: Engine, executed: ctypes.c_uint64, is_64_bit_code: Callable[[], bool]
    ) -> None:
        self._engine = engine
        self._executed = executed
        self._is_64_bit_code = is_64_bit_code
        self._rip = ctypes.c_uint64()
        self._code = ctypes.create_string_buffer(_LONGEST_INSTRUCTION_BYTES)
        # The second half that is expected: its address, the instruction's number, and its value.
        self._read_half = (0, 0, 0)
        self._write_half = (0, 0, 0)

    def read(self, bus: IoBus, addr: int, size: int) -> int:
        """One access by the engine; a first half reads the whole and keeps the second."""
        if size != _HALF_BYTES:
            return bus.mmio_read(addr, size)
        expected, instruction, value = self._read_half
        if addr == expected and self._executed.value == instruction:
            self._read_half = (0, 0, 0)
            return value
        if addr % 8 or not self._instruction_moves_8_bytes():
            return bus.mmio_read(addr, size)
        whole = bus.mmio_read(addr, 8)
        self._read_half = (addr + _HALF_BYTES, self._executed.value, whole >> 32)
        return whole & _HALF_MASK

    def write(self, bus: IoBus, addr: int, size: int, value: int) -> None:
        """One access by the engine; a first half is kept until the second comes."""
        if size != _HALF_BYTES:
            bus.mmio_write(addr, size, value)
            return
        expected, instruction, low = self._write_half
        if addr == expected and self._executed.value == instruction:
            self._write_half = (0, 0, 0)
            bus.mmio_write(addr - _HALF_BYTES, 8, value << 32 | low)
        elif addr % 8 or not self._instruction_moves_8_bytes():
            bus.mmio_write(addr, size, value)
        else:
            self._write_half = (addr + _HALF_BYTES, self._executed.value, value)

    def _instruction_moves_8_bytes(self) -> bool:
        return self._is_64_bit_code() and moves_8_bytes(self._instruction())

    def _instruction(self) -> bytes:
        """The bytes at RIP, which the engine keeps exact while it counts instructions."""
        engine, rip = self._engine, self._rip
        engine.library.reg_read(engine.handle, RIP_ID, ctypes.byref(rip))
        start = rip.value  # 64-bit code has no CS base
        length = min(_LONGEST_INSTRUCTION_BYTES, PAGE_SIZE_BYTES - start % PAGE_SIZE_BYTES)
        code = self._read_code(start, length)
        if length < _LONGEST_INSTRUCTION_BYTES and not _is_whole(code.lstrip(_LEGACY_PREFIXES)):
            code += self._read_code(start + length, _LONGEST_INSTRUCTION_BYTES - length)
        return code

    def _read_code(self, start: int, length: int) -> bytes:
        engine = self._engine
        error = engine.library.vmem_read(
            engine.handle, start, library.PROT_EXEC, self._code, length
        )
        engine.library.check(error, f"reading the instruction at {start:#x}")
        return self._code.raw[:length]


def moves_8_bytes(code: bytes) -> bool:
    """Whether a 64-bit instruction that accesses memory in units of 4 or 8 bytes uses 8."""
    opcode = code.lstrip(_LEGACY_PREFIXES)
    if not _is_whole(opcode) or opcode[0] & _REX_W_MASK != _REX_W:
        return False
    return opcode[2] in _WIDE_ESCAPED if opcode[1] == _ESCAPE else opcode[1] not in _NARROW


def _is_whole(opcode: bytes) -> bool:
    """Prefix, escape and opcode byte are there."""
    return len(opcode) > 2
