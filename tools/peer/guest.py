"""The guest that both VMMs run: a boot sector that does nothing but count.

Real mode, because it runs everywhere: under hardware and paravirtual KVM and in software. It never
enables interrupts, drives no device and stops for nobody, so whenever the counter stands still, the
guest was not running.
"""

from __future__ import annotations

from pathlib import Path

BOOT_SECTOR_BYTES = 512
# Where firmware loads it, and where its 32-bit counter lives: another page than the code's, because
# software emulation translates a page again when it is written to.
BOOT_ADDRESS = 0x7C00
COUNTER_ADDRESS = 0x8000
BOOT_SIGNATURE = b"\x55\xaa"

CODE = b"".join(
    (
        b"\xfa",  # 7c00        cli
        b"\x31\xc0",  # 7c01        xor ax, ax
        b"\x8e\xd8",  # 7c03        mov ds, ax
        b"\x66\xff\x06\x00\x80",  # 7c05  again: inc dword [0x8000]
        b"\xeb\xf9",  # 7c0a        jmp again
    )
)
# A floppy of the smallest usual size: firmware refuses to boot from a shorter one.
FLOPPY_BYTES = 1440 * 1024


def boot_sector() -> bytes:
    """The 512 bytes at BOOT_ADDRESS."""
    return CODE.ljust(BOOT_SECTOR_BYTES - len(BOOT_SIGNATURE), b"\0") + BOOT_SIGNATURE


def write_floppy(path: Path) -> None:
    """Make a floppy image that boots the guest."""
    path.write_bytes(boot_sector().ljust(FLOPPY_BYTES, b"\0"))
