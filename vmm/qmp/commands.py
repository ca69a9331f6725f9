"""Every QMP command: check the arguments, call the VMM, return.

Names, arguments, returned members and texts are QEMU 10.0's; commands that begin with `x-` are
ours. A docstring's example is run by the tests against the schema, so it cannot go stale.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from vmm.errors import MigrationError
from vmm.migration.addresses import MIGRATION_CHANNEL
from vmm.migration.capabilities import CAPABILITY_LIST
from vmm.migration.parameters import MIGRATION_PARAMETERS
from vmm.migration.preflight import incoming_address, outgoing_channels
from vmm.migration.status import MIGRATION_INFO, RUNNING, MigrationStatus
from vmm.qapi import ANY, Array, Member, Object
from vmm.qmp import hmp
from vmm.qmp.control import VmmControl
from vmm.qmp.results import (
    EVENTS,
    CommandInfo,
    CpuInfo,
    CpuProps,
    KvmInfo,
    MemdevInfo,
    MemorySizeSummary,
    NameInfo,
    StatusInfo,
    TimelineEntry,
    UuidInfo,
    VersionInfo,
    version_info,
)
from vmm.qmp.schema import Command, Registry, command
from vmm.qmp.session import CAPABILITIES_ARGUMENTS, NEGOTIATE
from vmm.runstate import RunState

_NO_UUID = "00000000-0000-0000-0000-000000000000"
_KVM_DEVICE = Path("/dev/kvm")
_CHANNELS = Array(MIGRATION_CHANNEL)


# ---- about the monitor ---------------------------------------------------------------------------


@command(NEGOTIATE, arguments=CAPABILITIES_ARGUMENTS)
def qmp_capabilities(_vmm: VmmControl, _args: dict[str, Any]) -> None:
    """Leave capabilities negotiation; must be the first command.

    -> {"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}
    <- {"return": {}}
    """
    raise AssertionError("the session negotiates by itself")


@command("query-version")
def query_version(_vmm: VmmControl) -> VersionInfo:
    """The QEMU version whose behaviour this process follows; `package` names this product.

    -> {"execute": "query-version"}
    <- {"return": {"qemu": {"major": 10, "minor": 0, "micro": 2}, "package": "cpr-vmm 0.1.0"}}
    """
    return version_info()


@command("query-commands")
def query_commands(_vmm: VmmControl) -> tuple[CommandInfo, ...]:
    """The commands of this process.

    -> {"execute": "query-commands"}
    <- {"return": [{"name": "query-commands"}]}
    """
    return tuple(CommandInfo(name) for name in REGISTRY.commands)


@command("query-events")
def query_events(_vmm: VmmControl) -> tuple[CommandInfo, ...]:
    """The events of this process (QEMU dropped this in favour of query-qmp-schema).

    -> {"execute": "query-events"}
    <- {"return": [{"name": "STOP"}]}
    """
    return tuple(CommandInfo(event.name) for event in EVENTS)


@command("query-qmp-schema", returns=Array(ANY))
def query_qmp_schema(_vmm: VmmControl) -> list[dict[str, Any]]:
    """Commands, events and types, true for this process.

    -> {"execute": "query-qmp-schema"}
    <- {"return": [{"name": "int", "meta-type": "builtin", "json-type": "int"}]}
    """
    return REGISTRY.schema


@dataclass(frozen=True, slots=True)
class HumanMonitorArgs:
    """Arguments of human-monitor-command; `cpu_index` is accepted and has no effect here."""

    command_line: str
    cpu_index: int | None = None


@command("human-monitor-command")
def human_monitor_command(vmm: VmmControl, args: HumanMonitorArgs) -> str:
    r"""Run one line of the human monitor and return what it prints.

    -> {"execute": "human-monitor-command", "arguments": {"command-line": "info status"}}
    <- {"return": "VM status: running\r\n"}
    """
    return hmp.run_line(vmm, args.command_line)


# ---- about the VM --------------------------------------------------------------------------------


@command("query-status")
def query_status(vmm: VmmControl) -> StatusInfo:
    """The run state.

    -> {"execute": "query-status"}
    <- {"return": {"status": "running", "running": true}}
    """
    return StatusInfo(vmm.runstate, vmm.runstate is RunState.RUNNING)


@command("query-name")
def query_name(vmm: VmmControl) -> NameInfo:
    """The name given with -name, if any.

    -> {"execute": "query-name"}
    <- {"return": {"name": "guest1"}}
    """
    return NameInfo(vmm.config.name)


@command("query-uuid")
def query_uuid(vmm: VmmControl) -> UuidInfo:
    """The UUID given with -uuid, or zeros.

    -> {"execute": "query-uuid"}
    <- {"return": {"UUID": "550e8400-e29b-41d4-a716-446655440000"}}
    """
    return UuidInfo(str(vmm.config.uuid) if vmm.config.uuid is not None else _NO_UUID)


@command("query-kvm")
def query_kvm(vmm: VmmControl) -> KvmInfo:
    """Whether KVM exists on this host and whether the guest uses it.

    -> {"execute": "query-kvm"}
    <- {"return": {"enabled": true, "present": true}}
    """
    return KvmInfo(enabled=vmm.accel_name == "kvm", present=_KVM_DEVICE.exists())


@command("query-cpus-fast")
def query_cpus_fast(vmm: VmmControl) -> tuple[CpuInfo, ...]:
    """The vCPUs and their threads; none before an incoming machine is built.

    -> {"execute": "query-cpus-fast"}
    <- {"return": [{"cpu-index": 0, "qom-path": "/machine/unattached/device[0]", "thread-id": 42,
        "props": {"socket-id": 0, "core-id": 0, "thread-id": 0}, "target": "x86_64"}]}
    """
    return tuple(
        CpuInfo(index, f"/machine/unattached/device[{index}]", thread_id, CpuProps(core_id=index))
        for index, thread_id in enumerate(vmm.cpu_thread_ids())
    )


@command("query-memory-size-summary")
def query_memory_size_summary(vmm: VmmControl) -> MemorySizeSummary:
    """Guest RAM in bytes.

    -> {"execute": "query-memory-size-summary"}
    <- {"return": {"base-memory": 134217728, "plugged-memory": 0}}
    """
    return MemorySizeSummary(vmm.config.memory_size_bytes)


@command("query-memdev")
def query_memdev(vmm: VmmControl) -> tuple[MemdevInfo, ...]:
    """The memory back-ends.

    -> {"execute": "query-memdev"}
    <- {"return": [{"id": "ram0", "size": 134217728, "merge": true, "dump": true,
        "prealloc": false, "share": true, "reserve": true, "host-nodes": [],
        "policy": "default"}]}
    """
    backends = dict.fromkeys((*vmm.config.memory_backends, *vmm.config.ram_backends()))
    return tuple(
        MemdevInfo(backend.id, backend.size_bytes, backend.prealloc, backend.share)
        for backend in backends
    )


@command("stop")
def stop(vmm: VmmControl) -> None:
    """Stop the guest; in inmigrate: do not start it when it arrives.

    -> {"execute": "stop"}
    <- {"return": {}}
    """
    vmm.stop()


@command("cont")
def cont(vmm: VmmControl) -> None:
    """Run the guest, if it is this process's to run; in inmigrate: when it arrives.

    -> {"execute": "cont"}
    <- {"return": {}}
    """
    vmm.cont()


@command("system_reset")
def system_reset(vmm: VmmControl) -> None:
    """Reset the guest to power-on state.

    -> {"execute": "system_reset"}
    <- {"return": {}}
    """
    vmm.system_reset()


@command("quit")
def quit_(vmm: VmmControl) -> None:
    """End the process; an update that can still be cancelled is cancelled.

    -> {"execute": "quit"}
    <- {"return": {}}
    """
    vmm.quit()


# ---- migration -----------------------------------------------------------------------------------


@command("query-migrate", returns=MIGRATION_INFO)
def query_migrate(vmm: VmmControl) -> dict[str, Any]:
    """The present or last migration; empty before the first.

    -> {"execute": "query-migrate"}
    <- {"return": {"status": "failed", "error-desc": "Failed to connect to 'cpr.sock'"}}
    """
    return vmm.migration_info()


@command("query-migrate-parameters", returns=MIGRATION_PARAMETERS)
def query_migrate_parameters(vmm: VmmControl) -> dict[str, Any]:
    """All parameters that have a value.

    -> {"execute": "query-migrate-parameters"}
    <- {"return": {"mode": "cpr-transfer", "downtime-limit": 300}}
    """
    return vmm.parameters.to_qmp()


@command("migrate-set-parameters", arguments=MIGRATION_PARAMETERS)
def migrate_set_parameters(vmm: VmmControl, args: dict[str, Any]) -> None:
    """Set parameters, all or none.

    -> {"execute": "migrate-set-parameters", "arguments": {"mode": "cpr-transfer"}}
    <- {"return": {}}
    """
    vmm.parameters.set(args)


@command("query-migrate-capabilities", returns=CAPABILITY_LIST)
def query_migrate_capabilities(vmm: VmmControl) -> list[dict[str, Any]]:
    """All capabilities and whether they are on.

    -> {"execute": "query-migrate-capabilities"}
    <- {"return": [{"capability": "events", "state": true}]}
    """
    return vmm.capabilities.to_qmp()


@command(
    "migrate-set-capabilities",
    arguments=Object("SetCapabilitiesArgs", (Member("capabilities", CAPABILITY_LIST),)),
)
def migrate_set_capabilities(vmm: VmmControl, args: dict[str, Any]) -> None:
    """Switch capabilities, all or none; not while a migration runs.

    -> {"execute": "migrate-set-capabilities",
        "arguments": {"capabilities": [{"capability": "events", "state": true}]}}
    <- {"return": {}}
    """
    if MigrationStatus(vmm.migration_info().get("status", "none")) in RUNNING:
        raise MigrationError("There's a migration process in progress")
    vmm.capabilities.set_list(args["capabilities"])


@dataclass(frozen=True, slots=True)
class MigrateArgs:
    """Arguments of migrate; `detach` has no effect, as in QEMU."""

    uri: str | None = None
    channels: Annotated[list[dict[str, Any]], _CHANNELS] | None = None
    detach: bool = False
    resume: bool = False


@command("migrate")
async def migrate(vmm: VmmControl, args: MigrateArgs) -> None:
    """Begin a migration. What fails later is told by MIGRATION events and query-migrate.

    -> {"execute": "migrate", "arguments": {"channels": [
        {"channel-type": "main", "addr": {"transport": "socket", "type": "unix", "path": "m"}},
        {"channel-type": "cpr", "addr": {"transport": "socket", "type": "unix", "path": "c"}}]}}
    <- {"return": {}}
    """
    channels = outgoing_channels(args.uri, args.channels)
    await vmm.migrate(channels, uri_form=args.uri is not None, resume=args.resume)


@dataclass(frozen=True, slots=True)
class MigrateIncomingArgs:
    """Arguments of migrate-incoming."""

    uri: str | None = None
    channels: Annotated[list[dict[str, Any]], _CHANNELS] | None = None
    exit_on_error: bool = True


@command("migrate-incoming")
async def migrate_incoming(vmm: VmmControl, args: MigrateIncomingArgs) -> None:
    """Say where the main channel will arrive, after `-incoming defer`.

    -> {"execute": "migrate-incoming", "arguments": {"uri": "unix:/run/vm/main.sock"}}
    <- {"return": {}}
    """
    if vmm.config.incoming is None:
        raise MigrationError("'-incoming' was not specified on the command line")
    address = incoming_address(args.uri, args.channels)
    await vmm.migrate_incoming(address, exit_on_error=args.exit_on_error)


@command("migrate_cancel")
def migrate_cancel(vmm: VmmControl) -> None:
    """Cancel the migration; success without effect when there is none to cancel.

    -> {"execute": "migrate_cancel"}
    <- {"return": {}}
    """
    vmm.migrate_cancel()


@dataclass(frozen=True, slots=True)
class MigrateContinueArgs:
    """Arguments of migrate-continue."""

    state: MigrationStatus


@command("migrate-continue")
def migrate_continue(vmm: VmmControl, args: MigrateContinueArgs) -> None:
    """Go on from pre-switchover (capability pause-before-switchover).

    -> {"execute": "migrate-continue", "arguments": {"state": "pre-switchover"}}
    <- {"return": {}}
    """
    vmm.migrate_continue(args.state.value)


@command("migrate-pause", allow_oob=True)
def migrate_pause(_vmm: VmmControl) -> None:
    """Pause a postcopy migration; there is none here, so this is always refused.

    -> {"exec-oob": "migrate-pause"}
    <- {"return": {}}
    """
    raise MigrationError(
        "migrate-pause is currently only supported during postcopy-active or postcopy-recover state"
    )


@dataclass(frozen=True, slots=True)
class MigrateRecoverArgs:
    """Arguments of migrate-recover."""

    uri: str


@command("migrate-recover", allow_oob=True)
def migrate_recover(_vmm: VmmControl, args: MigrateRecoverArgs) -> None:
    """Recover a paused postcopy migration; there is none here, so this is always refused.

    -> {"exec-oob": "migrate-recover", "arguments": {"uri": "unix:/run/vm/main.sock"}}
    <- {"return": {}}
    """
    raise MigrationError("Migrate recover can only be run when postcopy is paused.")


@command("migrate-start-postcopy")
def migrate_start_postcopy(_vmm: VmmControl) -> None:
    """Switch to postcopy; there is none here, so this is always refused.

    -> {"execute": "migrate-start-postcopy"}
    <- {"return": {}}
    """
    raise MigrationError(
        "Enable postcopy with migrate_set_capability before the start of migration"
    )


@command("x-query-cpr-timeline")
def x_query_cpr_timeline(vmm: VmmControl) -> tuple[TimelineEntry, ...]:
    """What each step of the last update did and when, in CLOCK_MONOTONIC nanoseconds.

    -> {"execute": "x-query-cpr-timeline"}
    <- {"return": [{"t-ns": 123456789, "what": "vcpus-stopped"}]}
    """
    return tuple(TimelineEntry(item["t-ns"], item["what"]) for item in vmm.update_timeline())


COMMANDS: Final[tuple[Command, ...]] = (
    qmp_capabilities,
    query_version,
    query_commands,
    query_events,
    query_qmp_schema,
    human_monitor_command,
    query_status,
    query_name,
    query_uuid,
    query_kvm,
    query_cpus_fast,
    query_memory_size_summary,
    query_memdev,
    stop,
    cont,
    system_reset,
    quit_,
    query_migrate,
    query_migrate_parameters,
    migrate_set_parameters,
    query_migrate_capabilities,
    migrate_set_capabilities,
    migrate,
    migrate_incoming,
    migrate_cancel,
    migrate_continue,
    migrate_pause,
    migrate_recover,
    migrate_start_postcopy,
    x_query_cpr_timeline,
)
REGISTRY: Final = Registry(COMMANDS, EVENTS)
