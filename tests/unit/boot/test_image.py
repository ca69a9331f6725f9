from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.unit.boot.bare_machine import RESET_STATE
from tests.unit.boot.elf_files import make_elf
from vmm.boot.cpumodes import PAGE_TABLES_ADDRESS, identity_page_tables
from vmm.boot.direct import (
    BOOT_INFO_ADDRESS,
    COMMAND_LINE_ADDRESS,
    STACKS_ADDRESS,
)
from vmm.boot.files import read_image
from vmm.boot.image import plan_boot
from vmm.boot.plan import BootPiece, BootPlan, check_pieces
from vmm.config import FloppyImage, LoaderDevice, VmmConfig
from vmm.errors import BootError

MIB, GIB = 1 << 20, 1 << 30
BOOT_INFO = "<QIIQQQIIQHHIQII"
SECTOR = b"\xeb\xfe".ljust(510, b"\0") + b"\x55\xaa"


class _Ram:
    """Remembers what was written where."""

    def __init__(self) -> None:
        self.writes: dict[int, bytes] = {}

    def write(self, gpa: int, data: bytes) -> None:
        self.writes[gpa] = data


def _config(**fields: object) -> VmmConfig:
    return VmmConfig(memory_size_bytes=16 * MIB, **fields)  # type: ignore[arg-type]


def _file(folder: Path, data: bytes) -> Path:
    path = folder / "image"
    path.write_bytes(data)
    return path


def _written(plan: BootPlan) -> dict[int, bytes]:
    ram = _Ram()
    plan.write_to(ram)
    return ram.writes


def test_nothing_given_boots_the_builtin_guest_on_every_vcpu_in_long_mode() -> None:
    plan = plan_boot(_config(vcpu_count=2, append="pages=7", serials=("s0",)))
    for index in range(2):
        state = plan.cpu_state(index, RESET_STATE)
        assert state is not None
        assert state.general["rip"] == 0x10_0000
        assert state.general["rdi"] == BOOT_INFO_ADDRESS
        assert state.general["rsi"] == index
        assert state.general["rsp"] == STACKS_ADDRESS + (index + 1) * 0x1000
        assert state.control["cr0"] & 0x8000_0001 == 0x8000_0001
        assert state.control["cr3"] == PAGE_TABLES_ADDRESS
        assert (state.control["efer"], state.msrs[0xC000_0080]) == (0x500, 0x500)
        assert state.segments["cs"] == (0x10, 0, 0xFFFF_FFFF, 0xA09B)
        assert state.mp_state == "runnable"
        assert state.msrs[0x277] == RESET_STATE.msrs[0x277]
    assert plan.cpu_state(2, RESET_STATE) is None
    written = _written(plan)
    assert written[COMMAND_LINE_ADDRESS] == b"pages=7\0"
    info = struct.unpack(BOOT_INFO, written[BOOT_INFO_ADDRESS])
    assert info == (
        *(int.from_bytes(b"CPRBOOT1", "little"), 1, 80, 16 * MIB, 0, 4 * GIB, 2, 7),
        *(COMMAND_LINE_ADDRESS, 0xE00, 0x3F8, 0),
        *(0xD000_0000, 0x1000, 17),
    )


@pytest.mark.parametrize(
    ("ram_bytes", "mapped_gib"),
    [(16 * MIB, 4), (3 * GIB, 4), (3 * GIB + MIB, 5), (64 * GIB, 65), (200 * GIB, 78)],
)
def test_boot_info_says_what_is_ram_and_what_is_mapped(ram_bytes: int, mapped_gib: int) -> None:
    written = _written(plan_boot(VmmConfig(memory_size_bytes=ram_bytes)))
    _, _, _, below, above, mapped, *_ = struct.unpack(BOOT_INFO, written[BOOT_INFO_ADDRESS])
    assert below == min(ram_bytes, 3 * GIB)
    assert below + above == ram_bytes
    assert mapped == mapped_gib * GIB
    assert len(written[PAGE_TABLES_ADDRESS]) == (2 + mapped_gib) * 4096


def test_page_tables_map_every_address_to_itself() -> None:
    tables = identity_page_tables(5, PAGE_TABLES_ADDRESS)

    def entry(table: int, index: int) -> int:
        offset = table - PAGE_TABLES_ADDRESS + 8 * index
        return int(struct.unpack_from("<Q", tables, offset)[0])

    for address in (0, 0x20_0000, 3 * GIB - 1, 4 * GIB + 12345, 5 * GIB - 1):
        pdpt = entry(PAGE_TABLES_ADDRESS, address >> 39)
        directory = entry(pdpt & ~0xFFF, address >> 30 & 511)
        page = entry(directory & ~0xFFF, address >> 21 & 511)
        assert (pdpt & 3, directory & 0x83, page & 0x83) == (3, 3, 0x83)
        assert (page & ~0x1F_FFFF) + (address & 0x1F_FFFF) == address
    assert entry(PAGE_TABLES_ADDRESS + 4096, 5) == 0


