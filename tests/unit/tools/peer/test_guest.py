from __future__ import annotations

from pathlib import Path
from typing import Any

import unicorn as untyped_unicorn
from unicorn import x86_const

from tools.peer.guest import (
    BOOT_ADDRESS,
    BOOT_SECTOR_BYTES,
    COUNTER_ADDRESS,
    FLOPPY_BYTES,
    boot_sector,
    write_floppy,
)

INSTRUCTIONS_BEFORE_LOOP = 3
INSTRUCTIONS_PER_COUNT = 2


def test_boot_sector_counts_once_every_two_instructions() -> None:
    unicorn: Any = untyped_unicorn
    cpu = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_16)
    cpu.mem_map(0, 0x10000)
    cpu.mem_write(BOOT_ADDRESS, boot_sector())
    cpu.reg_write(x86_const.UC_X86_REG_DS, 0x123)  # firmware leaves it at any value
    cpu.emu_start(BOOT_ADDRESS, 0, count=INSTRUCTIONS_BEFORE_LOOP + INSTRUCTIONS_PER_COUNT * 1000)
    assert int.from_bytes(cpu.mem_read(COUNTER_ADDRESS, 4), "little") == 1000


def test_boot_sector_has_the_size_and_signature_that_firmware_asks_for() -> None:
    assert len(boot_sector()) == BOOT_SECTOR_BYTES
    assert boot_sector()[-2:] == b"\x55\xaa"


def test_floppy_image_has_a_floppys_size_and_begins_with_the_boot_sector(tmp_path: Path) -> None:
    write_floppy(tmp_path / "boot.img")
    image = (tmp_path / "boot.img").read_bytes()
    assert len(image) == FLOPPY_BYTES
    assert image.startswith(boot_sector())
