"""How each VMM is started for the comparison: one template, because both take the same options."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
RAM_ID = "ram0"

# Some hosts offer ARCH_CAPABILITIES and then refuse the value that QEMU read from them (MSR 0x10a).
CPU_OPTIONS = {"kvm": "max,-arch-capabilities", "tcg": "max"}


@dataclass(frozen=True, slots=True)
class PeerBuild:
    """One VMM and accelerator: all that differs between the two sides."""

    name: str
    command: tuple[str, ...]
    machine: str
    accel: tuple[str, ...]


def qemu_build(command: Sequence[str], accel: str) -> PeerBuild:
    """QEMU with `kvm` or `tcg`; its machine with the fewest surprises is `pc`."""
    return PeerBuild(
        f"qemu/{accel}", tuple(command), "pc", ("-accel", accel, "-cpu", CPU_OPTIONS[accel])
    )


def our_build(command: Sequence[str], accel: str) -> PeerBuild:
    """This project's VMM with `kvm` or `unicorn`."""
    return PeerBuild(f"vmm/{accel}", tuple(command), "cpr-1.0", ("-accel", accel))


@dataclass(frozen=True, slots=True)
class Channels:
    """Where a successor listens."""

    main: Path
    cpr: Path


def peer_argv(
    build: PeerBuild, *, ram_bytes: int, floppy: Path, qmp_fd: int, incoming: Channels | None
) -> list[str]:
    """Make the command line of the first process (`incoming` None) or of a successor."""
    argv = [
        *build.command,
        *build.accel,
        *("-machine", f"{build.machine},memory-backend={RAM_ID},aux-ram-share=on"),
        *("-object", f"memory-backend-memfd,id={RAM_ID},size={ram_bytes},share=on"),
        *("-m", f"{ram_bytes // MIB}M"),
        *("-nodefaults", "-display", "none", "-vga", "none"),
        *("-drive", f"if=floppy,format=raw,readonly=on,file={floppy}"),
        *("-chardev", f"socket,id=qmp0,fd={qmp_fd},server=on,wait=off"),
        *("-mon", "chardev=qmp0,mode=control"),
    ]
    if incoming is not None:
        channel = {"channel-type": "cpr", "addr": _address(incoming.cpr)}
        argv += ["-incoming", f"unix:{incoming.main}", "-incoming", json.dumps(channel)]
    return argv


def migrate_arguments(channels: Channels) -> dict[str, object]:
    """Arguments of `migrate` towards a successor."""
    return {
        "channels": [
            {"channel-type": "main", "addr": _address(channels.main)},
            {"channel-type": "cpr", "addr": _address(channels.cpr)},
        ]
    }


def _address(path: Path) -> dict[str, str]:
    return {"transport": "socket", "type": "unix", "path": str(path)}
