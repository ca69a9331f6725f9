"""What a Linux kernel finds at its entry, read back the way the kernel reads it."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.unit.boot.bare_machine import RESET_STATE
from tests.unit.boot.bzimages import INIT_SIZE, LOAD, bzimage
from tests.unit.boot.elf_files import make_elf
from vmm.boot.image import plan_boot
from vmm.boot.linux_image import is_linux_file
from vmm.boot.plan import BootPlan
from vmm.cli import parse_args
from vmm.config import MachineOptions, VmmConfig
from vmm.errors import BootError

MIB, GIB = 1 << 20, 1 << 30
VMLINUX = make_elf(
    64, entry=0x100_0000, segments=((0x100_0000, b"code", 2 * MIB),), pvh_entry=0x100_0002
)


class Ram:
    """What was written, by address."""

    def __init__(self, plan: BootPlan) -> None:
        self.writes: dict[int, bytes] = {}
        plan.write_to(self)

    def write(self, guest_address: int, data: bytes, /) -> None:
        self.writes[guest_address] = data

    def read(self, address: int, size: int) -> bytes:
        """Bytes inside one piece."""
        for start, data in self.writes.items():
            if start <= address and address + size <= start + len(data):
                return data[address - start : address - start + size]
        raise AssertionError(f"nothing was written at {address:#x}")

    def unpack(self, layout: str, address: int) -> tuple[int, ...]:
        """Numbers at an address."""
        return struct.unpack(layout, self.read(address, struct.calcsize(layout)))


def config_for(
    tmp_path: Path, kernel: bytes, ram: int = 512 * MIB, initrd: bytes | None = b"cpio"
) -> VmmConfig:
    (tmp_path / "kernel").write_bytes(kernel)
    if initrd is not None:
        (tmp_path / "initrd").write_bytes(initrd)
    return VmmConfig(
        machine=MachineOptions(kernel_irqchip=True),
        memory_size_bytes=ram,
        vcpu_count=2,
        kernel=tmp_path / "kernel",
        initrd=None if initrd is None else tmp_path / "initrd",
        append="console=ttyS0 quiet",
        serials=("s0",),
    )


def test_bzimage_is_entered_by_the_64_bit_boot_protocol(tmp_path: Path) -> None:
    plan = plan_boot(config_for(tmp_path, bzimage()))
    ram = Ram(plan)
    state = plan.cpu_state(0, RESET_STATE)
    assert state is not None
    assert plan.cpu_state(1, RESET_STATE) is None  # started by the kernel
    assert ram.read(state.general["rip"], 16) == b"the 64-bit entry"
    assert state.control["cr0"] & 0x8000_0001 == 0x8000_0001
    assert (state.segments["cs"][0], state.segments["ds"][0]) == (0x10, 0x18)
    zero_page = state.general["rsi"]
    assert (
        ram.read(zero_page + 0x1F1, 0x77)
        == bzimage()[0x1F1:0x210]
        + b"\xff"
        + bytes(bzimage()[0x211:0x218])
        + ram.read(zero_page + 0x218, 8)
        + bzimage()[0x220:0x228]
        + ram.read(zero_page + 0x228, 4)
        + (bzimage()[0x22C:0x268])
    )
    (command_line,) = ram.unpack("<I", zero_page + 0x228)
    assert ram.read(command_line, 20) == b"console=ttyS0 quiet\0"
    initrd, size = ram.unpack("<II", zero_page + 0x218)
    assert (ram.read(initrd, size), initrd % 4096) == (b"cpio", 0)
    assert initrd >= LOAD + INIT_SIZE
    (rsdp,) = ram.unpack("<Q", zero_page + 0x70)
    assert ram.read(rsdp, 8) == b"RSD PTR "
    (count,) = ram.read(zero_page + 0x1E8, 1)
    areas = [ram.unpack("<QQI", zero_page + 0x2D0 + 20 * index) for index in range(count)]
    assert areas[0] == (0, 0x9FC00, 1)
    assert areas[-1] == (MIB, 511 * MIB, 1)


def test_vmlinux_is_entered_by_pvh(tmp_path: Path) -> None:
    plan = plan_boot(config_for(tmp_path, VMLINUX, ram=5 * GIB))
    ram = Ram(plan)
    state = plan.cpu_state(0, RESET_STATE)
    assert state is not None
    assert plan.cpu_state(1, RESET_STATE) is None
    assert (state.general["rip"], state.control["cr0"], state.control["cr4"]) == (0x100_0002, 17, 0)
    info = state.general["rbx"]
    magic, version, _flags, modules, module_list, command_line, rsdp, map_start, map_count, _ = (
        ram.unpack("<IIIIQQQQII", info)
    )
    assert (magic, version, modules) == (0x336EC578, 1, 1)
    initrd, size, _, _ = ram.unpack("<QQQQ", module_list)
    assert ram.read(initrd, size) == b"cpio"
    assert ram.read(command_line, 20) == b"console=ttyS0 quiet\0"
    assert ram.read(rsdp, 8) == b"RSD PTR "
    areas = [ram.unpack("<QQII", map_start + 24 * index) for index in range(map_count)]
    assert areas[-2:] == [(MIB, 3 * GIB - MIB, 1, 0), (4 * GIB, 2 * GIB, 1, 0)]


def test_without_initrd_none_is_announced(tmp_path: Path) -> None:
    for kernel, register, layout, offset in (
        (bzimage(), "rsi", "<II", 0x218),
        (VMLINUX, "rbx", "<IQ", 12),
    ):
        plan = plan_boot(config_for(tmp_path, kernel, initrd=None))
        state = plan.cpu_state(0, RESET_STATE)
        assert state is not None
        assert Ram(plan).unpack(layout, state.general[register] + offset) == (0, 0)


def test_the_memory_map_never_overlaps_and_covers_ram(tmp_path: Path) -> None:
    for ram_bytes in (64 * MIB, 3 * GIB, 3 * GIB + MIB, 64 * GIB):
        plan = plan_boot(config_for(tmp_path, bzimage(), ram=ram_bytes))
        state = plan.cpu_state(0, RESET_STATE)
        assert state is not None
        ram = Ram(plan)
        page = state.general["rsi"]
        (count,) = ram.read(page + 0x1E8, 1)
        areas = [ram.unpack("<QQI", page + 0x2D0 + 20 * index) for index in range(count)]
        ends = [start + size for start, size, _ in areas]
        assert all(end <= area[0] for end, area in zip(ends, areas[1:], strict=False))
        assert sum(size for _, size, _ in areas) == ram_bytes


@pytest.mark.parametrize(
    ("kernel", "ram", "message"),
    [
        (bzimage(version=0x20B), 64 * MIB, "boot protocol 2.11 and without a 64-bit entry"),
        (bzimage(xloadflags=0), 64 * MIB, "without a 64-bit entry"),
        (bzimage(loadflags=0), 64 * MIB, "a zImage"),
        (bzimage(kernel=b"x"), 64 * MIB, "nothing follows its 1 setup sectors"),
        (bzimage()[:0x240], 64 * MIB, "a bzImage of 576 bytes; the file is cut off"),
        (bzimage(), 18 * MIB, "needs memory up to 0x1400000, RAM ends at 0x1200000"),
        (bzimage(initrd_max=LOAD), 64 * MIB, "the initrd .4 bytes. does not fit"),
        (VMLINUX, 17 * MIB, "needs memory up to 0x1200000"),
    ],
)
def test_what_cannot_boot_is_refused(tmp_path: Path, kernel: bytes, ram: int, message: str) -> None:
    with pytest.raises(BootError, match=message):
        plan_boot(config_for(tmp_path, kernel, ram=ram))


def test_too_long_a_command_line_names_the_kernels_limit(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(bzimage())
    config = VmmConfig(
        machine=MachineOptions(kernel_irqchip=True),
        kernel=tmp_path / "kernel",
        append="x" * 2048,
    )
    with pytest.raises(BootError, match="this kernel takes at most 2047 bytes"):
        plan_boot(config)


def test_an_initrd_for_another_kernel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BootError, match="only Linux kernels take one"):
        plan_boot(config_for(tmp_path, make_elf(64)))


def test_kernel_irqchip_follows_what_is_booted_unless_it_is_given(tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    for content, is_linux in ((bzimage(), True), (VMLINUX, True), (make_elf(64), False)):
        kernel.write_bytes(content)
        assert is_linux_file(kernel) is is_linux
        for option, expected in (
            ((), is_linux),
            (("-machine", "kernel-irqchip=auto"), is_linux),
            (("-machine", "kernel-irqchip=off"), False),
            (("-machine", "kernel-irqchip=on"), True),
        ):
            config = parse_args(["-kernel", str(kernel), *option])
            assert config.machine.kernel_irqchip is expected
    assert not is_linux_file(tmp_path / "none")
