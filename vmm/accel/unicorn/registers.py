"""The registers that Unicorn's C interface shows, moved by one batch call.

All pointers and buffers are made once, so a transfer allocates nothing but the Python integers. The
x87 and SSE registers are read straight into an XSAVE area, the form in which `CpuState` has them;
what Unicorn does not keep of that area (MXCSR mask, reserved bytes) stays as it was loaded.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Sequence

from vmm.accel.unicorn.engine import Engine
from vmm.accel.x86_state import GENERAL_REGISTERS

# Unicorn's register numbers (unicorn/x86.h).
_GENERAL_IDS = (35, 37, 38, 40, 43, 39, 44, 36, *range(106, 114), 41, 253)
RIP_ID = 41
_DEBUG_IDS = (66, 67, 68, 69, 72, 73)  # DR0-3, DR6, DR7
_FPTAG_ID = 247
_ST0_ID, _XMM0_ID = 114, 122
_MSR_ID = 248
# Register number -> offset in the legacy region (SDM vol. 1, table 10-2). FPSW holds the top of the
# register stack, by which ST(i) is found, so it comes before them.
_CONTROL_PLACES = {246: 0, 31: 2, 258: 6, 254: 8, 256: 16, 249: 24}  # FCW FSW FOP FIP FDP MXCSR
_ABRIDGED_TAG_OFFSET = 4
_ST_OFFSET, _XMM_OFFSET, _REGISTER_STEP = 32, 160, 16
XSAVE_BASE_SIZE_BYTES = 576  # legacy region and header

_GENERAL = struct.Struct(f"<{len(GENERAL_REGISTERS)}Q")
_DEBUG = struct.Struct(f"<{len(_DEBUG_IDS)}Q")
_U16 = struct.Struct("<H")


class _Buffer:
    """Memory at a fixed address, and a view of it."""

    def __init__(self, size_bytes: int) -> None:
        self._memory = (ctypes.c_char * size_bytes)()
        self.address = ctypes.addressof(self._memory)
        self.view = memoryview(self._memory).cast("B")


class RegisterFile:
    """Buffers for one engine's registers, with batch calls that fill or take them."""

    def __init__(self, engine: Engine, msr_indices: Sequence[int]) -> None:
        self._engine = engine
        self._msr = struct.Struct("<" + "I4xQ" * len(msr_indices))
        self._msr_indices = tuple(msr_indices)
        self._general = _Buffer(_GENERAL.size)
        self._debug = _Buffer(_DEBUG.size)
        self._tag = _Buffer(_U16.size)
        self._msrs = _Buffer(self._msr.size)
        self._xsave = _Buffer(XSAVE_BASE_SIZE_BYTES)
        places = (
            [(number, self._general.address + 8 * at) for at, number in enumerate(_GENERAL_IDS)]
            + [(number, self._debug.address + 8 * at) for at, number in enumerate(_DEBUG_IDS)]
            + [(_MSR_ID, self._msrs.address + 16 * at) for at in range(len(msr_indices))]
            + [(number, self._xsave.address + at) for number, at in _CONTROL_PLACES.items()]
            + [(_FPTAG_ID, self._tag.address)]
            + _row(_ST0_ID, 8, self._xsave.address + _ST_OFFSET)
            + _row(_XMM0_ID, 16, self._xsave.address + _XMM_OFFSET)
        )
        # RIP is given to each slice anew; writing it here would count as a stop request.
        self._read_batch = _Batch(places)
        self._write_batch = _Batch([place for place in places if place[0] != RIP_ID])

    def read(self) -> None:
        """Engine to buffers."""
        batch = self._read_batch
        library = self._engine.library
        error = library.reg_read_batch(self._engine.handle, batch.ids, batch.pointers, batch.count)
        library.check(error, "reading registers")
        (tag,) = _U16.unpack(self._tag.view)
        self._xsave.view[_ABRIDGED_TAG_OFFSET] = _abridged(tag)

    def write(self) -> None:
        """Buffers to engine."""
        _U16.pack_into(self._tag.view, 0, _full_tag(self._xsave.view[_ABRIDGED_TAG_OFFSET]))
        batch = self._write_batch
        library = self._engine.library
        error = library.reg_write_batch(self._engine.handle, batch.ids, batch.pointers, batch.count)
        library.check(error, "writing registers")

    @property
    def general(self) -> tuple[int, ...]:
        """In the order of GENERAL_REGISTERS."""
        return _GENERAL.unpack(self._general.view)

    @general.setter
    def general(self, values: Sequence[int]) -> None:
        _GENERAL.pack_into(self._general.view, 0, *values)

    @property
    def debug(self) -> tuple[int, ...]:
        """In the order of DEBUG_REGISTERS."""
        return _DEBUG.unpack(self._debug.view)

    @debug.setter
    def debug(self, values: Sequence[int]) -> None:
        _DEBUG.pack_into(self._debug.view, 0, *values)

    @property
    def msrs(self) -> tuple[int, ...]:
        """In the order of the indices given at the start."""
        return self._msr.unpack(self._msrs.view)[1::2]

    @msrs.setter
    def msrs(self, values: Sequence[int]) -> None:
        pairs = [number for pair in zip(self._msr_indices, values, strict=True) for number in pair]
        self._msr.pack_into(self._msrs.view, 0, *pairs)

    @property
    def xsave(self) -> memoryview:
        """Legacy region and header, to be read and written in place."""
        return self._xsave.view


class _Batch:
    """Register numbers and pointers in the form of the C call."""

    def __init__(self, places: Sequence[tuple[int, int]]) -> None:
        self.count = len(places)
        self.ids = (ctypes.c_int * self.count)(*(number for number, _ in places))
        self.pointers = (ctypes.c_void_p * self.count)(*(address for _, address in places))


def _row(first_id: int, count: int, address: int) -> list[tuple[int, int]]:
    return [(first_id + at, address + _REGISTER_STEP * at) for at in range(count)]


@functools.cache
def _abridged(tag: int) -> int:
    """FXSAVE's tag byte, a set bit for a register in use, from the x87 tag word (3 = empty)."""
    return sum(1 << register for register in range(8) if tag >> 2 * register & 3 != 3)


@functools.cache
def _full_tag(abridged: int) -> int:
    """The x87 tag word with 3 for every empty register; Unicorn looks at nothing else of it."""
    return sum(3 << 2 * register for register in range(8) if not abridged >> register & 1)
