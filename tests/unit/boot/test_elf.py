from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.boot.elf_files import make_elf
from vmm.boot.elf import ElfSegment, is_elf, parse_elf, pvh_entry_of_file
from vmm.boot.image import builtin_guest_elf
from vmm.errors import BootError


@pytest.mark.parametrize("bits", [32, 64])
def test_entry_and_segments_are_read(bits: int) -> None:
    image = parse_elf(make_elf(bits, entry=0x20_0004, segments=((0x20_0000, b"code", 64),)), "x")
    assert (image.bits, image.entry) == (bits, 0x20_0004)
    assert image.segments == (ElfSegment(0x20_0000, b"code", 64),)
    assert image.pvh_entry is None


def test_the_pvh_entry_is_read_from_its_note(tmp_path: Path) -> None:
    elf = make_elf(64, pvh_entry=0x10_0008)
    assert parse_elf(elf, "x").pvh_entry == 0x10_0008
    path = tmp_path / "vmlinux"
    path.write_bytes(elf)
    with path.open("rb") as file:
        assert pvh_entry_of_file(file.fileno()) == 0x10_0008


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_a_file_of_anything_has_no_pvh_entry_or_one(tmp_path_factory: Any, tail: bytes) -> None:
    path = tmp_path_factory.mktemp("elf") / "x"
    path.write_bytes(make_elf(64, pvh_entry=0x10_0008)[:80] + tail)
    with path.open("rb") as file:
        entry = pvh_entry_of_file(file.fileno())
    assert entry is None or entry >= 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an ELF file"),
        (b"MZ" + bytes(100), "not an ELF file"),
        (make_elf(64)[:40], "ELF header: needs 42 bytes at 0x10, the file has 0x28"),
        (make_elf(64)[:70], "program header 0: needs"),
        (make_elf(64)[:-1], "the file is cut off"),
        (make_elf(64, machine=183), "64-bit ELF for machine 183, expected 62"),
        (make_elf(64, kind=3), "ELF type is 3, expected 2"),
        (make_elf(64, entry=0x5000), "entry point 0x5000 is in none of the loaded segments"),
        (make_elf(64, segments=()), "in none of the loaded segments .none."),
        (make_elf(64, segments=((0x10_0000, b"code", 2),)), "memory size 0x2 < file size 0x4"),
        (make_elf(64)[:4] + b"\x07" + make_elf(64)[5:], "ELF class is 7"),
        (make_elf(64)[:5] + b"\x02" + make_elf(64)[6:], "ELF data encoding is 2"),
        (make_elf(64, segments=((0x10_0000, b"", 1),) * 65), "65 program headers"),
    ],
)
def test_a_damaged_file_is_refused_with_what_is_wrong(data: bytes, message: str) -> None:
    with pytest.raises(BootError, match=message) as raised:
        parse_elf(data, "image.elf")
    assert str(raised.value).startswith("image.elf")


def test_small_program_header_entries_are_refused() -> None:
    data = bytearray(make_elf(64))
    struct.pack_into("<H", data, 54, 16)
    with pytest.raises(BootError, match="program headers of 16 bytes, expected at least 56"):
        parse_elf(bytes(data), "x")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_damage_gives_an_image_or_a_boot_error(data: st.DataObject) -> None:
    elf = bytearray(builtin_guest_elf()[:512])
    for _ in range(data.draw(st.integers(1, 8))):
        elf[data.draw(st.integers(0, 127))] = data.draw(st.integers(0, 255))
    try:
        image = parse_elf(bytes(elf[: data.draw(st.integers(0, 512))]), "fuzz")
    except BootError:
        return
    assert any(s.address <= image.entry < s.address + s.size_bytes for s in image.segments)


def test_is_elf_needs_the_whole_magic() -> None:
    assert is_elf(b"\x7fELF")
    assert not is_elf(b"\x7fEL")
