"""The whole configuration of one VMM process: frozen, validated once, made by `vmm.cli`."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID


@dataclass(frozen=True, slots=True)
class MachineOptions:
    """`-machine`: `type_name` is canonical and versioned ("cpr-1.0")."""

    type_name: str = "cpr-1.0"
    kernel_irqchip: bool = False
    memory_backend: str | None = None
    aux_ram_share: bool = False


@dataclass(frozen=True, slots=True)
class AccelOptions:
    """One `-accel`; tried in the order given."""

    name: str
    properties: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MemoryBackend:
    """`-object memory-backend-memfd` (kind "memfd") or `memory-backend-ram` (kind "ram")."""

    id: str
    kind: str
    size_bytes: int
    share: bool
    seal: bool = True
    hugetlb: bool = False
    hugetlb_size_bytes: int | None = None
    prealloc: bool = False


class ChardevKind(enum.Enum):
    """Character back-ends."""

    NULL = "null"
    STDIO = "stdio"
    FILE = "file"
    SOCKET = "socket"
    PTY = "pty"


@dataclass(frozen=True, slots=True)
class Chardev:
    """`-chardev`; `path` for files and unix sockets, `fd` for an inherited (listening) fd."""

    id: str
    kind: ChardevKind
    path: Path | None = None
    fd: int | None = None
    append: bool = False  # file
    server: bool = False  # socket
    wait: bool = True  # socket server: block start-up until a client is there


class MonitorMode(enum.Enum):
    """What a monitor speaks."""

    CONTROL = "control"  # QMP
    READLINE = "readline"  # HMP


@dataclass(frozen=True, slots=True)
class Monitor:
    """`-mon`, `-qmp` or `-monitor`: a protocol on a chardev."""

    chardev: str
    mode: MonitorMode
    pretty: bool = False


@dataclass(frozen=True, slots=True)
class LoaderDevice:
    """`-device loader`: put a file (or data) into RAM and/or set a CPU's program counter."""

    file: Path | None = None
    addr: int | None = None
    cpu_num: int | None = None
    data: int | None = None
    data_len: int | None = None
    force_raw: bool = False


@dataclass(frozen=True, slots=True)
class DebugExitDevice:
    """`-device isa-debug-exit,iobase=,iosize=`."""

    iobase: int = 0x501
    iosize: int = 2


@dataclass(frozen=True, slots=True)
class DebugConsoleDevice:
    """`-device isa-debugcon,iobase=,chardev=`: one write-only port."""

    chardev: str
    iobase: int = 0xE9


# What QEMU runs for a tap when nothing else is said.
DEFAULT_IFUP, DEFAULT_IFDOWN = "/etc/qemu-ifup", "/etc/qemu-ifdown"


@dataclass(frozen=True, slots=True)
class TapNetdev:
    """`-netdev tap`: a tap opened by name, or inherited ones (`fds`). No script: run none."""

    id: str
    ifname: str | None = None  # None: the kernel chooses
    fds: tuple[int, ...] = ()
    script: str | None = DEFAULT_IFUP
    downscript: str | None = DEFAULT_IFDOWN
    queues: int = 1
    sndbuf_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class VirtioNetDevice:
    """`-device virtio-net-device`; `migrate_fds`: an update may pass the fds of its netdev."""

    netdev: str | None = None  # None: nothing is plugged in
    mac: bytes | None = None  # 6 bytes; None: one made from its number, as QEMU's 52:54:00:12:34:56
    migrate_fds: bool = True
    id: str | None = None


@dataclass(frozen=True, slots=True)
class VirtioRngDevice:
    """`-device virtio-rng-device`."""

    id: str | None = None


@dataclass(frozen=True, slots=True)
class Drive:
    """`-drive if=none` or `-blockdev`: a raw image file."""

    id: str
    file: Path
    readonly: bool = False


@dataclass(frozen=True, slots=True)
class VirtioBlkDevice:
    """`-device virtio-blk-device,drive=`."""

    drive: str
    id: str | None = None
    serial: str = ""


@dataclass(frozen=True, slots=True)
class VirtioConsoleDevice:
    """`-device virtio-serial-device,id=` with `-device virtconsole,chardev=` on its bus."""

    chardev: str | None = None  # None: output is discarded
    id: str | None = None


VirtioDevice = VirtioNetDevice | VirtioRngDevice | VirtioBlkDevice | VirtioConsoleDevice


def device_chardevs(
    serials: Iterable[str],
    debug_consoles: Iterable[DebugConsoleDevice],
    virtio: Iterable[VirtioDevice],
) -> Iterator[tuple[str, str]]:
    """Every chardev that a device has, with what the device is called in messages."""
    for chardev in serials:
        yield chardev, "a serial port"
    for debug_console in debug_consoles:
        yield debug_console.chardev, "a debug console"
    for device in virtio:
        if isinstance(device, VirtioConsoleDevice) and device.chardev is not None:
            yield device.chardev, "a virtio console"