def test_elf64_kernel_starts_at_its_entry_and_its_bss_is_cleared(tmp_path: Path) -> None:
    elf = make_elf(64, entry=0x20_0004, segments=((0x20_0000, b"code", 4 + 2 * MIB),))
    plan = plan_boot(_config(kernel=_file(tmp_path, elf)))
    state = plan.cpu_state(0, RESET_STATE)
    assert state is not None
    assert state.general["rip"] == 0x20_0004
    written = _written(plan)
    assert written[0x20_0000] == b"code"
    assert written[0x20_0004] == bytes(MIB)
    assert written[0x30_0004] == bytes(MIB)


def test_elf32_kernel_starts_in_flat_protected_mode_without_paging(tmp_path: Path) -> None:
    plan = plan_boot(_config(kernel=_file(tmp_path, make_elf(32))))
    state = plan.cpu_state(0, RESET_STATE)
    assert state is not None
    assert (state.control["cr0"], state.control["efer"]) == (0x11, 0)
    assert state.segments["cs"] == (0x10, 0, 0xFFFF_FFFF, 0xC09B)


def test_flat_kernel_is_loaded_and_entered_at_one_mebibyte(tmp_path: Path) -> None:
    plan = plan_boot(_config(kernel=_file(tmp_path, b"\xf4\xf4\xf4")))
    assert _written(plan)[0x10_0000] == b"\xf4\xf4\xf4"
    state = plan.cpu_state(0, RESET_STATE)
    assert state is not None
    assert state.general["rip"] == 0x10_0000


@pytest.mark.parametrize("floppy", [False, True])
def test_boot_sector_starts_vcpu_0_alone_in_real_mode(tmp_path: Path, floppy: bool) -> None:
    if floppy:
        path = _file(tmp_path, SECTOR + bytes(1440 * 1024 - 512))
        config = _config(floppy=FloppyImage(path), vcpu_count=2)
    else:
        config = _config(kernel=_file(tmp_path, SECTOR), vcpu_count=2)
    plan = plan_boot(config)
    state = plan.cpu_state(0, RESET_STATE)
    assert state is not None
    assert state.general["rip"] == 0x7C00
    assert state.general["rdx"] == 0
    assert state.segments["cs"] == (0, 0, 0xFFFF, 0x9B)
    assert state.control["cr0"] & 1 == 0
    assert plan.cpu_state(1, RESET_STATE) is None
    assert _written(plan) == {0x7C00: SECTOR}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (make_elf(64, pvh_entry=0x10_0000), "is a Linux kernel.*-machine kernel-irqchip=on"),
        (b"", "the file is empty"),
        (bytes(17 * MIB), "RAM is 0..0x1000000; give the guest more memory"),
        (make_elf(64, entry=0x2000, segments=((0x2000, b"x", 1),)), "overlaps .*0x2000"),
        (
            make_elf(64, entry=1 << 40, segments=((1 << 40, b"x", 1),)),
            "0x10000000000..0x10000000001",
        ),
    ],
)
def test_an_image_that_cannot_run_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(BootError, match=message):
        plan_boot(_config(kernel=_file(tmp_path, data)))


def test_missing_directory_and_oversized_images_are_named(tmp_path: Path) -> None:
    with pytest.raises(BootError, match=r"Cannot load specified image .*No such file"):
        plan_boot(_config(kernel=tmp_path / "none"))
    with pytest.raises(BootError, match="Is a directory"):
        plan_boot(_config(kernel=tmp_path))
    with pytest.raises(BootError, match="larger than 3 bytes"):
        read_image(_file(tmp_path, b"1234"), size_max_bytes=3)


def test_floppy_without_signature_is_refused(tmp_path: Path) -> None:
    floppy = FloppyImage(_file(tmp_path, bytes(1024)))
    with pytest.raises(BootError, match=r"not a bootable floppy image.*ending in 00 00"):
        plan_boot(_config(floppy=floppy))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kernel": Path("k"), "floppy": FloppyImage(Path("f"))}, "give one of them"),
        ({"initrd": Path("initrd.img")}, "-initrd initrd.img: give the Linux kernel"),
        ({"vcpu_count": 33}, "at most 32 vCPUs, -smp asks for 33"),
        ({"append": "x" * 4096}, "-append: expected at most 4095 bytes"),
        ({"loaders": (LoaderDevice(addr=0x9000, data=1, data_len=1),)}, "nothing to run"),
    ],
)
def test_contradictory_options_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(BootError, match=message):
        plan_boot(_config(**fields))


