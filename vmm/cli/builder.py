"""The configuration while options are still coming in, and the checks that need all of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import UUID

from vmm.config import (
    AccelOptions,
    Chardev,
    ChardevKind,
    DebugConsoleDevice,
    DebugExitDevice,
    Drive,
    FileAddress,
    FloppyImage,
    IncomingConfig,
    InheritedFd,
    LoaderDevice,
    MachineOptions,
    MemoryBackend,
    MigrationAddress,
    Monitor,
    SandboxOptions,
    TapNetdev,
    VirtioDevice,
    VirtioNetDevice,
    VmmConfig,
    device_chardevs,
)
from vmm.errors import ConfigError, MigrationError
from vmm.migration.parameters import check_globals
from vmm.migration.preflight import is_cpr_address

DEFAULT_MEMORY_BYTES = 128 << 20
DEFAULT_ACCELS = (AccelOptions("kvm"), AccelOptions("unicorn"))
_STDIO_SERIAL = "serial0"


@dataclass
class ConfigBuilder:
    """Mutable; `finish` makes the frozen result."""

    machine: dict[str, str] = field(default_factory=dict)
    accels: list[AccelOptions] = field(default_factory=list)
    enable_kvm: bool = False
    memory_size_bytes: int | None = None
    backends: dict[str, MemoryBackend] = field(default_factory=dict)
    numa_memdevs: list[str] = field(default_factory=list)
    vcpu_count: int = 1
    cpu_model: str = "max"
    name: str | None = None
    uuid: UUID | None = None
    chardevs: dict[str, Chardev] = field(default_factory=dict)
    serials: list[str] = field(default_factory=list)
    serial_options: int = 0  # how many -serial there were, "none" included
    monitors: list[Monitor] = field(default_factory=list)
    loaders: list[LoaderDevice] = field(default_factory=list)
    debug_exits: list[DebugExitDevice] = field(default_factory=list)
    debug_consoles: list[DebugConsoleDevice] = field(default_factory=list)
    netdevs: dict[str, TapNetdev] = field(default_factory=dict)
    drives: dict[str, Drive] = field(default_factory=dict)
    virtio: list[VirtioDevice] = field(default_factory=list)
    virtio_ioeventfd: bool = True
    used_consoles: set[int] = field(default_factory=set)  # places in `virtio` with a virtconsole
    floppy: FloppyImage | None = None
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    incoming_given: bool = False
    incoming_main: MigrationAddress | None = None
    incoming_cpr: MigrationAddress | None = None
    inherited_fds: list[InheritedFd] = field(default_factory=list)
    start_paused: bool = False
    no_reboot: bool = False
    no_shutdown: bool = False
    nographic: bool = False
    pidfile: Path | None = None
    sandbox: SandboxOptions = field(default_factory=SandboxOptions)
    spawn_given: bool = False  # -sandbox spawn=… was
    timestamps: bool = False
    migration_globals: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def add_chardev(self, chardev: Chardev) -> None:
        """A new chardev. Raises ConfigError for a second one of the same id or on stdio."""
        if chardev.id in self.chardevs:
            raise ConfigError(f"Duplicate ID '{chardev.id}' for chardev")
        if chardev.kind is ChardevKind.STDIO and any(
            other.kind is ChardevKind.STDIO for other in self.chardevs.values()
        ):
            raise ConfigError("cannot use stdio by multiple character devices")
        self.chardevs[chardev.id] = chardev

    def used_netdevs(self) -> frozenset[str]:
        """The netdevs that a device has."""
        nets = (device for device in self.virtio if isinstance(device, VirtioNetDevice))
        return frozenset(device.netdev for device in nets if device.netdev is not None)

    def finish(self, machine: MachineOptions, accels: tuple[AccelOptions, ...]) -> VmmConfig:
        """Check what concerns several options together. Raises ConfigError."""
        if self.nographic and self.serial_options == 0:
            self.add_chardev(Chardev(_STDIO_SERIAL, ChardevKind.STDIO))
            self.serials.append(_STDIO_SERIAL)
        if self.initrd is not None and self.kernel is None:
            raise ConfigError("-initrd only allowed with -kernel option")
        self._check_chardevs()
        self.warnings += [
            f"netdev {name} has no peer" for name in self.netdevs if name not in self.used_netdevs()
        ]
        try:
            check_globals(self.migration_globals)
        except MigrationError as error:
            raise ConfigError(str(error)) from error
        return VmmConfig(
            machine=machine,
            accels=accels or DEFAULT_ACCELS,
            memory_size_bytes=self._memory_size(machine),
            memory_backends=tuple(self.backends.values()),
            numa_memdevs=tuple(self.numa_memdevs),
            vcpu_count=self.vcpu_count,
            cpu_model=self.cpu_model,
            name=self.name,
            uuid=self.uuid,
            chardevs=tuple(self.chardevs.values()),
            serials=tuple(self.serials),
            monitors=tuple(self.monitors),
            loaders=tuple(self.loaders),
            debug_exits=tuple(self.debug_exits),
            debug_consoles=tuple(self.debug_consoles),
            netdevs=tuple(self.netdevs.values()),
            drives=tuple(self.drives.values()),
            virtio=tuple(self.virtio),
            virtio_ioeventfd=self.virtio_ioeventfd,
            floppy=self.floppy,
            kernel=self.kernel,
            initrd=self.initrd,
            append=self.append,
            incoming=self._incoming(),
            inherited_fds=tuple(self.inherited_fds),
            start_paused=self.start_paused,
            no_reboot=self.no_reboot,
            no_shutdown=self.no_shutdown,
            pidfile=self.pidfile,
            sandbox=self._sandbox(),
            timestamps=self.timestamps,
            migration_globals=dict(self.migration_globals),
            warnings=tuple(self.warnings),
        )

    def _sandbox(self) -> SandboxOptions:
        """Scripts of taps must be able to run, unless the user said otherwise."""
        scripts = any(net.script or net.downscript for net in self.netdevs.values() if not net.fds)
        if scripts and not self.spawn_given:
            return replace(self.sandbox, deny_spawn=False)
        return self.sandbox

    def _memory_size(self, machine: MachineOptions) -> int:
        """`-m`, or the size of the machine's back-end, or the default; they must agree."""
        name = machine.memory_backend
        if name is not None and self.numa_memdevs:
            raise ConfigError("'-machine memory-backend' and '-numa memdev' are mutually exclusive")
        for memdev in self.numa_memdevs:
            if memdev not in self.backends:
                raise ConfigError(f"Memory backend '{memdev}' not found")
        if name is None:
            size = self.memory_size_bytes or DEFAULT_MEMORY_BYTES
            self._check_numa(size)
            return size
        if name not in self.backends:
            raise ConfigError(f"Memory backend '{name}' not found")
        size = self.backends[name].size_bytes
        if self.memory_size_bytes not in (None, size):
            raise ConfigError("Machine memory size does not match the size of the memory backend")
        return size

    def _check_numa(self, size: int) -> None:
        if not self.numa_memdevs:
            return
        if len(set(self.numa_memdevs)) != len(self.numa_memdevs):
            raise ConfigError("-numa: the same memdev is given twice")
        total = sum(self.backends[memdev].size_bytes for memdev in self.numa_memdevs)
        if total != size:
            raise ConfigError(
                f"total memory for NUMA nodes ({total:#x}) should equal RAM size ({size:#x})"
            )

    def _check_chardevs(self) -> None:
        users = [
            *device_chardevs(self.serials, self.debug_consoles, self.virtio),
            *((monitor.chardev, "a monitor") for monitor in self.monitors),
        ]
        seen: dict[str, str] = {}
        for name, user in users:
            if name not in self.chardevs:
                raise ConfigError(f'chardev "{name}" not found')
            if name in seen:
                raise ConfigError(
                    f"chardev '{name}' is used by {seen[name]} and by {user}; it can serve one "
                    "front-end, there is no multiplexing"
                )
            seen[name] = user

    def _incoming(self) -> IncomingConfig | None:
        if not self.incoming_given:
            return None
        if self.incoming_cpr is not None:
            if not is_cpr_address(self.incoming_cpr):
                raise ConfigError("bad cpr channel socket type; must be unix")
            if isinstance(self.incoming_main, FileAddress):
                raise ConfigError("Migration requires streamable transport (eg unix)")
        return IncomingConfig(self.incoming_main, self.incoming_cpr)
