"""What each command does to the VMM, and what stands in its way."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest

from tests.unit.qmp.fakes import FakeVmm
from vmm.config import (
    ChannelType,
    IncomingConfig,
    MachineOptions,
    MemoryBackend,
    MigrationChannel,
    SocketUnix,
    VmmConfig,
)
from vmm.errors import MigrationError, VmmError
from vmm.qapi import to_wire
from vmm.qmp.commands import REGISTRY
from vmm.runstate import RunState

UNIX = {"transport": "socket", "type": "unix", "path": "/p"}
MAIN = {"channel-type": "main", "addr": UNIX}
CPR = {"channel-type": "cpr", "addr": UNIX}


def execute(vmm: FakeVmm, name: str, **arguments: Any) -> Any:
    """Perform a command; the result as it goes on the wire."""
    item = REGISTRY.commands[name]
    wire = {key.replace("_", "-"): value for key, value in arguments.items()}
    result = item.handler(vmm, *item.bind(wire))
    if asyncio.iscoroutine(result):
        result = asyncio.run(result)
    return to_wire(result)


@pytest.mark.parametrize("name", ["stop", "cont", "system_reset", "quit", "migrate_cancel"])
def test_plain_commands_reach_the_vmm(name: str) -> None:
    vmm = FakeVmm()
    assert execute(vmm, name) is None
    assert vmm.calls == [name]


@pytest.mark.parametrize("state", list(RunState))
def test_only_running_is_running(state: RunState) -> None:
    vmm = FakeVmm()
    vmm.runstate = state
    assert execute(vmm, "query-status") == {
        "status": state.value,
        "running": state is RunState.RUNNING,
    }


def test_identity_is_what_was_configured_or_qemus_empty_values() -> None:
    anonymous = FakeVmm(VmmConfig())
    assert execute(anonymous, "query-name") == {}
    assert execute(anonymous, "query-uuid") == {"UUID": "00000000-0000-0000-0000-000000000000"}
    known = "550e8400-e29b-41d4-a716-446655440000"
    named = FakeVmm(VmmConfig(name="g", uuid=UUID(known)))
    assert execute(named, "query-name") == {"name": "g"}
    assert execute(named, "query-uuid") == {"UUID": known}


@pytest.mark.parametrize(("accel", "enabled"), [("kvm", True), ("unicorn", False), (None, False)])
def test_kvm_is_enabled_when_the_guest_uses_it(accel: str | None, enabled: bool) -> None:
    vmm = FakeVmm()
    vmm.accel_name = accel
    assert execute(vmm, "query-kvm")["enabled"] is enabled


def test_cpus_have_their_threads_and_places() -> None:
    first, second = execute(FakeVmm(), "query-cpus-fast")
    assert first["thread-id"] == 101
    assert second == {
        "cpu-index": 1,
        "qom-path": "/machine/unattached/device[1]",
        "thread-id": 102,
        "props": {"core-id": 1, "socket-id": 0, "thread-id": 0},
        "target": "x86_64",
    }


def test_memory_is_told_in_bytes_with_its_back_ends() -> None:
    backend = MemoryBackend("ram0", "memfd", 64 << 20, share=True)
    vmm = FakeVmm(
        VmmConfig(
            machine=MachineOptions(memory_backend="ram0"),
            memory_size_bytes=64 << 20,
            memory_backends=(backend,),
        )
    )
    assert execute(vmm, "query-memory-size-summary") == {
        "base-memory": 64 << 20,
        "plugged-memory": 0,
    }
    (told,) = execute(vmm, "query-memdev")
    assert told == {
        "id": "ram0",
        "size": 64 << 20,
        "share": True,
        "prealloc": False,
        "merge": True,
        "dump": True,
        "reserve": True,
        "host-nodes": [],
        "policy": "default",
    }


def test_version_commands_and_events_are_listed() -> None:
    assert execute(FakeVmm(), "query-version")["package"].startswith("cpr-vmm ")
    assert {"name": "migrate"} in execute(FakeVmm(), "query-commands")
    assert {"name": "STOP"} in execute(FakeVmm(), "query-events")
    assert execute(FakeVmm(), "query-qmp-schema") == REGISTRY.schema
    assert execute(FakeVmm(), "x-query-cpr-timeline") == [{"t-ns": 1, "what": "stop"}]


def test_parameters_and_capabilities_are_set_and_read_back() -> None:
    vmm = FakeVmm()
    execute(vmm, "migrate-set-parameters", mode="cpr-transfer")
    assert execute(vmm, "query-migrate-parameters")["mode"] == "cpr-transfer"
    entry = {"capability": "events", "state": True}
    execute(vmm, "migrate-set-capabilities", capabilities=[entry])
    assert entry in execute(vmm, "query-migrate-capabilities")
    assert vmm.capabilities.events


def test_capabilities_are_fixed_while_a_migration_runs() -> None:
    vmm = FakeVmm()
    vmm.info = {"status": "setup"}
    with pytest.raises(MigrationError, match="There's a migration process in progress"):
        execute(vmm, "migrate-set-capabilities", capabilities=[])
    vmm.info = {"status": "completed"}
    execute(vmm, "migrate-set-capabilities", capabilities=[])


def test_migrate_hands_over_channels_and_how_they_were_given() -> None:
    vmm = FakeVmm()
    execute(vmm, "migrate", channels=[CPR, MAIN], detach=True)
    execute(vmm, "migrate", uri="unix:/u", resume=True)
    address = SocketUnix("/p")
    main = MigrationChannel(ChannelType.MAIN, address)
    assert vmm.calls == [
        ("migrate", (MigrationChannel(ChannelType.CPR, address), main), False, False),
        (
            "migrate",
            (MigrationChannel(ChannelType.MAIN, SocketUnix("/u")),),
            True,
            True,
        ),
    ]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "need either 'uri' or 'channels' argument"),
        ({"channels": []}, "need either 'uri' or 'channels' argument"),
        ({"channels": [MAIN, MAIN]}, "Channel list has more than one main entry"),
        ({"channels": [CPR, CPR]}, "Channel list has more than one cpr entry"),
        ({"channels": [CPR]}, "Channel list has no main entry"),
        ({"uri": "defer"}, "unknown migration protocol: defer"),
    ],
)
def test_migrate_refuses_bad_channel_lists_and_does_not_crash(
    arguments: dict[str, Any], text: str
) -> None:
    vmm = FakeVmm()
    with pytest.raises(MigrationError) as caught:
        execute(vmm, "migrate", **arguments)
    assert str(caught.value) == text
    assert vmm.calls == []


def incoming_vmm() -> FakeVmm:
    return FakeVmm(VmmConfig(incoming=IncomingConfig()))


def test_migrate_incoming_hands_over_the_main_address() -> None:
    vmm = incoming_vmm()
    execute(vmm, "migrate-incoming", uri="unix:/m")
    execute(vmm, "migrate-incoming", channels=[MAIN], exit_on_error=False)
    assert vmm.calls == [
        ("migrate_incoming", SocketUnix("/m"), True),
        ("migrate_incoming", SocketUnix("/p"), False),
    ]


@pytest.mark.parametrize("arguments", [{}, {"uri": "foo"}, {"uri": "unix:x"}, {"channels": []}])
def test_without_incoming_on_the_command_line_nothing_else_matters(
    arguments: dict[str, Any],
) -> None:
    with pytest.raises(MigrationError) as caught:
        execute(FakeVmm(), "migrate-incoming", **arguments)
    assert str(caught.value) == "'-incoming' was not specified on the command line"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "need either 'uri' or 'channels' argument"),
        (
            {"channels": [MAIN, CPR]},
            "Channel list must have only one entry, for type 'main'",
        ),
        ({"uri": "foo"}, "unknown migration protocol: foo"),
    ],
)
def test_migrate_incoming_refuses_what_qemu_refuses(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(MigrationError) as caught:
        execute(incoming_vmm(), "migrate-incoming", **arguments)
    assert str(caught.value) == text


def test_migrate_continue_passes_the_state_on() -> None:
    vmm = FakeVmm()
    execute(vmm, "migrate-continue", state="pre-switchover")
    assert vmm.calls == [("migrate_continue", "pre-switchover")]


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        (
            "migrate-pause",
            {},
            "migrate-pause is currently only supported during postcopy-active or "
            "postcopy-recover state",
        ),
        (
            "migrate-recover",
            {"uri": "x"},
            "Migrate recover can only be run when postcopy is paused.",
        ),
        (
            "migrate-start-postcopy",
            {},
            "Enable postcopy with migrate_set_capability before the start of migration",
        ),
    ],
)
def test_postcopy_commands_are_refused_in_qemus_words(
    name: str, arguments: dict[str, Any], text: str
) -> None:
    with pytest.raises(MigrationError) as caught:
        execute(FakeVmm(), name, **arguments)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("line", "output"),
    [
        ("", ""),
        ("info status", "VM status: running\r\n"),
        ("info version", "10.0.2cpr-vmm 0.1.0\r\n"),
        ("info name", "guest1\r\n"),
        ("info uuid", "00000000-0000-0000-0000-000000000000\r\n"),
        ("info kvm", "kvm support: disabled\r\n"),
        ("info cpus", "* CPU #0: thread_id=101\r\n  CPU #1: thread_id=102\r\n"),
        ("info memory_size_summary", "base memory: 134217728\r\nplugged memory: 0\r\n"),
        ("info migrate", ""),
        ("info foo", "unknown command: 'info foo'\r\n"),
        ("foo bar", "unknown command: 'foo'\r\n"),
        ("help foo", "unknown command: 'foo'\r\n"),
        ("help stop", "stop|s  -- stop emulation\r\n"),
        (
            "stop x",
            "stop|s: extraneous characters at the end of line\r\n"
            'Try "help stop" for more information\r\n',
        ),
        ("cont", ""),
    ],
)
def test_the_human_monitor_prints_what_qemus_prints(line: str, output: str) -> None:
    assert execute(FakeVmm(), "human-monitor-command", command_line=line) == output


@pytest.mark.parametrize(
    ("line", "call"),
    [
        ("stop", "stop"),
        ("s", "stop"),
        ("cont", "cont"),
        ("c", "cont"),
        ("q", "quit"),
        ("system_reset", "system_reset"),
        ("migrate_cancel", "migrate_cancel"),
    ],
)
def test_the_human_monitor_acts(line: str, call: str) -> None:
    vmm = FakeVmm()
    assert execute(vmm, "human-monitor-command", command_line=line) == ""
    assert vmm.calls == [call]


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        (RunState.PAUSED, "paused"),
        (RunState.PRELAUNCH, "paused (prelaunch)"),
        (RunState.POSTMIGRATE, "paused (postmigrate)"),
    ],
)
def test_the_human_monitor_tells_why_the_guest_does_not_run(state: RunState, shown: str) -> None:
    vmm = FakeVmm()
    vmm.runstate = state
    text = execute(vmm, "human-monitor-command", command_line="info status")
    assert text == f"VM status: {shown}\r\n"


def test_the_human_monitor_prints_errors_and_lists() -> None:
    vmm = FakeVmm()
    vmm.fails = VmmError("no")
    assert execute(vmm, "human-monitor-command", command_line="stop") == "Error: no\r\n"
    listing = execute(vmm, "human-monitor-command", command_line="help")
    assert "system_reset  -- reset the system\r\n" in listing
    for line in ("info", "help info"):
        assert "info status" in execute(vmm, "human-monitor-command", command_line=line)
    parameters = execute(vmm, "human-monitor-command", command_line="info migrate_parameters")
    assert "tls-creds: ''\r\n" in parameters
    assert "direct-io: False" not in parameters
    capabilities = execute(vmm, "human-monitor-command", command_line="info migrate_capabilities")
    assert "events: off\r\n" in capabilities


def test_the_human_monitor_tells_a_migrations_story() -> None:
    vmm = FakeVmm()
    vmm.info = {
        "blocked-reasons": ["b"],
        "status": "failed",
        "error-desc": "why",
        "total-time": 3,
    }
    text = execute(vmm, "human-monitor-command", command_line="info migrate")
    assert text == "blocked: b\r\nMigration status: failed (why)\r\ntotal-time: 3 ms\r\n"