def test_builtin_guest_needs_three_mebibytes() -> None:
    with pytest.raises(BootError, match="needs at least 3 MiB of RAM"):
        plan_boot(VmmConfig(memory_size_bytes=2 * MIB))


# ---- -device loader


def test_loader_raw_file_with_cpu_num_starts_in_real_mode(tmp_path: Path) -> None:
    loader = LoaderDevice(file=_file(tmp_path, b"\xf4"), addr=0x1_2345, cpu_num=0)
    plan = plan_boot(_config(loaders=(loader,)))
    state = plan.cpu_state(0, RESET_STATE)
    assert state is not None
    assert state.segments["cs"][:2] == (0x1234, 0x1_2340)
    assert state.general["rip"] == 5
    assert _written(plan) == {0x1_2345: b"\xf4"}


@pytest.mark.parametrize(("bits", "cr0_pe_pg"), [(32, 0x0000_0001), (64, 0x8000_0001)])
def test_loader_elf_ignores_addr_and_starts_in_its_mode(
    tmp_path: Path, bits: int, cr0_pe_pg: int
) -> None:
    loader = LoaderDevice(file=_file(tmp_path, make_elf(bits)), addr=0x9000, cpu_num=0)
    plan = plan_boot(_config(loaders=(loader,)))
    state = plan.cpu_state(0, RESET_STATE)
    assert state is not None
    assert state.control["cr0"] & 0x8000_0001 == cr0_pe_pg
    assert 0x9000 not in _written(plan)


def test_force_raw_loads_an_elf_as_bytes(tmp_path: Path) -> None:
    elf = make_elf(64)
    loader = LoaderDevice(file=_file(tmp_path, elf), addr=0x9000, cpu_num=0, force_raw=True)
    assert _written(plan_boot(_config(loaders=(loader,))))[0x9000] == elf


def test_loader_data_is_little_endian_and_joins_the_kernel() -> None:
    loader = LoaderDevice(addr=0x9000, data=0x1122334455, data_len=4)
    plan = plan_boot(_config(kernel=Path("builtin"), loaders=(loader,)))
    assert _written(plan)[0x9000] == b"\x55\x44\x33\x22"


def test_loader_with_address_and_cpu_sets_the_start_alone(tmp_path: Path) -> None:
    code = LoaderDevice(file=_file(tmp_path, b"\xf4"), addr=0x8000)
    plan = plan_boot(_config(loaders=(code, LoaderDevice(addr=0x8000, cpu_num=0))))
    state = plan.cpu_state(0, RESET_STATE)
    assert state is not None
    assert state.general["rip"] == 0x8000


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (LoaderDevice(), "please include valid arguments"),
        (LoaderDevice(addr=1), "cpu_num must be specified when setting a program counter"),
        (LoaderDevice(addr=1, data=1), "Both data and data-len must be specified"),
        (LoaderDevice(addr=1, data=1, data_len=9), "data-len cannot be greater than 8 bytes"),
        (
            LoaderDevice(file=Path("x"), data=1, data_len=1),
            "Specifying a file is not supported when loading memory values",
        ),
        (
            LoaderDevice(force_raw=True, data=1, data_len=1),
            "Specifying force-raw is not supported when loading memory values",
        ),
        (LoaderDevice(addr=1, cpu_num=1), "Specified boot CPU#1 is nonexistent"),
        (LoaderDevice(addr=MIB, cpu_num=0), "not in real mode's first megabyte"),
    ],
)
def test_wrong_loader_arguments_have_qemus_texts(loader: LoaderDevice, message: str) -> None:
    with pytest.raises(BootError, match=message):
        plan_boot(_config(loaders=(loader,)))


def test_32_and_64_bit_images_do_not_mix(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(make_elf(32))
    (tmp_path / "b").write_bytes(make_elf(64, entry=MIB * 2, segments=((MIB * 2, b"x", 1),)))
    loaders = tuple(LoaderDevice(file=tmp_path / n, cpu_num=i) for i, n in enumerate("ab"))
    with pytest.raises(BootError, match="must agree"):
        plan_boot(_config(loaders=loaders, vcpu_count=2))


def test_a_piece_across_the_pc_hole_is_refused_and_above_it_accepted() -> None:
    above = BootPiece.of("image", 4 * GIB, b"x")
    check_pieces([above], 3 * GIB + MIB)
    with pytest.raises(BootError, match=r"RAM is 0..0xc0000000 and 0x100000000..0x100100000"):
        check_pieces([BootPiece("image", 3 * GIB - 1, b"", 2)], 3 * GIB + MIB)
    with pytest.raises(BootError, match=r"RAM is 0..0xc0000000;"):
        check_pieces([above], 3 * GIB)
