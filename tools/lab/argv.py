"""The command line of a VMM under test, in QEMU's option syntax; pure.

Sockets are made by the launcher and inherited as listening fds, so a client can connect before the
process has even started and nobody has to ask "is it there yet?".
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

RAM_BACKEND_ID = "ram0"
SERIAL_CHARDEV_ID = "serial0"
QMP_CHARDEV_ID = "qmp0"
MACHINE = "cpr-1.0"
HEARTBEAT_MS_DEFAULT = 20  # often enough to pace a drill, a few per cent of the guest's work


class Guest(Protocol):
    """What a machine runs, as far as every guest says it in the same way."""

    @property
    def ram_bytes(self) -> int:
        """Size of RAM."""
        ...

    @property
    def vcpu_count(self) -> int:
        """Number of vCPUs."""
        ...

    @property
    def prealloc(self) -> bool:
        """Allocate and map all of RAM before the guest starts."""
        ...

    @property
    def append(self) -> str:
        """Its command line."""
        ...


@dataclass(frozen=True, slots=True)
class GuestSpec:
    """The built-in guest, in the machine that every process of a chain is started with."""

    ram_bytes: int
    vcpu_count: int = 1
    pages: int = 0  # working set of the built-in guest in 4 KiB pages; 0 = all RAM
    heartbeat_ms: int = HEARTBEAT_MS_DEFAULT
    prealloc: bool = False  # allocate and map all of RAM before the guest starts
    network: str = ""  # further words of the command line: addresses and flows

    @property
    def append(self) -> str:
        """The built-in guest's command line."""
        words = [f"heartbeat_ms={self.heartbeat_ms}"]
        if self.pages:
            words.append(f"pages={self.pages}")
        if self.network:
            words.append(self.network)
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class Build:
    """One VMM to run: a command and an accelerator (None leaves the choice to the VMM)."""

    command: tuple[str, ...]
    accel: str | None = None


@dataclass(frozen=True, slots=True)
class SerialSocket:
    """COM1 on a unix socket.

    `fd` is the listening socket, for the process that starts the guest; a successor gets the open
    sockets from its predecessor and only names the path.
    """

    path: Path
    fd: int | None = None


@dataclass(frozen=True, slots=True)
class Incoming:
    """Where a successor waits: an inherited listening fd for cpr, a path to be bound for main."""

    cpr_fd: int
    main_path: Path


def vmm_argv(
    build: Build,
    guest: Guest,
    *,
    name: str,
    qmp_fd: int,
    serial: SerialSocket | None = None,
    incoming: Incoming | None = None,
    paused: bool = False,
    extra: Sequence[str] = (),
) -> list[str]:
    """Make the whole command line of one VMM process; `extra` goes last."""
    argv = [*build.command, "-name", name]
    argv += ["-machine", f"{MACHINE},memory-backend={RAM_BACKEND_ID},aux-ram-share=on"]
    if build.accel is not None:
        argv += ["-accel", build.accel]
    backend = f"memory-backend-memfd,id={RAM_BACKEND_ID},size={guest.ram_bytes},share=on"
    argv += [
        "-object",
        f"{backend},prealloc=on" if guest.prealloc else backend,
        "-m",
        f"size={guest.ram_bytes // (1 << 20)}M",
        "-smp",
        str(guest.vcpu_count),
        "-nodefaults",
        "-display",
        "none",
        "-chardev",
        f"socket,id={QMP_CHARDEV_ID},fd={qmp_fd},server=on,wait=off",
        "-mon",
        f"chardev={QMP_CHARDEV_ID},mode=control",
        "-append",
        guest.append,
    ]
    if serial is not None:
        argv += _serial_argv(serial)
    if incoming is not None:
        argv += incoming_argv(incoming)
    if os.geteuid() != 0:  # whoever is not root could not look at RAM from outside otherwise
        argv += ["-sandbox", "on,x-dumpable=on"]
    if paused:
        argv.append("-S")
    return [*argv, *extra]


def _serial_argv(serial: SerialSocket) -> list[str]:
    """`wait=on` is safe with an fd: the launcher's connection is in its backlog already."""
    where = f"path={serial.path},server=on,wait=off"
    if serial.fd is not None:
        where = f"fd={serial.fd},server=on,wait=on"
    return [
        "-chardev",
        f"socket,id={SERIAL_CHARDEV_ID},{where}",
        "-serial",
        f"chardev:{SERIAL_CHARDEV_ID}",
    ]


def incoming_argv(incoming: Incoming) -> list[str]:
    """Make a process a successor; its MIGRATION events are on from the start."""
    cpr = {
        "channel-type": "cpr",
        "addr": {"transport": "socket", "type": "fd", "str": str(incoming.cpr_fd)},
    }
    return [
        "-incoming",
        f"unix:{incoming.main_path}",
        "-incoming",
        json.dumps(cpr, separators=(",", ":")),
        "-global",
        "migration.x-events=on",
    ]


def migrate_channels(cpr_path: Path, main_path: Path) -> dict[str, object]:
    """Build the arguments of `migrate` towards a successor."""
    return {
        "channels": [
            {
                "channel-type": kind,
                "addr": {"transport": "socket", "type": "unix", "path": str(path)},
            }
            for kind, path in (("main", main_path), ("cpr", cpr_path))
        ]
    }
