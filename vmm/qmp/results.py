"""What QMP commands return, and the events: values whose fields are the schema."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from vmm.migration.status import MigrationStatus
from vmm.qapi import BOOL, INT, Enum, Member, Object, of_annotation
from vmm.qmp.schema import Event
from vmm.runstate import RunState
from vmm.version import PRODUCT, QEMU_COMPATIBLE, VERSION


@dataclass(frozen=True, slots=True)
class VersionTriple:
    """A QEMU version."""

    major: int
    minor: int
    micro: int


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """Which QEMU we behave like, and who we are."""

    qemu: VersionTriple
    package: str


def version_info() -> VersionInfo:
    """The value of query-version and of the greeting."""
    return VersionInfo(VersionTriple(*QEMU_COMPATIBLE), f"{PRODUCT} {VERSION}")


@dataclass(frozen=True, slots=True)
class CommandInfo:
    """A command's or an event's name."""

    name: str


@dataclass(frozen=True, slots=True)
class StatusInfo:
    """The run state."""

    status: RunState
    running: bool


@dataclass(frozen=True, slots=True)
class NameInfo:
    """The guest's name."""

    name: str | None = None


@dataclass(frozen=True, slots=True)
class UuidInfo:
    """The guest's UUID."""

    uuid: str = field(metadata={"qapi": "UUID"})


@dataclass(frozen=True, slots=True)
class KvmInfo:
    """KVM's presence and use."""

    enabled: bool
    present: bool


@dataclass(frozen=True, slots=True)
class CpuProps:
    """Where a vCPU sits: one socket, one thread per core."""

    core_id: int
    socket_id: int = 0
    thread_id: int = 0


class CpuTarget(enum.Enum):
    """The guest's architecture."""

    X86_64 = "x86_64"


@dataclass(frozen=True, slots=True)
class CpuInfo:
    """A vCPU and the thread that runs it."""

    cpu_index: int
    qom_path: str
    thread_id: int
    props: CpuProps
    target: CpuTarget = CpuTarget.X86_64


@dataclass(frozen=True, slots=True)
class MemorySizeSummary:
    """Guest RAM in bytes."""

    base_memory: int
    plugged_memory: int = 0


class HostMemPolicy(enum.Enum):
    """NUMA policy; only the default is supported."""

    DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class MemdevInfo:
    """A memory back-end."""

    id: str
    size: int
    prealloc: bool
    share: bool
    merge: bool = True
    dump: bool = True
    reserve: bool = True
    host_nodes: tuple[int, ...] = ()
    policy: HostMemPolicy = HostMemPolicy.DEFAULT


@dataclass(frozen=True, slots=True)
class TimelineEntry:
    """One step of an update."""

    t_ns: int
    what: str


SHUTDOWN_CAUSE = Enum(
    "ShutdownCause",
    (
        "none",
        "host-error",
        "host-qmp-quit",
        "host-qmp-system-reset",
        "host-signal",
        "host-ui",
        "guest-shutdown",
        "guest-reset",
        "guest-panic",
        "subsystem-reset",
        "snapshot-load",
    ),
)
_ENDED = (Member("guest", BOOL), Member("reason", SHUTDOWN_CAUSE))

EVENTS: tuple[Event, ...] = (
    Event("STOP"),
    Event("RESUME"),
    Event("RESET", Object("RESET", _ENDED)),
    Event("SHUTDOWN", Object("SHUTDOWN", _ENDED)),
    Event("MIGRATION", Object("MIGRATION", (Member("status", of_annotation(MigrationStatus)),))),
    Event("MIGRATION_PASS", Object("MIGRATION_PASS", (Member("pass", INT),))),
)
