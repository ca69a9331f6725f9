"""What QEMU's microvm starts our guest from."""

from __future__ import annotations

import re
import subprocess
from importlib import resources
from pathlib import Path

import pytest

from tests.unit.boot.bare_machine import RESET_STATE
from tools.peer import microvm
from vmm.boot import cpumodes, direct

BUILD_DEADLINE_S = 60


def _source() -> str:
    return (resources.files("tools.peer") / "firmware" / "firmware.S").read_text()


@pytest.mark.needs_assembler
def test_shipped_firmware_is_what_its_source_gives(tmp_path: Path) -> None:
    with resources.as_file(resources.files("tools.peer") / "firmware" / "build.sh") as script:
        subprocess.run(["sh", script, tmp_path], check=True, timeout=BUILD_DEADLINE_S)
    assert (tmp_path / "firmware.bin").read_bytes() == microvm.firmware()


def test_firmware_is_the_end_of_a_rom_and_begins_where_the_processor_does() -> None:
    firmware = microvm.firmware()
    assert len(firmware) == 0x100
    assert firmware[0xF0] in (0xE9, 0xEB)  # a jump


def test_firmware_and_direct_boot_agree_on_every_address() -> None:
    found = re.findall(r"^#define (\w+) (0x[0-9a-f]+|\d+)", _source(), re.MULTILINE)
    numbers = {name: int(value, 0) for name, value in found}
    start = direct.DirectStart(direct.IMAGE_ADDRESS, bits=64).apply(0, RESET_STATE)
    assert numbers["GDT"] == cpumodes.GDT_ADDRESS
    assert numbers["GDT_LIMIT"] == cpumodes.GDT_SIZE_BYTES - 1
    assert numbers["PAGE_TABLES"] == start.control["cr3"]
    assert numbers["BOOT_INFO"] == start.general["rdi"]
    assert numbers["STACK_TOP"] == start.general["rsp"]
    assert numbers["IMAGE"] == start.general["rip"]
    assert (numbers["CODE"], numbers["DATA"]) == (start.segments["cs"][0], start.segments["ds"][0])
