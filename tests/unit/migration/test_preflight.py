"""Each E1 row of facts, qemu-cpr 5, and their order."""

from __future__ import annotations

from typing import Any

import pytest

from vmm.config import (
    ChannelType,
    ExecAddress,
    FileAddress,
    MigrationAddress,
    MigrationChannel,
    SocketFd,
    SocketInet,
    SocketUnix,
)
from vmm.errors import MigrationError
from vmm.migration.capabilities import MigrationCapabilities
from vmm.migration.parameters import MigrationParameters
from vmm.migration.preflight import (
    check_outgoing,
    incoming_address,
    is_cpr_address,
    outgoing_channels,
)
from vmm.migration.status import MigrationStatus
from vmm.runstate import RunState

UNIX = {"transport": "socket", "type": "unix", "path": "/p"}
MAIN = {"channel-type": "main", "addr": UNIX}
CPR = {"channel-type": "cpr", "addr": UNIX}
NEED_ONE = "need either 'uri' or 'channels' argument"
BLOCKER = (
    "Memory region pc.ram is not compatible with CPR. share=on is required for memory-backend "
    "objects, and aux-ram-share=on is required."
)


@pytest.mark.parametrize(
    ("uri", "channels", "text"),
    [
        (None, None, NEED_ONE),
        (None, [], NEED_ONE),
        ("unix:/p", [MAIN], NEED_ONE),
        ("zz:/p", None, "unknown migration protocol: zz:/p"),
        (None, [MAIN, MAIN], "Channel list has more than one main entry"),
        (None, [CPR, CPR], "Channel list has more than one cpr entry"),
        (None, [CPR], "Channel list has no main entry"),
    ],
)
def test_bad_outgoing_arguments(
    uri: str | None, channels: list[dict[str, Any]] | None, text: str
) -> None:
    with pytest.raises(MigrationError) as caught:
        outgoing_channels(uri, channels)
    assert str(caught.value) == text


def test_channels_may_come_in_any_order_and_a_uri_is_the_main_one() -> None:
    kinds = [channel.type for channel in outgoing_channels(None, [CPR, MAIN])]
    assert kinds == [ChannelType.CPR, ChannelType.MAIN]
    assert outgoing_channels("unix:/p", None) == (
        MigrationChannel(ChannelType.MAIN, SocketUnix("/p")),
    )
    assert outgoing_channels("unix:/p", []) == outgoing_channels("unix:/p", None)


@pytest.mark.parametrize(
    ("uri", "channels", "text"),
    [
        (None, None, NEED_ONE),
        ("unix:/p", [MAIN], NEED_ONE),
        (None, [MAIN, CPR], "Channel list must have only one entry, for type 'main'"),
        (None, [CPR], "Channel list must have only one entry, for type 'main'"),
        ("defer", None, "unknown migration protocol: defer"),
    ],
)
def test_bad_incoming_arguments(
    uri: str | None, channels: list[dict[str, Any]] | None, text: str
) -> None:
    with pytest.raises(MigrationError) as caught:
        incoming_address(uri, channels)
    assert str(caught.value) == text


def test_good_incoming_arguments() -> None:
    assert incoming_address("unix:/p", None) == SocketUnix("/p")
    assert incoming_address(None, [MAIN]) == SocketUnix("/p")


GOOD_MAIN = SocketUnix("/m")
GOOD_CPR = SocketUnix("/c")


def attempt(
    *,
    main: MigrationAddress | None = GOOD_MAIN,
    cpr: MigrationAddress | None = GOOD_CPR,
    uri_form: bool = False,
    resume: bool = False,
    parameters: dict[str, Any] | None = None,
    capabilities: tuple[str, ...] = (),
    runstate: RunState = RunState.RUNNING,
    status: MigrationStatus = MigrationStatus.NONE,
    ram_blockers: tuple[str, ...] = (),
) -> None:
    """check_outgoing for a cpr-transfer that is right but for the arguments given."""
    holder = MigrationParameters()
    holder.set({"mode": "cpr-transfer", **(parameters or {})})
    switches = MigrationCapabilities()
    switches.set(dict.fromkeys(capabilities, True))
    channels = [
        MigrationChannel(kind, address)
        for kind, address in ((ChannelType.MAIN, main), (ChannelType.CPR, cpr))
        if address is not None
    ]
    check_outgoing(
        channels,
        uri_form=uri_form,
        resume=resume,
        parameters=holder,
        capabilities=switches,
        runstate=runstate,
        status=status,
        ram_blockers=ram_blockers,
    )


