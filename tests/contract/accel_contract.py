"""What the accelerator contract is tested with: guest memory, a bus that records, tiny programs.

The contract itself is tests/contract/test_accel.py, which runs once for each accelerator. A new
accelerator is added to `open_accelerator` and to the `accel` fixture's list, and to nothing else.
Machine code is written as bytes with its listing; all of it avoids what facts about the emulator of
paravirtual KVM rule out (x87 and SSE arithmetic, `int`), so that it runs wherever KVM runs.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

from vmm.accel import open_accel
from vmm.accel.base import Accelerator, GuestVm, IoBus, MappedSlot, Vcpu, VcpuStop, VmOptions
from vmm.accel.x86_state import CpuState, Segment
from vmm.config import AccelOptions

RAM_SIZE_BYTES = 4 << 20
DEADLINE_S = 60.0  # generous: two cores, many test processes

CODE = 0x1000
COUNTER = 0x4000
GDT = 0x7000
PAGE_TABLES = 0x8000  # PML4, PDPT, four page directories
STACK_TOP = 0x20000
DATA = 0x30000
MMIO = 0xD000_0000  # in the PC hole: no RAM there in any layout

_GDT_ENTRIES = (0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF)  # null, 64-bit code, data
_CODE_64: Segment = (0x08, 0, 0xFFFF_FFFF, 0xA09B)
_DATA_64: Segment = (0x10, 0, 0xFFFF_FFFF, 0xC093)
_TASK: Segment = (0, 0, 0xFFFF, 0x8B)
_LDT: Segment = (0, 0, 0xFFFF, 0x82)


def open_accelerator(name: str) -> Accelerator:
    """The named accelerator and no other."""
    accelerator, _ = open_accel([AccelOptions(name)])
    return accelerator


class GuestMemory:
    """Shared memory at guest-physical 0, with page tables and a GDT for 64-bit mode in place."""

    def __init__(self, size_bytes: int = RAM_SIZE_BYTES) -> None:
        fd = os.memfd_create("contract", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size_bytes)
            self.bytes = mmap.mmap(fd, size_bytes)
        finally:
            os.close(fd)
        self.size_bytes = size_bytes
        self.write(GDT, struct.pack("<3Q", *_GDT_ENTRIES))
        self._write_page_tables()

    @property
    def slots(self) -> tuple[MappedSlot, ...]:
        """All of it, for create_vm."""
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.bytes))
        return (MappedSlot(0, self.size_bytes, address),)

    def write(self, address: int, data: bytes) -> None:
        self.bytes[address : address + len(data)] = data

    def read(self, address: int, size_bytes: int) -> bytes:
        return self.bytes[address : address + size_bytes]

    def read_u64(self, address: int) -> int:
        return int(struct.unpack_from("<Q", self.bytes, address)[0])

    def close(self) -> None:
        self.bytes.close()

    def _write_page_tables(self) -> None:
        """Virtual = physical for the first 4 GiB, in pages of 2 MiB."""
        pml4, pdpt, directories = PAGE_TABLES, PAGE_TABLES + 0x1000, PAGE_TABLES + 0x2000
        struct.pack_into("<Q", self.bytes, pml4, pdpt | 3)
        for gib in range(4):
            struct.pack_into("<Q", self.bytes, pdpt + 8 * gib, directories + 0x1000 * gib | 3)
        for page in range(4 * 512):
            struct.pack_into("<Q", self.bytes, directories + 8 * page, page << 21 | 0x83)


class RecordingBus:
    """Logs every access; reads give what `reads` says for (kind, address), otherwise all ones."""

    def __init__(self, reads: Mapping[tuple[str, int], int] | None = None) -> None:
        self.log: list[tuple[str, int, int, int]] = []  # kind, address, size, value
        self._reads = dict(reads or {})
        self.on_access: Callable[[], None] = lambda: None  # called after each access is logged

    def pio_read(self, port: int, size: int) -> int:
        return self._read("in", port, size)

    def pio_write(self, port: int, size: int, value: int) -> None:
        self._note("out", port, size, value)

    def mmio_read(self, addr: int, size: int) -> int:
        return self._read("load", addr, size)

    def mmio_write(self, addr: int, size: int, value: int) -> None:
        self._note("store", addr, size, value)

    def _read(self, kind: str, address: int, size: int) -> int:
        mask = (1 << 8 * size) - 1
        value = self._reads.get((kind, address), mask) & mask
        self._note(kind, address, size, value)
        return value

    def _note(self, kind: str, address: int, size: int, value: int) -> None:
        self.log.append((kind, address, size, value))
        self.on_access()


class Rig:
    """Guest memory and the VMs that a test makes over it; everything is closed at the end."""

    def __init__(self) -> None:
        self.memory = GuestMemory()
        self._closers: list[Callable[[], None]] = [self.memory.close]

    def vm(self, accel_name: str, options: VmOptions | None = None) -> GuestVm:
        """A new VM over the memory."""
        accelerator = open_accelerator(accel_name)
        self._closers.append(accelerator.close)
        vm = accelerator.create_vm(options or VmOptions(1))
        self._closers.append(vm.close)
        vm.map_ram(self.memory.slots)
        return vm

    def vcpu(self, accel_name: str) -> Vcpu:
        """The only vCPU of a new VM."""
        return self.vm(accel_name).vcpus[0]

    def close(self) -> None:
        for closer in reversed(self._closers):
            closer()


def real_mode(reset: CpuState, rip: int = CODE, **registers: int) -> CpuState:
    """`reset`, about to run 16-bit code at `rip` with every segment at 0."""
    data: Segment = (0, 0, 0xFFFF, 0x93)
    return replace(
        reset,
        general={**dict.fromkeys(reset.general, 0), "rflags": 2, "rip": rip, **registers},
        segments={
            **dict.fromkeys(reset.segments, data),
            "cs": (0, 0, 0xFFFF, 0x9B),
            "tr": _TASK,
            "ldt": _LDT,
        },
        control={**reset.control, "cr0": 0x10, "cr3": 0, "cr4": 0, "efer": 0},
        gdt=(0, 0xFFFF),
        idt=(0, 0xFFFF),
        mp_state="runnable",
    )


def long_mode(reset: CpuState, rip: int = CODE, **registers: int) -> CpuState:
    """`reset`, about to run 64-bit kernel code at `rip`; no IDT: any exception is fatal."""
    general = {**dict.fromkeys(reset.general, 0), "rflags": 2, "rip": rip, "rsp": STACK_TOP}
    return replace(
        reset,
        general={**general, **registers},
        segments={
            **dict.fromkeys(reset.segments, _DATA_64),
            "cs": _CODE_64,
            "tr": _TASK,
            "ldt": _LDT,
        },
        control={
            **reset.control,
            "cr0": 0x8005_0033,
            "cr2": 0,
            "cr3": PAGE_TABLES,
            "cr4": 0x620,
            "efer": 0x500,
        },
        gdt=(GDT, 8 * len(_GDT_ENTRIES) - 1),
        idt=(0, 0),
        mp_state="runnable",
    )


@contextmanager
def vcpu_thread() -> Iterator[Callable[[Vcpu, IoBus], Future[VcpuStop]]]:
    """A thread of its own: the value starts `vcpu.run(bus)` on it and returns the future stop."""
    with ThreadPoolExecutor(max_workers=1) as executor:
        yield lambda vcpu, bus: executor.submit(vcpu.run, bus)


def run_until(vcpu: Vcpu, bus: RecordingBus, accesses: int) -> Future[VcpuStop]:
    """Run `vcpu` on a new thread and return once it has made `accesses` more device accesses."""
    reached = threading.Event()
    target = len(bus.log) + accesses

    def check() -> None:
        if len(bus.log) >= target:
            reached.set()

    bus.on_access = check
    future: Future[VcpuStop] = Future()

    def body() -> None:
        try:
            future.set_result(vcpu.run(bus))
        except BaseException as error:
            future.set_exception(error)
        finally:
            reached.set()

    check()
    threading.Thread(target=body, name=f"vcpu{vcpu.index}", daemon=True).start()
    assert reached.wait(DEADLINE_S), f"no {accesses} accesses within {DEADLINE_S} s"
    return future


# ---- programs -----------------------------------------------------------------------------------

# Ports 0x60..0x62 give a byte, a word, a double word, which go out on 0x80; then strings.
PORT_ACCESSES_16 = bytes.fromhex(
    "ba f8 03"  # mov dx, 0x3f8
    "b0 41"  # mov al, 0x41
    "ee"  # out dx, al
    "b8 42 43"  # mov ax, 0x4342
    "ef"  # out dx, ax
    "66 b8 44 45 46 47"  # mov eax, 0x47464544
    "66 ef"  # out dx, eax
    "e4 60"  # in al, 0x60
    "e6 80"  # out 0x80, al
    "e5 61"  # in ax, 0x61
    "e7 80"  # out 0x80, ax
    "66 e5 62"  # in eax, 0x62
    "66 e7 80"  # out 0x80, eax
    "be 00 20"  # mov si, 0x2000
    "b9 05 00"  # mov cx, 5
    "fc"  # cld
    "f3 6e"  # rep outsb
    "bf 00 21"  # mov di, 0x2100
    "b9 03 00"  # mov cx, 3
    "ba 63 00"  # mov dx, 0x63
    "f3 6c"  # rep insb
    "f4"  # hlt
)

# Each size: load at MMIO + n, store what came at MMIO + 0x100 + n.
MMIO_ACCESSES_64 = bytes.fromhex(
    "bb 00 00 00 d0"  # mov ebx, 0xd0000000
    "48 8b 03"  # mov rax, [rbx]
    "48 89 83 00 01 00 00"  # mov [rbx + 0x100], rax
    "8b 43 08"  # mov eax, [rbx + 8]
    "89 83 08 01 00 00"  # mov [rbx + 0x108], eax
    "66 8b 43 10"  # mov ax, [rbx + 0x10]
    "66 89 83 10 01 00 00"  # mov [rbx + 0x110], ax
    "8a 43 18"  # mov al, [rbx + 0x18]
    "88 83 18 01 00 00"  # mov [rbx + 0x118], al
    "f4"  # hlt
)

# Counts for ever, in RAM and in rax; every 64 turns one access to port 0x80.
COUNT_FOREVER_64 = bytes.fromhex(
    "48 ff 04 25 00 40 00 00"  # 1: inc qword [COUNTER]
    "48 ff c0"  # inc rax
    "a8 3f"  # test al, 0x3f
    "75 f1"  # jnz 1b
    "e6 80"  # out 0x80, al
    "eb ed"  # jmp 1b
)
COUNT_FOREVER_STORE_BYTES = 8  # the length of its first instruction

# rcx turns of a generator (state rax, factor rbx) that scatters over RAM at rdi; every 16 turns
# one byte goes out on port 0x80 and one comes in from port 0x60.
SCATTER_64 = bytes.fromhex(
    "48 0f af c3"  # 1: imul rax, rbx
    "48 05 39 30 00 00"  # add rax, 12345
    "48 89 c2"  # mov rdx, rax
    "48 c1 ea 15"  # shr rdx, 21
    "81 e2 f8 0f 00 00"  # and edx, 0xff8
    "48 31 04 17"  # xor [rdi + rdx], rax
    "f0 48 83 84 17 00 10 00 00 03"  # lock add qword [rdi + rdx + 0x1000], 3
    "48 0f c8"  # bswap rax
    "f6 c1 0f"  # test cl, 0xf
    "75 06"  # jnz 2f
    "50"  # push rax
    "5e"  # pop rsi
    "e6 80"  # out 0x80, al
    "e4 60"  # in al, 0x60
    "48 ff c9"  # 2: dec rcx
    "75 c8"  # jnz 1b
    "f4"  # hlt
)

# rcx atomic increments.
ATOMIC_COUNT_64 = bytes.fromhex(
    "f0 48 ff 04 25 00 40 00 00"  # 1: lock inc qword [COUNTER]
    "48 ff c9"  # dec rcx
    "75 f2"  # jnz 1b
    "f4"  # hlt
)

READ_PORT_64 = bytes.fromhex(
    "e4 60"  # in al, 0x60
    "48 ff c3"  # inc rbx
    "f4"  # hlt
)

# Beyond the page tables: a page fault without an IDT.
PAGE_FAULT_64 = bytes.fromhex(
    "48 b8 00 00 00 00 40 00 00 00"  # mov rax, 0x4000000000
    "48 8b 00"  # mov rax, [rax]
    "f4"  # hlt
)

UNDEFINED_64 = bytes.fromhex("0f 0b f4")  # ud2; hlt
HALT = bytes.fromhex("f4")
