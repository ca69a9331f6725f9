"""Our built-in guest in QEMU, as the same program on the same kind of card.

QEMU's `microvm` has virtio-mmio cards, as our machine has, but no way to start a 64-bit image by
itself. So RAM is filled as our own direct boot fills it, and a firmware of 256 bytes
(firmware/firmware.S) enters the image. There is no clock page: the guest's clock is the TSC.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory

from tools.lab.argv import GuestSpec
from tools.lab.child import ChildSetup
from tools.lab.heartbeat import HeartbeatReader
from tools.lab.nics import Nic
from tools.lab.process import VmmProcess, listen_unix
from tools.peer.argv import CPU_OPTIONS, MIB
from vmm.boot.direct import STACKS_ADDRESS, DirectDevices, direct_boot_pieces

# Where microvm puts its cards (hw/i386/microvm documentation: "virtio-mmio" transports).
MICROVM_DEVICES = DirectDevices(
    clock_port=0, serial_port=0x3F8, virtio_base=0xFEB0_0000, virtio_step=0x200, virtio_slots=24
)
ROM_BYTES = 64 << 10  # the smallest that QEMU takes
_MACHINE = "microvm,x-option-roms=off,auto-kernel-cmdline=off,rtc=off,isa-serial=off"


@contextlib.asynccontextmanager
async def running_microvm(
    command: Sequence[str], accel: str, guest: GuestSpec, nic: Nic, child: ChildSetup
) -> AsyncIterator[VmmProcess]:
    """QEMU with the guest's first heartbeat seen; it has ended when the context is left.

    Raises LaunchError, DeadlineError.
    """
    with TemporaryDirectory(prefix="cpr-peer-") as name, contextlib.ExitStack() as unused:
        folder = Path(name)
        qmp = unused.enter_context(listen_unix(folder / "qmp.sock"))
        com1 = unused.enter_context(listen_unix(folder / "serial.sock"))
        serial = await HeartbeatReader.connect(folder / "serial.sock")
        unused.callback(serial.close)
        argv = [
            *(*command, "-accel", accel, "-cpu", CPU_OPTIONS[accel], "-M", _MACHINE),
            *("-m", f"{guest.ram_bytes // MIB}M", "-nodefaults", "-display", "none"),
            *_boot_options(folder, guest),
            *("-chardev", f"socket,id=qmp0,fd={qmp.fileno()},server=on,wait=off"),
            *("-mon", "chardev=qmp0,mode=control"),
            *("-chardev", f"socket,id=com1,fd={com1.fileno()},server=on,wait=on"),
            *("-device", "isa-serial,chardev=com1"),
            *("-global", "virtio-mmio.force-legacy=false", *nic.argv()),
        ]
        process = await VmmProcess.launch(
            argv,
            name=f"qemu-{accel}",
            qmp_path=folder / "qmp.sock",
            inherited=[qmp, com1],
            log_path=folder / "qemu.log",
            child=child,
        )
        try:
            await serial.wait_lines(1)
            yield process
        finally:
            await process.terminate()


def _boot_options(folder: Path, guest: GuestSpec) -> list[str]:
    """Write what the guest starts from; QEMU puts it into RAM and ROM."""
    low, rom = folder / "low", folder / "rom"
    low.write_bytes(_low_memory(guest))
    rom.write_bytes(firmware().rjust(ROM_BYTES, b"\0"))
    with resources.as_file(resources.files("vmm.boot") / "guest" / "guest.elf") as image:
        return [
            *("-bios", str(rom), "-device", f"loader,file={low},addr=0,force-raw=on"),
            *("-device", f"loader,file={image}"),
        ]


def _low_memory(guest: GuestSpec) -> bytes:
    """Everything that direct boot puts below the stacks."""
    content = bytearray(STACKS_ADDRESS)
    for piece in direct_boot_pieces(
        bits=64,
        ram_bytes=guest.ram_bytes,
        vcpu_count=1,
        command_line=guest.append,
        devices=MICROVM_DEVICES,
    ):
        content[piece.address : piece.address + len(piece.data)] = piece.data
    return bytes(content[:STACKS_ADDRESS])


def firmware() -> bytes:
    """The last bytes of the ROM, as shipped."""
    return (resources.files("tools.peer") / "firmware" / "firmware.bin").read_bytes()
