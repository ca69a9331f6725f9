"""What `migrate` and `migrate-incoming` can know to be wrong before anything has changed.

Nothing is changed here. In QEMU 10.0's order, with its texts; the first failure wins, and the
status, the run state and every fd are as before. Where QEMU crashes (no main channel) we say what
is missing.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from vmm.config import (
    ChannelType,
    FileAddress,
    MigrationAddress,
    MigrationChannel,
    SocketFd,
    SocketInet,
    SocketUnix,
    SocketVsock,
    VmmConfig,
)
from vmm.errors import MigrationError
from vmm.migration.addresses import channels_from_qmp, parse_uri
from vmm.migration.capabilities import MigrationCapabilities
from vmm.migration.parameters import MigrationMode, MigrationParameters
from vmm.migration.status import RUNNING, MigrationStatus
from vmm.optstr import parse_number
from vmm.runstate import RunState

_NEED_ONE = "need either 'uri' or 'channels' argument"


def outgoing_channels(
    uri: str | None, channels: Sequence[Mapping[str, Any]] | None
) -> tuple[MigrationChannel, ...]:
    """The channels of `migrate`; exactly one of the arguments is given (an empty list is none).

    Raises MigrationError.
    """
    if (uri is None) == (not channels):
        raise MigrationError(_NEED_ONE)
    if uri is not None:
        return (MigrationChannel(ChannelType.MAIN, parse_uri(uri)),)
    parsed = channels_from_qmp(channels or ())
    for kind in ChannelType:
        entries = [channel for channel in parsed if channel.type is kind]
        if len(entries) > 1:
            raise MigrationError(f"Channel list has more than one {kind.value} entry")
    if not any(channel.type is ChannelType.MAIN for channel in parsed):
        raise MigrationError("Channel list has no main entry")
    return parsed


def incoming_address(
    uri: str | None, channels: Sequence[Mapping[str, Any]] | None
) -> MigrationAddress:
    """The main address of `migrate-incoming`. Raises MigrationError."""
    if (uri is None) == (not channels):
        raise MigrationError(_NEED_ONE)
    if uri is not None:
        return parse_uri(uri)
    parsed = channels_from_qmp(channels or ())
    if len(parsed) != 1 or parsed[0].type is not ChannelType.MAIN:
        raise MigrationError("Channel list must have only one entry, for type 'main'")
    return parsed[0].address


def ram_blockers(config: VmmConfig) -> tuple[str, ...]:
    """QEMU's text for every RAM block that a successor could not map."""
    return tuple(
        f"Memory region {backend.id} is not compatible with CPR. share=on is required for "
        "memory-backend objects, and aux-ram-share=on is required."
        for backend in config.ram_backends()
        if not backend.share
    )


def check_outgoing(
    channels: Sequence[MigrationChannel],
    *,
    uri_form: bool,
    resume: bool,
    parameters: MigrationParameters,
    capabilities: MigrationCapabilities,
    runstate: RunState,
    status: MigrationStatus,
    ram_blockers: Sequence[str],
) -> None:
    """Every check of `migrate` that needs no connection. Raises MigrationError.

    `uri_form` channels hold a main entry only, so that they can never be a cpr-transfer.
    """
    by_type = {channel.type: channel.address for channel in channels}
    if ChannelType.MAIN not in by_type:
        raise MigrationError("Channel list has no main entry")
    mode = parameters.mode
    _check_transport(by_type[ChannelType.MAIN], mode, parameters, capabilities)
    if mode is MigrationMode.CPR_TRANSFER and (uri_form or ChannelType.CPR not in by_type):
        raise MigrationError("missing 'cpr' migration channel")
    if mode in (MigrationMode.CPR_REBOOT, MigrationMode.CPR_EXEC):
        raise MigrationError(
            f"mode '{mode.value}' is not supported by this VMM; set the migration parameter mode "
            "to cpr-transfer"
        )
    if resume:
        raise MigrationError("Cannot resume if there is no paused migration")
    _check_state(runstate, status)
    if parameters.is_cpr and ram_blockers:
        raise MigrationError(ram_blockers[0])
    if capabilities.is_on("mapped-ram") and parameters.uses_compression:
        raise MigrationError("Cannot use compression with mapped-ram")
    if parameters.is_cpr:
        _check_cpr_conflicts(capabilities)


def is_cpr_address(address: MigrationAddress) -> bool:
    """Whether the cpr channel may use it: a unix socket by path, or an inherited one by fd."""
    return isinstance(address, SocketUnix | SocketFd)


def _check_transport(
    main: MigrationAddress,
    mode: MigrationMode,
    parameters: MigrationParameters,
    capabilities: MigrationCapabilities,
) -> None:
    is_file = isinstance(main, FileAddress)
    mapped_ram, multifd = capabilities.is_on("mapped-ram"), capabilities.is_on("multifd")
    if parameters.migrate_fds and mode is not MigrationMode.CPR_TRANSFER:
        # In cpr-transfer the fds ride the cpr channel, which is always a unix socket.
        _check_carries_fds(main)
    if mapped_ram and not is_file:
        raise MigrationError("Migration requires seekable transport (e.g. file)")
    many_channels = isinstance(main, SocketInet | SocketUnix | SocketVsock) or (
        is_file and mapped_ram
    )
    if (multifd or capabilities.is_on("postcopy-preempt")) and not many_channels:
        raise MigrationError("Migration requires multi-channel URIs (e.g. tcp)")
    if multifd and mapped_ram and parameters.direct_io and not is_file:
        raise MigrationError("Migration requires a transport that allows for extra fds (e.g. file)")
    if mode is MigrationMode.CPR_TRANSFER and is_file:
        raise MigrationError("Migration requires streamable transport (eg unix)")


def _check_carries_fds(main: MigrationAddress) -> None:
    """Raises MigrationError unless fds can go over this channel."""
    if not isinstance(main, SocketUnix) and not (
        isinstance(main, SocketFd) and _is_unix_stream(main.name)
    ):
        raise MigrationError(
            "Migration requires a UNIX domain socket as transport, because migrate-fds is enabled"
        )


def _is_unix_stream(name: str) -> bool:
    """Whether an fd given by number is a unix stream socket."""
    number = parse_number(name)
    if number is None:
        return False
    try:
        with socket.socket(fileno=os.dup(number)) as sock:
            return sock.family == socket.AF_UNIX and sock.type == socket.SOCK_STREAM
    except OSError:
        return False


def _check_state(runstate: RunState, status: MigrationStatus) -> None:
    if status in RUNNING:
        raise MigrationError("There's a migration process in progress")
    if runstate is RunState.INMIGRATE:
        raise MigrationError("Guest is waiting for an incoming migration")
    if runstate is RunState.POSTMIGRATE:
        raise MigrationError("Can't migrate the vm that was paused due to previous migration")


def _check_cpr_conflicts(capabilities: MigrationCapabilities) -> None:
    for capability, shown in (
        ("postcopy-ram", "postcopy"),
        ("background-snapshot", "background snapshot"),
        ("x-colo", "COLO"),
    ):
        if capabilities.is_on(capability):
            raise MigrationError(f"Cannot use {shown} with CPR")
