"""Direct boot: the VMM itself puts the CPU into 64-bit (or flat 32-bit) mode; there is no firmware.

Every vCPU starts at the image's entry point at CPL 0, interrupts off, with

    rdi (edi)  guest-physical address of the boot info
    rsi (esi)  index of this vCPU
    rsp (esp)  top of this vCPU's own 4 KiB stack

in 64-bit mode over an identity map of all RAM, or in 32-bit mode with flat segments and paging off.
Low memory then holds (guest-physical):

    0x01000  GDT: null, null, 0x10 code, 0x18 data, 0x20 TSS
    0x02000  boot info, 80 bytes
    0x03000  command line, up to 4095 bytes, NUL-terminated
    0x10000  page tables: PML4, PDPT, then one page directory for each GiB, 2 MiB pages
    0x60000  stacks, one page for each vCPU; up to 0x80000
    0x100000 usual place of the image

Boot info, little-endian: u64 magic "CPRBOOT1", u32 version, u32 size, u64 RAM below 4 GiB, u64 RAM
above 4 GiB (both in bytes), u64 end of the identity map, u32 vCPUs, u32 command-line length, u64
command-line address, u16 clock port (8 ports for each vCPU, see devices/clock.py), u16 serial port,
u32 reserved, u64 address of the first virtio-mmio register page, u32 bytes from one to the next,
u32 how many there may be. A port of 0: there is none.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from guestram.layout import PC_HOLE_END, PC_HOLE_START
from vmm.accel.x86_state import CpuState
from vmm.boot.cpumodes import (
    GDT_ADDRESS,
    PAGE_TABLES_ADDRESS,
    enter_mode,
    gdt,
    identity_page_tables,
)
from vmm.boot.plan import BootPiece
from vmm.errors import BootError

BOOT_INFO_ADDRESS = 0x2000
COMMAND_LINE_ADDRESS = 0x3000
STACKS_ADDRESS = 0x6_0000
STACK_SIZE_BYTES = 0x1000
IMAGE_ADDRESS = 0x10_0000
MAX_VCPUS = 32  # stacks end at 0x80000, and the built-in guest has as many report slots
COMMAND_LINE_MAX_BYTES = 4095  # one page with its NUL

BOOT_INFO_MAGIC = int.from_bytes(b"CPRBOOT1", "little")
BOOT_INFO_VERSION = 1
_BOOT_INFO = struct.Struct("<QIIQQQIIQHHIQII")

_PAGE = 0x1000
_GIB = 1 << 30
_MAP_MIN_GIB = 4  # always reach the device addresses below 4 GiB
_MAP_MAX_GIB = (STACKS_ADDRESS - PAGE_TABLES_ADDRESS) // _PAGE - 2  # as many directories as fit: 78


@dataclass(frozen=True, slots=True)
class DirectDevices:
    """Where a direct-boot guest finds its devices; port 0: there is none."""

    clock_port: int
    serial_port: int
    virtio_base: int
    virtio_step: int
    virtio_slots: int


@dataclass(frozen=True, slots=True)
class DirectStart:
    """Start at `entry` in 64-bit or flat 32-bit mode with the direct-boot registers."""

    entry: int
    bits: int

    def apply(self, index: int, base: CpuState) -> CpuState:
        """See the module's text for the registers."""
        registers = {
            "rip": self.entry,
            "rdi": BOOT_INFO_ADDRESS,
            "rsi": index,
            "rsp": STACKS_ADDRESS + (index + 1) * STACK_SIZE_BYTES,
        }
        return enter_mode(base, self.bits, registers)


def direct_boot_pieces(
    *,
    bits: int,
    ram_bytes: int,
    vcpu_count: int,
    command_line: str,
    devices: DirectDevices,
) -> tuple[BootPiece, ...]:
    """The low-memory structures of a direct boot.

    Raises BootError for too many vCPUs or too long a command line.
    """
    if vcpu_count > MAX_VCPUS:
        raise BootError(f"direct boot starts at most {MAX_VCPUS} vCPUs, -smp asks for {vcpu_count}")
    text = command_line.encode()
    if len(text) > COMMAND_LINE_MAX_BYTES or b"\0" in text:
        raise BootError(
            f"-append: expected at most {COMMAND_LINE_MAX_BYTES} bytes without NUL, got {len(text)}"
        )
    low = min(ram_bytes, PC_HOLE_START)
    map_gib = _map_gib(ram_bytes)
    info = _BOOT_INFO.pack(
        BOOT_INFO_MAGIC,
        BOOT_INFO_VERSION,
        _BOOT_INFO.size,
        low,
        ram_bytes - low,
        map_gib * _GIB,
        vcpu_count,
        len(text),
        COMMAND_LINE_ADDRESS,
        devices.clock_port,
        devices.serial_port,
        0,
        devices.virtio_base,
        devices.virtio_step,
        devices.virtio_slots,
    )
    tables = identity_page_tables(map_gib, PAGE_TABLES_ADDRESS)
    stacks = BootPiece("the stacks", STACKS_ADDRESS, b"", vcpu_count * STACK_SIZE_BYTES)
    return (
        BootPiece.of("the GDT", GDT_ADDRESS, gdt(bits)),
        BootPiece.of("the boot info", BOOT_INFO_ADDRESS, info),
        BootPiece.of("the command line", COMMAND_LINE_ADDRESS, text + b"\0"),
        BootPiece.of("the page tables", PAGE_TABLES_ADDRESS, tables),
        stacks,
    )


def _map_gib(ram_bytes: int) -> int:
    """GiB to map: all RAM where it ends, at least 4, at most what the tables' place holds."""
    low = min(ram_bytes, PC_HOLE_START)
    end = PC_HOLE_END + ram_bytes - low if ram_bytes > low else low
    return min(max(_MAP_MIN_GIB, -(-end // _GIB)), _MAP_MAX_GIB)