FILE = FileAddress("/f")
EXEC = ExecAddress(("x",))
INPROGRESS = "There's a migration process in progress"

ROWS: list[tuple[dict[str, Any], str]] = [
    ({"main": None}, "Channel list has no main entry"),
    ({"cpr": None}, "missing 'cpr' migration channel"),
    ({"cpr": None, "uri_form": True}, "missing 'cpr' migration channel"),
    ({"main": FILE}, "Migration requires streamable transport (eg unix)"),
    ({"main": FILE, "cpr": None}, "Migration requires streamable transport (eg unix)"),
    (
        {"capabilities": ("mapped-ram",)},
        "Migration requires seekable transport (e.g. file)",
    ),
    (
        {"capabilities": ("multifd",), "main": EXEC},
        "Migration requires multi-channel URIs (e.g. tcp)",
    ),
    (
        {"capabilities": ("multifd",), "main": SocketFd("x")},
        "Migration requires multi-channel URIs (e.g. tcp)",
    ),
    ({"resume": True}, "Cannot resume if there is no paused migration"),
    *(
        ({"status": status}, INPROGRESS)
        for status in (
            MigrationStatus.SETUP,
            MigrationStatus.ACTIVE,
            MigrationStatus.PRE_SWITCHOVER,
            MigrationStatus.DEVICE,
            MigrationStatus.CANCELLING,
        )
    ),
    ({"runstate": RunState.INMIGRATE}, "Guest is waiting for an incoming migration"),
    (
        {"runstate": RunState.POSTMIGRATE},
        "Can't migrate the vm that was paused due to previous migration",
    ),
    ({"ram_blockers": (BLOCKER, "other")}, BLOCKER),
    ({"capabilities": ("postcopy-ram",)}, "Cannot use postcopy with CPR"),
    ({"capabilities": ("background-snapshot",)}, "Cannot use background snapshot with CPR"),
    ({"capabilities": ("x-colo",)}, "Cannot use COLO with CPR"),
    # order: the first of two mistakes counts
    ({"cpr": None, "resume": True}, "missing 'cpr' migration channel"),
    (
        {"resume": True, "status": MigrationStatus.ACTIVE},
        "Cannot resume if there is no paused migration",
    ),
    ({"status": MigrationStatus.ACTIVE, "ram_blockers": (BLOCKER,)}, INPROGRESS),
    ({"ram_blockers": (BLOCKER,), "capabilities": ("x-colo",)}, BLOCKER),
]


@pytest.mark.parametrize(("arguments", "text"), ROWS)
def test_each_row_of_the_table(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(MigrationError) as caught:
        attempt(**arguments)
    assert str(caught.value) == text


@pytest.mark.parametrize("mode", ["cpr-reboot", "cpr-exec"])
def test_modes_that_are_not_there_name_the_one_that_is(mode: str) -> None:
    with pytest.raises(MigrationError, match="set the migration parameter mode to cpr-transfer"):
        attempt(parameters={"mode": mode})


def test_mapped_ram_refuses_compression() -> None:
    with pytest.raises(MigrationError, match="Cannot use compression with mapped-ram"):
        attempt(
            main=FILE,
            cpr=None,
            capabilities=("mapped-ram",),
            parameters={"mode": "normal", "multifd-compression": "zstd"},
        )


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"main": SocketInet("h", "1")},
        {"main": SocketFd("name")},
        {"runstate": RunState.PAUSED},
        {"runstate": RunState.PRELAUNCH},
        {"status": MigrationStatus.FAILED},
        {"status": MigrationStatus.CANCELLED},
        {"capabilities": ("multifd", "events", "return-path")},
        {"parameters": {"mode": "normal"}, "cpr": None, "ram_blockers": (BLOCKER,)},
        # a bad cpr address is found after the status has changed (E2), not here
        {"cpr": SocketInet("h", "1")},
    ],
)
def test_what_is_right_passes(arguments: dict[str, Any]) -> None:
    attempt(**arguments)


@pytest.mark.parametrize(
    ("address", "good"),
    [
        (SocketUnix("/c"), True),
        (SocketFd("3"), True),
        (SocketInet("h", "1"), False),
        (FILE, False),
        (EXEC, False),
    ],
)
def test_which_addresses_can_be_a_cpr_channel(address: MigrationAddress, good: bool) -> None:
    assert is_cpr_address(address) is good
