"""From configuration to boot plan: which kind of image it is, and what each kind needs.

    -kernel FILE     bzImage            Linux, 64-bit boot protocol (linux.py)
                     ELF with PVH note  Linux's vmlinux, PVH (linux.py)
                     ELF64              direct boot in 64-bit mode (direct.py)
                     ELF32              direct boot in flat 32-bit mode
                     boot sector        512 bytes ending in 55 aa: real mode at 0x7c00 (realmode.py)
                     anything else      flat binary, loaded and entered at 1 MiB in 64-bit mode
    -kernel builtin  the built-in guest (guest/)
    -drive if=floppy the image's first sector as a boot sector; the rest cannot be reached
    -device loader   files and numbers at fixed addresses (loader.py)
    none of these    the built-in guest

All vCPUs enter an ELF or flat image at once; a boot sector or Linux starts vCPU 0 alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vmm.boot.acpi import AcpiMachine
from vmm.boot.direct import IMAGE_ADDRESS, DirectDevices, DirectStart, direct_boot_pieces
from vmm.boot.elf import ElfImage, is_elf, parse_elf
from vmm.boot.files import read_image, read_start
from vmm.boot.guest.report import WORK_START
from vmm.boot.linux import LinuxBoot, boot_bzimage, boot_pvh
from vmm.boot.linux_image import is_bzimage, parse_bzimage
from vmm.boot.loader import Loaded, elf_pieces, plan_loader
from vmm.boot.plan import BootPiece, BootPlan, CpuStart, check_pieces
from vmm.boot.realmode import (
    BOOT_SECTOR_ADDRESS,
    BOOT_SECTOR_SIZE_BYTES,
    BOOT_SIGNATURE,
    RealModeStart,
)
from vmm.config import FloppyImage, VmmConfig
from vmm.devices.clock import CLOCK_PORT
from vmm.devices.serial import COM1_PORT
from vmm.devices.virtio.mmio import VIRTIO_MMIO_BASE, VIRTIO_MMIO_GSIS, VIRTIO_MMIO_SIZE
from vmm.errors import BootError

__all__ = ["BUILTIN_KERNEL", "BootPlan", "builtin_guest_elf", "plan_boot"]

BUILTIN_KERNEL = "builtin"
_BUILTIN_RAM_MIN_BYTES = WORK_START + (1 << 20)  # a working set of at least 256 pages


def plan_boot(config: VmmConfig) -> BootPlan:
    """Read every image that the configuration names and decide where each vCPU starts.

    Raises BootError that names the image and what is wrong with it.
    """
    _check_options(config)
    loaded = [*_main_image(config)]
    loaded += [plan_loader(device, config.vcpu_count) for device in config.loaders]
    starts = _merge_starts(loaded)
    pieces = [piece for part in loaded for piece in part.pieces]
    pieces += _direct_boot(config, starts)
    check_pieces(pieces, config.memory_size_bytes)
    return BootPlan(tuple(pieces), starts)


def builtin_guest_elf() -> bytes:
    """The shipped ELF of the built-in guest."""
    # Not by importlib.resources, which brings tempfile and all compressors into each start.
    return (Path(__file__).parent / "guest" / "guest.elf").read_bytes()


def _check_options(config: VmmConfig) -> None:
    if config.kernel is not None and config.floppy is not None:
        raise BootError("-kernel and -drive if=floppy both name what to boot; give one of them")
    builtin = config.kernel is None or str(config.kernel) == BUILTIN_KERNEL
    if config.initrd is not None and builtin:
        raise BootError(f"-initrd {config.initrd}: give the Linux kernel for it with -kernel")


def _main_image(config: VmmConfig) -> Iterable[Loaded]:
    if config.floppy is not None:
        yield _floppy(config.floppy)
    elif config.kernel is None and config.loaders:
        return
    elif config.kernel is None or str(config.kernel) == BUILTIN_KERNEL:
        if config.memory_size_bytes < _BUILTIN_RAM_MIN_BYTES:
            raise BootError(
                f"the built-in guest needs at least {_BUILTIN_RAM_MIN_BYTES >> 20} MiB of RAM, "
                f"-m gives {config.memory_size_bytes} bytes"
            )
        image = parse_elf(builtin_guest_elf(), "built-in guest")
        yield _elf(image, "built-in guest", config.vcpu_count)
    else:
        yield _kernel(read_image(config.kernel), str(config.kernel), config)


def _kernel(data: bytes, name: str, config: VmmConfig) -> Loaded:
    if is_bzimage(data):
        return boot_bzimage(parse_bzimage(data, name), name, _linux_boot(config, name))
    if is_elf(data):
        image = parse_elf(data, name)
        if image.pvh_entry is not None:
            return boot_pvh(image, image.pvh_entry, name, _linux_boot(config, name))
        _refuse_initrd(config, name)
        return _elf(image, name, config.vcpu_count)
    _refuse_initrd(config, name)
    return _flat(data, name, config.vcpu_count)


def _refuse_initrd(config: VmmConfig, name: str) -> None:
    if config.initrd is not None:
        raise BootError(f"-initrd {config.initrd}: only Linux kernels take one, {name} is none")


def _flat(data: bytes, name: str, vcpu_count: int) -> Loaded:
    if len(data) == BOOT_SECTOR_SIZE_BYTES and data.endswith(BOOT_SIGNATURE):
        return _boot_sector(data, name)
    if not data:
        raise BootError(f"{name}: the file is empty")
    start = DirectStart(IMAGE_ADDRESS, bits=64)
    return Loaded(
        (BootPiece.of(name, IMAGE_ADDRESS, data),),
        tuple((index, start) for index in range(vcpu_count)),
    )


def _elf(image: ElfImage, name: str, vcpu_count: int) -> Loaded:
    start = DirectStart(image.entry, image.bits)
    return Loaded(elf_pieces(image, name), tuple((index, start) for index in range(vcpu_count)))


def _floppy(floppy: FloppyImage) -> Loaded:
    sector = read_start(floppy.file, BOOT_SECTOR_SIZE_BYTES)
    if len(sector) < BOOT_SECTOR_SIZE_BYTES or not sector.endswith(BOOT_SIGNATURE):
        raise BootError(
            f"{floppy.file}: not a bootable floppy image; expected a first sector of "
            f"{BOOT_SECTOR_SIZE_BYTES} bytes that ends in 55 aa, got {len(sector)} bytes ending in "
            f"{sector[-2:].hex(' ')}"
        )
    return _boot_sector(sector, f"{floppy.file} boot sector")


def _boot_sector(sector: bytes, name: str) -> Loaded:
    piece = BootPiece.of(name, BOOT_SECTOR_ADDRESS, sector)
    return Loaded((piece,), ((0, RealModeStart(BOOT_SECTOR_ADDRESS)),))


def _linux_boot(config: VmmConfig, name: str) -> LinuxBoot:
    if not config.machine.kernel_irqchip:
        raise BootError(
            f"{name} is a Linux kernel, which needs interrupts: it boots under KVM with -machine "
            "kernel-irqchip=on"
        )
    return LinuxBoot(
        command_line=config.append,
        initrd=None if config.initrd is None else read_image(config.initrd),
        ram_bytes=config.memory_size_bytes,
        machine=AcpiMachine(config.vcpu_count, len(config.serials), len(config.virtio)),
    )


def _merge_starts(loaded: Iterable[Loaded]) -> dict[int, CpuStart]:
    """One start for each vCPU; loaders come after the main image and override it."""
    starts: dict[int, CpuStart] = {}
    for part in loaded:
        starts.update(part.starts)
    if 0 not in starts:
        raise BootError(
            "vCPU 0 has nothing to run: give -kernel, or cpu-num=0 to the loader of its code"
        )
    return starts


def _direct_boot(config: VmmConfig, starts: dict[int, CpuStart]) -> tuple[BootPiece, ...]:
    bits = {start.bits for start in starts.values() if isinstance(start, DirectStart)}
    if not bits:
        return ()
    if len(bits) > 1:
        raise BootError("one image is 64-bit and another 32-bit; all direct boot images must agree")
    return direct_boot_pieces(
        bits=bits.pop(),
        ram_bytes=config.memory_size_bytes,
        vcpu_count=config.vcpu_count,
        command_line=config.append,
        devices=DirectDevices(
            clock_port=CLOCK_PORT,
            serial_port=COM1_PORT if config.serials else 0,
            virtio_base=VIRTIO_MMIO_BASE,
            virtio_step=VIRTIO_MMIO_SIZE,
            virtio_slots=len(VIRTIO_MMIO_GSIS),
        ),
    )
