"""What Unicorn's C interface does not show, and the proof that we read it right.

The interface has no call for segment caches, XCR0, the TSC offset, or for why a slice ended.
Without the caches no machine in unreal mode, or with a descriptor changed after its loading, could
be moved; without the reason an executed `hlt` cannot be told from the end of a slice. All are
plain fields, of the context that `uc_context_save` copies (QEMU's CPU structure) and of the engine
itself. They lie where QEMU's structure puts them; `find_layout` writes patterns through the public
interface, or runs code that shows a field's effect, and refuses an engine whose fields are not
where they are expected. So another layout is an error at start, never a wrong register later.
"""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass

from vmm.accel.unicorn.engine import PRIVATE_PAGE, Engine
from vmm.errors import AccelUnavailable

# From the start of the register file (RAX, RCX, RDX, RBX, ... in instruction-encoding order).
HFLAGS = 176  # u32: what the translator looks at, derived from the segments and control registers
SEGMENT_BLOCK_START = 184
EFER = 592  # u64
XCR0 = 4904  # u64
EXCEPTION_ERROR_CODE = 5384  # u32
EXCEPTION_IS_SOFTWARE = 5388  # u32: int n, not a fault
EXCEPTION_NEXT_RIP = 5392  # u64: behind the int n
LAST_EXCEPTION = 5496  # i32: -1, or the exception being delivered, which makes the next one double
TSC_OFFSET = 5512  # u64: guest minus host TSC

# es cs ss ds fs gs ldt tr: selector, base, limit, descriptor's second word; gdt idt; cr0 to cr4.
SEGMENT_BLOCK = struct.Struct("<" + 8 * "I4xQII" + 2 * "8xQI4x" + "5Q")
SEGMENT_BLOCK_ORDER = ("es", "cs", "ss", "ds", "fs", "gs", "ldt", "tr")
U32 = struct.Struct("<I")
U64 = struct.Struct("<Q")

NO_EXCEPTION = 0xFFFF_FFFF

# Register numbers of the public interface that only the proof needs.
_ES, _CS, _DS, _SS = 28, 11, 17, 49
_RAX, _RCX, _RDX, _RBX = 35, 38, 40, 37
_FS_BASE, _GS_BASE = 250, 251
_CR2, _CR3 = 52, 53
_IDTR, _GDTR, _LDTR, _TR = 242, 243, 244, 245
_MSR, _EFER_MSR = 248, 0xC000_0080

_TABLE_REGISTER = struct.Struct("<H6xQII")  # uc_x86_mmr: selector, base, limit, flags
_MSR_STRUCT = struct.Struct("<I4xQ")

_HFLAGS_OF_64_BIT_CODE = 0xC0B0  # CS32, SS32, PE, LMA, CS64
_RDTSC_HLT = b"\x0f\x31\xf4"
_LOOP = b"\xeb\xfe"  # jmp to itself
_XGETBV_HLT = b"\x31\xc9\x0f\x01\xd0\xf4"  # xor ecx, ecx; xgetbv; hlt
_HLT_OFFSET = 2
_XGETBV_OFFSET = 16
_LOOP_OFFSET = 32

_JUMP = 1 << 60  # a TSC offset that no running counter reaches
_SLICES = (0x51CE, 0x70FF)  # two instruction counts that no other field holds
_MAX_ENGINE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Layout:
    """Byte offsets: of the registers in a context, the others in an engine."""

    register_file: int
    counter: int  # instructions run
    limit: int  # beyond which the slice ends; may be lowered while it runs
    stop_requested: int  # one byte, 1 after a slice that did not end by hlt


