"""One Unicorn engine: guest RAM, device accesses, and exact slices of guest code.

**Always 64-bit.** An engine opened in 64-bit mode runs real, protected and long mode alike: what
the translator obeys is the CPU state, and the mode given at opening only decides how wide the
registers of the C interface are. So a guest may switch modes as it likes.

**Slices.** Guest code runs N instructions at a time. Only at the end of a slice do memory and
registers surely belong together: a stop asked for by another thread, by a timeout or within a
memory access repeats the store that was under way. So to stop the guest early, the instruction
limit of its slice is lowered while it runs; the engine looks at it before each instruction.

**No `until` address.** After every slice the engine drops its translation of the address where it
was told to end, which with paging on faults on that address and so overwrites the guest's CR2. With
"exits" switched on and none given, there is no such address.

**The whole physical space.** What is not RAM is a device access. One page at the very top, above
any address that the emulated CPU's page tables can hold, is ours: rehearsals and probes run there.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

from vmm.accel.base import MappedSlot
from vmm.accel.unicorn import library as uc
from vmm.accel.unicorn.library import Library
from vmm.errors import AccelError

PAGE_SIZE_BYTES = 4096
PRIVATE_PAGE = (1 << 52) - PAGE_SIZE_BYTES  # the last page of the architecture's 52 address bits
ALL_PAGES_HOOK = (1, 0)  # begin > end: a hook for every address


class Engine:
    """Owns one engine handle and everything that the C side points at."""

    def __init__(self, library: Library) -> None:
        self.library = library
        handle = ctypes.c_void_p()
        library.check(
            library.open(uc.ARCH_X86, uc.MODE_64, ctypes.byref(handle)), "opening an engine"
        )
        assert handle.value is not None
        self.handle: int = handle.value
        self._callbacks: list[object] = []  # alive as long as the engine may call them
        self._ctl(uc.CTL_USE_EXITS, 1)
        self._map(library.mem_map, PRIVATE_PAGE, PAGE_SIZE_BYTES, uc.PROT_ALL)
        self.context = Context(self)
        self.context.save()
        self._pristine = bytes(self.context.data)

    def close(self) -> None:
        """Free the engine; nothing of it may be running. Closing twice is allowed."""
        if not self.handle:
            return
        self.context.close()
        self.library.close(self.handle)
        self.handle = 0
        self._callbacks.clear()

    def map_ram(self, slots: Sequence[MappedSlot]) -> None:
        """Let the guest use our mapping of its RAM; no copy is made."""
        for slot in slots:
            self._map(
                self.library.mem_map_ptr,
                slot.guest_start,
                slot.size_bytes,
                uc.PROT_ALL,
                slot.host_address,
            )

    def map_mmio(
        self,
        slots: Sequence[MappedSlot],
        read: Callable[[int, int], int],
        write: Callable[[int, int, int], None],
    ) -> None:
        """Send every access outside RAM to `read(addr, size)` or `write(addr, size, value)`.

        Unicorn splits an access of 8 bytes into two of 4, lower address first.
        """
        for start, end in gaps(slots):
            on_read = uc.MmioRead(lambda _e, at, size, _u, start=start: read(start + at, size))
            on_write = uc.MmioWrite(
                lambda _e, at, size, value, _u, start=start: write(start + at, size, value)
            )
            self._callbacks += (on_read, on_write)
            self._map(self.library.mmio_map, start, end - start, on_read, None, on_write, None)

    def hook_ports(
        self, read: Callable[[int, int], int], write: Callable[[int, int, int], None]
    ) -> None:
        """Send `in` to `read(port, size)` and `out` to `write(port, size, value)`.

        `rep ins` and `rep outs` come as one access for each element.
        """
        on_read = uc.PortRead(lambda _e, port, size, _u: read(port, size))
        on_write = uc.PortWrite(lambda _e, port, size, value, _u: write(port, size, value))
        self._hook(uc.HOOK_INSN, on_read, uc.INSN_IN)
        self._hook(uc.HOOK_INSN, on_write, uc.INSN_OUT)

    def hook_exceptions(self, handler: Callable[[int], None]) -> None:
        """Call `handler(vector)` for every exception and software interrupt of the guest."""
        self._hook(uc.HOOK_INTR, uc.Exception_(lambda _e, vector, _u: handler(vector)))

    def write_private_page(self, offset: int, code: bytes) -> None:
        """Put code into the page that no guest can reach."""
        error = self.library.mem_write(self.handle, PRIVATE_PAGE + offset, code, len(code))
        self.library.check(error, "writing the private page")

    def run_slice(self, pc: int, instruction_count: int) -> int:
        """Run up to `instruction_count` instructions from offset `pc` in CS; the error number."""
        error: int = self.library.emu_start(self.handle, pc, 0, 0, instruction_count)
        return error

    def stop(self) -> None:
        """Do not go on after the exception whose handler is calling this; only for that."""
        self.library.emu_stop(self.handle)

    def flush(self) -> None:
        """Forget translated code and address translations: memory or control registers changed."""
        self._ctl(uc.CTL_FLUSH_TRANSLATIONS, 0)
        self._ctl(uc.CTL_FLUSH_TLB, 0)

    def make_pristine(self) -> None:
        """Go back to the state of a new engine: 64-bit code, paging off."""
        self.context.data[:] = self._pristine
        self.context.restore()
        self.flush()

    def _hook(self, kind: int, callback: ctypes._CFunctionType, instruction: int = 0) -> None:
        self._callbacks.append(callback)
        hook = ctypes.c_void_p()
        address = ctypes.cast(callback, ctypes.c_void_p)
        error = self.library.hook_add(
            self.handle, ctypes.byref(hook), kind, address, None, *ALL_PAGES_HOOK, instruction
        )
        self.library.check(error, "adding a hook")

    def _map(self, function: Callable[..., int], start: int, size_bytes: int, *how: object) -> None:
        error = function(self.handle, start, size_bytes, *how)
        self.library.check(error, f"mapping guest addresses {start:#x}..{start + size_bytes:#x}")

    def _ctl(self, request: int, argument: int) -> None:
        self.library.check(self.library.ctl(self.handle, request, argument), "an engine request")


class Context:
    """A copy of the engine's whole CPU state as the C side lays it out (see `layout`)."""

    def __init__(self, engine: Engine) -> None:
        self._library = engine.library
        self._engine_handle = engine.handle
        pointer = ctypes.c_void_p()
        error = self._library.context_alloc(engine.handle, ctypes.byref(pointer))
        self._library.check(error, "allocating a context")
        assert pointer.value is not None
        self._pointer = pointer.value
        size_bytes: int = self._library.context_size(engine.handle)
        self.data = memoryview((ctypes.c_char * size_bytes).from_address(self._pointer)).cast("B")

    def save(self) -> None:
        """Engine to `data`."""
        error = self._library.context_save(self._engine_handle, self._pointer)
        self._library.check(error, "reading the CPU state")

    def restore(self) -> None:
        """`data` to engine; the caller flushes what may depend on it."""
        error = self._library.context_restore(self._engine_handle, self._pointer)
        self._library.check(error, "writing the CPU state")

    def close(self) -> None:
        """Free the copy."""
        self.data.release()
        self._library.context_free(self._pointer)


def gaps(slots: Sequence[MappedSlot]) -> tuple[tuple[int, int], ...]:
    """What is not RAM, as (start, end), up to the private page; raises AccelError on overlap."""
    found: list[tuple[int, int]] = []
    position = 0
    for slot in sorted(slots, key=lambda slot: slot.guest_start):
        if slot.guest_start < position:
            raise AccelError(
                f"RAM slots overlap at guest address {slot.guest_start:#x}; expected disjoint slots"
            )
        if slot.guest_start > position:
            found.append((position, slot.guest_start))
        position = slot.guest_start + slot.size_bytes
    if position > PRIVATE_PAGE:
        raise AccelError(
            f"RAM ends at {position:#x}, beyond the last guest address {PRIVATE_PAGE:#x} "
            "that unicorn can use"
        )
    if position < PRIVATE_PAGE:
        found.append((position, PRIVATE_PAGE))
    return tuple(found)
