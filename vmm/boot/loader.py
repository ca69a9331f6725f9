"""`-device loader`: put a file or a number into RAM, and optionally start a CPU there.

As in QEMU: an ELF file goes where it says (`addr` is ignored), any other file goes to `addr` as it
is; the CPU's start is set only if `cpu-num` is given. Unlike QEMU, `cpu-num` also puts the CPU into
the mode that the code needs, since there is no firmware to do it: ELF64 starts in 64-bit mode and
ELF32 in flat 32-bit mode (see direct.py), anything else in real mode (see realmode.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from vmm.boot.direct import DirectStart
from vmm.boot.elf import ElfImage, is_elf, parse_elf
from vmm.boot.files import read_image
from vmm.boot.plan import BootPiece, CpuStart
from vmm.boot.realmode import RealModeStart
from vmm.config import LoaderDevice
from vmm.errors import BootError

_DATA_MAX_BYTES = 8  # the option's value is one integer


@dataclass(frozen=True, slots=True)
class Loaded:
    """What one image or loader device contributes to the plan."""

    pieces: tuple[BootPiece, ...]
    starts: tuple[tuple[int, CpuStart], ...] = ()  # (vCPU, start)


def plan_loader(device: LoaderDevice, vcpu_count: int) -> Loaded:
    """Check one loader device and turn it into pieces and starts.

    Raises BootError, with QEMU's texts where QEMU has one.
    """
    _check_arguments(device, vcpu_count)
    if device.file is not None:
        return _load_file(device)
    address = device.addr or 0
    if device.data_len:
        mask = (1 << 8 * device.data_len) - 1
        data = ((device.data or 0) & mask).to_bytes(device.data_len, "little")
        return Loaded((BootPiece.of("loader data", address, data),), _start(device, address))
    return Loaded((), _start(device, address))


def elf_pieces(image: ElfImage, name: str) -> tuple[BootPiece, ...]:
    """The segments of an ELF file as pieces."""
    return tuple(
        BootPiece(f"{name} segment {index}", segment.address, segment.data, segment.size_bytes)
        for index, segment in enumerate(image.segments)
    )


def _check_arguments(device: LoaderDevice, vcpu_count: int) -> None:
    wants_data = device.data is not None or device.data_len is not None
    if wants_data and device.file is not None:
        raise BootError("Specifying a file is not supported when loading memory values")
    if wants_data and device.force_raw:
        raise BootError("Specifying force-raw is not supported when loading memory values")
    if wants_data and not device.data_len:
        raise BootError("Both data and data-len must be specified")
    if (device.data_len or 0) > _DATA_MAX_BYTES:
        raise BootError("data-len cannot be greater than 8 bytes")
    if not wants_data and device.file is None:
        if device.addr is None:
            raise BootError("please include valid arguments")
        if device.cpu_num is None:
            raise BootError("cpu_num must be specified when setting a program counter")
    if device.cpu_num is not None and not 0 <= device.cpu_num < vcpu_count:
        raise BootError(f"Specified boot CPU#{device.cpu_num} is nonexistent")


def _load_file(device: LoaderDevice) -> Loaded:
    assert device.file is not None
    name = str(device.file)
    data = read_image(device.file)
    if is_elf(data) and not device.force_raw:
        image = parse_elf(data, name)
        return Loaded(elf_pieces(image, name), _start(device, image.entry, image.bits))
    address = device.addr or 0
    return Loaded((BootPiece.of(name, address, data),), _start(device, address))


def _start(
    device: LoaderDevice, address: int, bits: int | None = None
) -> tuple[tuple[int, CpuStart], ...]:
    """`bits` None means code of no known kind: real mode."""
    if device.cpu_num is None:
        return ()
    start: CpuStart = RealModeStart(address) if bits is None else DirectStart(address, bits)
    return ((device.cpu_num, start),)
