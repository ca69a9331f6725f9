"""How a VMM is told to run the drill's Linux guest."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tools.lab.linux.agentlink import CONTROL_PORT
from tools.lab.nics import Nic

DISK_SIZE_BYTES = 16 << 20
# A kernel that says nothing of what it does at boot, reboots by the keyboard controller and not
# after a panic for ever, and does not look for a PCI bus.
_COMMAND_LINE = "console=ttyS0 quiet reboot=k panic=-1 pci=off"


@dataclass(frozen=True, slots=True)
class LinuxGuest:
    """The machine that every process of a chain is started with (see tools.lab.argv.Guest)."""

    kernel: Path
    initrd: Path
    ram_bytes: int
    vcpu_count: int
    tick_ms: int
    nic: Nic = field(default_factory=lambda: Nic(0))
    prealloc: bool = False

    @property
    def append(self) -> str:
        """The kernel's command line, with what init reads."""
        return (
            f"{_COMMAND_LINE} cpr.ip={self.nic.guest_address} cpr.host={self.nic.host_address} "
            f"cpr.port={CONTROL_PORT} cpr.tick_ms={self.tick_ms}"
        )

    def argv(self, disk: Path, console: Path, numbers: Path) -> list[str]:
        """The rest of the command line: the kernel and its devices.

        `console` gets what Linux says, `numbers` what the agent says on the virtio console.
        """
        return [
            *("-kernel", str(self.kernel), "-initrd", str(self.initrd)),
            *("-chardev", f"file,id=console0,path={console},append=on"),
            *("-serial", "chardev:console0"),
            *self.nic.argv(),
            *("-drive", f"if=none,id=disk0,format=raw,file={disk}"),
            *("-device", "virtio-blk-device,drive=disk0"),
            *("-device", "virtio-rng-device"),
            *("-chardev", f"file,id=numbers0,path={numbers},append=on"),
            *("-device", "virtio-serial-device", "-device", "virtconsole,chardev=numbers0"),
        ]