@dataclass(frozen=True, slots=True)
class FloppyImage:
    """`-drive if=floppy,format=raw,file=`: only its boot sector is used, loaded at 0x7c00."""

    file: Path


@dataclass(frozen=True, slots=True)
class SocketUnix:
    """A unix stream socket by path."""

    path: str


@dataclass(frozen=True, slots=True)
class SocketInet:
    """A TCP address."""

    host: str
    port: str


@dataclass(frozen=True, slots=True)
class SocketVsock:
    """A vsock address."""

    cid: str
    port: str


@dataclass(frozen=True, slots=True)
class SocketFd:
    """An fd by number (command line) or by getfd name."""

    name: str


@dataclass(frozen=True, slots=True)
class ExecAddress:
    """A command whose standard input or output is the stream."""

    args: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FileAddress:
    """A file and an offset into it."""

    filename: str
    offset_bytes: int = 0


MigrationAddress = SocketUnix | SocketInet | SocketVsock | SocketFd | ExecAddress | FileAddress


class ChannelType(enum.Enum):
    """Which migration channel an address is for."""

    MAIN = "main"
    CPR = "cpr"


@dataclass(frozen=True, slots=True)
class MigrationChannel:
    """One entry of `migrate`'s channel list or one `-incoming`."""

    type: ChannelType
    address: MigrationAddress


@dataclass(frozen=True, slots=True)
class IncomingConfig:
    """Every `-incoming` together. `main` is None with `defer` or with a cpr channel alone."""

    main: MigrationAddress | None = None
    cpr: MigrationAddress | None = None


@dataclass(frozen=True, slots=True)
class InheritedFd:
    """`-add-fd fd=,set=,opaque=`: an fd that the parent left open for `/dev/fdset/SET`."""

    fd: int
    fdset: int
    opaque: str | None = None


@dataclass(frozen=True, slots=True)
class SandboxOptions:
    """`-sandbox`: what the process gives up (see vmm.sandbox)."""

    enabled: bool = True
    deny_obsolete: bool = True
    deny_elevate_privileges: bool = True
    deny_spawn: bool = True
    deny_resource_control: bool = False
    dumpable: bool = False


@dataclass(frozen=True, slots=True)
class VmmConfig:
    """One VMM process."""

    machine: MachineOptions = field(default_factory=MachineOptions)
    accels: tuple[AccelOptions, ...] = (AccelOptions("kvm"), AccelOptions("unicorn"))
    memory_size_bytes: int = 128 << 20
    memory_backends: tuple[MemoryBackend, ...] = ()
    numa_memdevs: tuple[str, ...] = ()  # -numa node,memdev=ID: RAM of several back-ends
    vcpu_count: int = 1
    cpu_model: str = "max"
    name: str | None = None
    uuid: UUID | None = None
    chardevs: tuple[Chardev, ...] = ()
    serials: tuple[str, ...] = ()  # chardev ids, first = COM1
    monitors: tuple[Monitor, ...] = ()
    loaders: tuple[LoaderDevice, ...] = ()
    debug_exits: tuple[DebugExitDevice, ...] = ()
    debug_consoles: tuple[DebugConsoleDevice, ...] = ()
    netdevs: tuple[TapNetdev, ...] = ()
    drives: tuple[Drive, ...] = ()
    virtio: tuple[VirtioDevice, ...] = ()  # in command-line order, which is address order
    virtio_ioeventfd: bool = True  # notifications by eventfd, where the accelerator has them
    floppy: FloppyImage | None = None
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    incoming: IncomingConfig | None = None
    inherited_fds: tuple[InheritedFd, ...] = ()
    start_paused: bool = False  # -S
    no_reboot: bool = False
    no_shutdown: bool = False
    pidfile: Path | None = None
    sandbox: SandboxOptions = SandboxOptions()
    timestamps: bool = False  # -msg timestamp=on
    migration_globals: Mapping[str, str] = field(default_factory=dict)  # -global migration.X=Y
    warnings: tuple[str, ...] = ()  # one line each, printed at start

    def used_drives(self) -> tuple[Drive, ...]:
        """The drives that have a disk device."""
        used = {device.drive for device in self.virtio if isinstance(device, VirtioBlkDevice)}
        return tuple(drive for drive in self.drives if drive.id in used)

    def ram_backends(self) -> tuple[MemoryBackend, ...]:
        """The back-ends that are guest RAM, in guest-physical order.

        Plain `-m` has no back-end object: it is private memory named pc.ram, as on QEMU's pc.
        """
        by_id = {backend.id: backend for backend in self.memory_backends}
        if self.numa_memdevs:
            return tuple(by_id[name] for name in self.numa_memdevs)
        if self.machine.memory_backend is not None:
            return (by_id[self.machine.memory_backend],)
        return (MemoryBackend("pc.ram", "ram", self.memory_size_bytes, share=False),)