class Probe:
    """A small engine without RAM: it proves the layout, and reads the host's TSC."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        engine.write_private_page(0, _RDTSC_HLT)
        engine.write_private_page(_XGETBV_OFFSET, _XGETBV_HLT)
        engine.write_private_page(_LOOP_OFFSET, _LOOP)
        self._value = ctypes.c_uint64()
        self._value_at = ctypes.addressof(self._value)

    def read_tsc(self) -> int:
        """The TSC that this process's engines start from, in cycles."""
        self._run(0)
        return self._edx_eax()

    def close(self) -> None:
        """Free the engine."""
        self._engine.close()

    def find_layout(self) -> Layout:
        """Raises AccelUnavailable, naming what is not where it was expected."""
        register_file = self._find_register_file()
        self._prove_segment_block(register_file)
        self._prove_fields(register_file)
        counter = self._find_counter()
        layout = Layout(register_file, counter, counter + 8, self._find_stop_requested())
        self._engine.make_pristine()
        return layout

    def _find_register_file(self) -> int:
        patterns = [0x6A11_0000_0000_0000 + number for number in range(4)]
        for register, pattern in zip((_RAX, _RCX, _RDX, _RBX), patterns, strict=True):
            self._write(register, U64.pack(pattern))
        start = self._saved().find(struct.pack("<4Q", *patterns))
        if start < 0:
            raise _other_layout("the general registers")
        return start

    def _prove_segment_block(self, register_file: int) -> None:
        selectors = {"es": 0x1108, "cs": 0x2208, "ss": 0x3308, "ds": 0x4408}
        for register, selector in zip((_ES, _CS, _SS, _DS), selectors.values(), strict=True):
            self._write(register, U64.pack(selector))
        ldt = (0x5508, 0x1122_3344_5566, 0x7788, 0x8200)
        tr = (0x6608, 0x2233_4455_6677, 0x8899, 0x8B00)
        gdt, idt = (0x3344_5566_7788, 0x99AA), (0x4455_6677_8899, 0xAABB)
        fs_base, gs_base, cr2, cr3 = 0x5566_7788_9900, 0x6677_8899_AA00, 0x7788_9900, 0x0123_4000
        self._write(_LDTR, _TABLE_REGISTER.pack(*ldt))
        self._write(_TR, _TABLE_REGISTER.pack(*tr))
        self._write(_GDTR, _TABLE_REGISTER.pack(0, *gdt, 0))
        self._write(_IDTR, _TABLE_REGISTER.pack(0, *idt, 0))
        for register, value in (
            (_FS_BASE, fs_base), (_GS_BASE, gs_base), (_CR2, cr2), (_CR3, cr3)
        ):  # fmt: skip
            self._write(register, U64.pack(value))
        block = SEGMENT_BLOCK.unpack_from(self._saved(), register_file + SEGMENT_BLOCK_START)
        found = (block[0], block[4], block[8], block[12], block[17], block[21], *block[24:36])
        wanted = (*selectors.values(), fs_base, gs_base, *ldt, *tr, *gdt, *idt)
        if found != wanted or block[38:40] != (cr2, cr3):
            raise _other_layout("the segment registers")
        self._engine.make_pristine()

    def _prove_fields(self, register_file: int) -> None:
        saved = self._saved()
        (hflags,) = U32.unpack_from(saved, register_file + HFLAGS)
        if hflags & _HFLAGS_OF_64_BIT_CODE != _HFLAGS_OF_64_BIT_CODE:
            raise _other_layout("the mode flags")
        if U32.unpack_from(saved, register_file + LAST_EXCEPTION) != (NO_EXCEPTION,):
            raise _other_layout("the exception in progress")
        efer = self._read_efer()
        self._poke(register_file + EFER, efer | 1)
        if self._read_efer() != efer | 1:
            raise _other_layout("EFER")
        self._poke(register_file + XCR0, 1)
        self._run(_XGETBV_OFFSET)
        if self._edx_eax() != 1:
            raise _other_layout("XCR0")
        before = self.read_tsc()
        self._poke(register_file + TSC_OFFSET, _JUMP)
        if not before + _JUMP <= self.read_tsc() < before + 2 * _JUMP:
            raise _other_layout("the TSC offset")

    def _find_counter(self) -> int:
        """Offset of the counter; the limit that it is compared with is the next 8 bytes."""
        candidates = set(range(0, self._engine_bytes() - 15, 8))
        for count in _SLICES:
            words = self._engine_after(_HLT_OFFSET, count)
            wanted = struct.pack("<QQ", 1, count)  # hlt, and the limit
            candidates = {at for at in candidates if words[at : at + 16] == wanted}
        if len(candidates) != 1:
            raise _other_layout("the instruction counter")
        return candidates.pop()

    def _find_stop_requested(self) -> int:
        """Offset of the byte that tells the end of a slice (1) from hlt (0)."""
        candidates = set(range(self._engine_bytes()))
        for count in _SLICES:
            halted = self._engine_after(_HLT_OFFSET, count)
            stopped = self._engine_after(_LOOP_OFFSET, count)
            candidates = {at for at in candidates if (halted[at], stopped[at]) == (0, 1)}
        if len(candidates) != 1:
            raise _other_layout("the stop request")
        return candidates.pop()

    def _engine_after(self, offset: int, count: int) -> bytes:
        """The engine's structure after a slice of `count` instructions."""
        self._engine.run_slice(PRIVATE_PAGE + offset, count)
        return ctypes.string_at(self._engine.handle, self._engine_bytes())

    def _engine_bytes(self) -> int:
        usable_size = ctypes.CDLL(None).malloc_usable_size
        usable_size.argtypes, usable_size.restype = (ctypes.c_void_p,), ctypes.c_size_t
        size_bytes: int = usable_size(self._engine.handle)
        return min(size_bytes, _MAX_ENGINE_BYTES)

    def _saved(self) -> bytes:
        self._engine.context.save()
        return bytes(self._engine.context.data)

    def _poke(self, offset: int, value: int) -> None:
        context = self._engine.context
        context.save()
        U64.pack_into(context.data, offset, value)
        context.restore()

    def _run(self, offset: int) -> None:
        error = self._engine.run_slice(PRIVATE_PAGE + offset, _SLICES[0])
        self._engine.library.check(error, "running a probe")

    def _read(self, register: int) -> int:
        self._engine.library.reg_read(self._engine.handle, register, self._value_at)
        return self._value.value

    def _edx_eax(self) -> int:
        return self._read(_RDX) << 32 | self._read(_RAX)

    def _read_efer(self) -> int:
        msr = ctypes.create_string_buffer(_MSR_STRUCT.pack(_EFER_MSR, 0), _MSR_STRUCT.size)
        self._engine.library.reg_read(self._engine.handle, _MSR, msr)
        efer: int = _MSR_STRUCT.unpack(msr.raw)[1]
        return efer

    def _write(self, register: int, value: bytes) -> None:
        buffer = ctypes.create_string_buffer(value, len(value))
        ids = (ctypes.c_int * 1)(register)
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(buffer))
        error = self._engine.library.reg_write_batch(self._engine.handle, ids, pointers, 1)
        self._engine.library.check(error, f"writing register {register}")


def _other_layout(what: str) -> AccelUnavailable:
    return AccelUnavailable(
        f"this unicorn library keeps {what} elsewhere than versions 2.1.3 and 2.1.4 do; "
        "install one of these: pip install 'unicorn==2.1.4'"
    )
