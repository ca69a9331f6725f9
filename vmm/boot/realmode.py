"""Real-mode start: boot sectors, as a PC's firmware enters them.

There is no firmware here: registers are as after the firmware's jump (0000:7c00, A20 open, stack
below the sector), but software interrupts (`int 10h`, `int 13h`, ...) have nobody behind them, and
nothing of a floppy image but its first sector can be reached.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vmm.accel.x86_state import CpuState, Segment
from vmm.errors import BootError

BOOT_SECTOR_ADDRESS = 0x7C00
BOOT_SECTOR_SIZE_BYTES = 512
BOOT_SIGNATURE = b"\x55\xaa"  # the sector's last two bytes
BOOT_DRIVE_FLOPPY = 0x00

REAL_MODE_END = 0x10_0000
_SEGMENT_LIMIT = 0xFFFF
_CODE_RIGHTS, _DATA_RIGHTS = 0x9B, 0x93
_CR0_RESET = 0x6000_0010
_IVT_LIMIT = 0x3FF
_RFLAGS_RESET = 0x2


@dataclass(frozen=True, slots=True)
class RealModeStart:
    """Start at a physical address below 1 MiB in 16-bit real mode, dl = boot drive."""

    address: int
    boot_drive: int = BOOT_DRIVE_FLOPPY

    def __post_init__(self) -> None:
        if not 0 <= self.address < REAL_MODE_END:
            raise BootError(
                f"start address {self.address:#x} is not in real mode's first megabyte; "
                "code elsewhere must be an ELF file"
            )

    def apply(self, index: int, base: CpuState) -> CpuState:
        """CS:IP is 0000:address in the first 64 KiB, address/16:address%16 above."""
        if self.address <= _SEGMENT_LIMIT:
            selector, offset = 0, self.address
        else:
            selector, offset = self.address >> 4, self.address & 0xF
        data: Segment = (0, 0, _SEGMENT_LIMIT, _DATA_RIGHTS)
        return replace(
            base,
            general={
                **dict.fromkeys(base.general, 0),
                "rip": offset,
                "rflags": _RFLAGS_RESET,
                "rsp": BOOT_SECTOR_ADDRESS,
                "rdx": self.boot_drive,
            },
            segments={
                **base.segments,
                "cs": (selector, selector << 4, _SEGMENT_LIMIT, _CODE_RIGHTS),
                **dict.fromkeys(("ds", "es", "fs", "gs", "ss"), data),
            },
            idt=(0, _IVT_LIMIT),
            control={**base.control, "cr0": _CR0_RESET},
            mp_state="runnable",
        )
