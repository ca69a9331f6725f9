"""Updates that cannot work are refused while the guest runs, with the reason, and harm nothing.

Texts are QEMU 10.0's where it has one. QEMU finds most of the second group only while loading, with
the guest stopped and the reason on the new side alone; ours are found by the handshake and told to
both sides.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from qemu.qmp import ExecuteError

from tests.framework.dialogue import story
from tests.framework.guest_rig import (
    MIB,
    RAM_BYTES,
    Rig,
    exit_status,
    memory,
    query_migrate,
    runstate,
)
from tests.framework.rounds import goes_on
from tests.integration.conftest import MakeGuest

pytestmark = pytest.mark.needs_assembler

PRIVATE = (
    "Memory region {} is not compatible with CPR. share=on is required for memory-backend objects, "
    "and aux-ram-share=on is required."
)


def unix(kind: str, path: object) -> dict[str, Any]:
    """A channel of `migrate`."""
    return {
        "channel-type": kind,
        "addr": {"transport": "socket", "type": "unix", "path": f"{path}"},
    }


MAIN, CPR = unix("main", "/nowhere/main"), unix("cpr", "/nowhere/cpr")
FILE = {"channel-type": "main", "addr": {"transport": "file", "filename": "/tmp/f", "offset": 0}}
INET = {
    "channel-type": "cpr",
    "addr": {"transport": "socket", "type": "inet", "host": "::1", "port": "1"},
}
# arguments of migrate in mode cpr-transfer -> QEMU's text; the status stays as it was
WITHOUT_EFFECT: list[tuple[dict[str, Any], str]] = [
    ({}, "need either 'uri' or 'channels' argument"),
    ({"channels": []}, "need either 'uri' or 'channels' argument"),
    ({"uri": "unix:/m", "channels": [MAIN]}, "need either 'uri' or 'channels' argument"),
    ({"channels": [MAIN, MAIN]}, "Channel list has more than one main entry"),
    ({"channels": [MAIN, CPR, CPR]}, "Channel list has more than one cpr entry"),
    ({"channels": [CPR]}, "Channel list has no main entry"),  # QEMU crashes
    ({"channels": [MAIN]}, "missing 'cpr' migration channel"),
    ({"uri": "unix:/m"}, "missing 'cpr' migration channel"),
    ({"uri": "pigeon:home"}, "unknown migration protocol: pigeon:home"),
    ({"channels": [FILE, CPR]}, "Migration requires streamable transport (eg unix)"),
    ({"channels": [MAIN, CPR], "resume": True}, "Cannot resume if there is no paused migration"),
    ({"channels": [MAIN, CPR], "blk": True}, "Parameter 'blk' is unexpected"),
]


@pytest.fixture
async def rig(guest: MakeGuest) -> AsyncIterator[Rig]:
    async with Rig("unicorn", "-kernel", str(guest("real"))) as new_rig:
        yield new_rig


async def refusal(rig: Rig, command: str, arguments: dict[str, Any] | None = None) -> str:
    """The text with which the guest's process refuses a command."""
    with pytest.raises(ExecuteError) as refused:
        await rig.vmm.execute(command, arguments)
    assert refused.value.error_class == "GenericError"
    return str(refused.value)


async def set_cpr_transfer(rig: Rig) -> None:
    await rig.vmm.execute("migrate-set-parameters", {"mode": "cpr-transfer"})


async def unharmed(rig: Rig) -> None:
    """The guest runs here and can still be updated."""
    assert await runstate(rig.vmm) == "running"
    await goes_on(rig.line)
    await rig.update()
    await goes_on(rig.line)


async def test_arguments_that_cannot_work_change_nothing(rig: Rig) -> None:
    await rig.boot()
    await set_cpr_transfer(rig)
    said = [await refusal(rig, "migrate", arguments) for arguments, _ in WITHOUT_EFFECT]
    assert said == [text for _, text in WITHOUT_EFFECT]
    assert await query_migrate(rig.vmm) == {}
    await unharmed(rig)


async def test_mode_normal_is_refused_with_what_to_do(rig: Rig) -> None:
    await rig.boot()
    said = await refusal(rig, "migrate", {"channels": [MAIN, CPR]})
    assert "set the migration parameter mode to cpr-transfer" in said
    assert await query_migrate(rig.vmm) == {}
    await unharmed(rig)


async def test_cpr_address_that_nobody_can_connect_to_fails_at_once(rig: Rig) -> None:
    await rig.boot()
    await set_cpr_transfer(rig)
    stale = rig.run_dir / "stale"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(stale))  # nobody listens, and soon nobody will have it
    table = {
        f"{rig.run_dir}/none": "No such file or directory",
        f"{stale}": "Connection refused",
    }
    for path, reason in table.items():
        text = f"Failed to connect to '{path}': {reason}"
        assert await refusal(rig, "migrate", {"channels": [MAIN, unix("cpr", path)]}) == text
        assert await query_migrate(rig.vmm) == {"status": "failed", "error-desc": text}
    said = await refusal(rig, "migrate", {"channels": [MAIN, INET]})
    assert said == "bad cpr channel address; must be unix"
    assert (await query_migrate(rig.vmm))["status"] == "failed"
    await unharmed(rig)


async def test_main_address_that_nobody_listens_on_fails_with_the_guest_running(rig: Rig) -> None:
    await rig.boot()
    new = await rig.successor()
    await set_cpr_transfer(rig)
    await rig.vmm.execute("migrate", {"channels": [MAIN, unix("cpr", new.cpr_path)]})
    text = "Failed to connect to '/nowhere/main': No such file or directory"
    assert await exit_status(new.process) == 1
    assert text in new.process.log_tail()
    info = await query_migrate(rig.vmm)
    assert info == {"status": "failed", "error-desc": text}
    await unharmed(rig)


@pytest.mark.parametrize(
    ("host", "port"), [("a..b", "1"), ("a\0b", "1"), ("127.0.0.1", "http"), ("", "1" * 5000)]
)
async def test_main_address_that_is_none_fails_with_the_guest_running(
    rig: Rig, host: str, port: str
) -> None:
    await rig.boot()
    new = await rig.successor()
    await set_cpr_transfer(rig)
    address = {"transport": "socket", "type": "inet", "host": host, "port": port}
    main = {"channel-type": "main", "addr": address}
    await rig.vmm.execute("migrate", {"channels": [main, unix("cpr", new.cpr_path)]})
    assert await exit_status(new.process) == 1
    info = await query_migrate(rig.vmm)
    assert info["status"] == "failed"
    assert f"address resolution failed for {host}:{port}" in info["error-desc"]
    await unharmed(rig)


@pytest.mark.parametrize(
    ("ram", "region"),
    [
        (("-m", "16M"), "pc.ram"),
        (
            (
                *("-machine", "cpr-1.0,memory-backend=ram0", "-m", "16M"),
                *("-object", f"memory-backend-memfd,id=ram0,size={RAM_BYTES},share=off"),
            ),
            "ram0",
        ),
    ],
    ids=["plain-m", "share=off"],
)
async def test_private_ram_blocks_an_update_and_says_so_before(
    guest: MakeGuest, ram: tuple[str, ...], region: str
) -> None:
    async with Rig("unicorn", "-kernel", str(guest("real")), ram=ram) as rig:
        await rig.boot()
        assert await query_migrate(rig.vmm) == {}
        await set_cpr_transfer(rig)
        text = PRIVATE.format(region)
        assert await query_migrate(rig.vmm) == {"blocked-reasons": [text]}
        assert await refusal(rig, "migrate", {"channels": [MAIN, CPR]}) == text
        await goes_on(rig.line)


SERIAL = ("-serial", "chardev:line")
# options of the successor -> what both sides say; the source has 16 MiB of ram0, 1 vCPU and COM1
MISMATCHES = {
    "ram-size": (
        (*memory(32 * MIB), *SERIAL),
        "Size mismatch: ram0: 0x1000000 != 0x2000000: Invalid argument",
    ),
    "ram-id": (
        (
            *("-machine", "cpr-1.0,memory-backend=other", "-m", "16M"),
            *("-object", f"memory-backend-memfd,id=other,size={RAM_BYTES}"),
            *SERIAL,
        ),
        'Unknown ramblock "ram0", cannot accept migration',
    ),
    "missing-device": (
        memory(),
        "Unknown savevm section or instance 'serial0' 0. Make sure that your current VM setup "
        "matches your saved VM setup, including any hotplugged devices",
    ),
    "extra-device": (  # QEMU does not notice
        (*memory(), *SERIAL, "-device", "isa-debug-exit"),
        "device 'debug-exit0' exists only here; the source has no such section",
    ),
    "cpu-model": (
        (*memory(), *SERIAL, "-cpu", "host"),
        "-cpu: cpu-model is max there and host here",
    ),
    "private-ram": (
        (
            *("-machine", "cpr-1.0,memory-backend=ram0", "-m", "16M"),
            *("-object", f"memory-backend-memfd,id=ram0,size={RAM_BYTES},share=off"),
            *SERIAL,
        ),
        "memfd 'ram0': 'share' option is off",
    ),
    "machine-type": (
        (*memory(machine="cpr-2.0"), *SERIAL),
        "Machine type received is 'cpr-1.0' and local is 'cpr-2.0'",
    ),
}
# What only kvm can be asked for; elsewhere such a successor ends as soon as it starts.
KVM_MISMATCHES = {
    "vcpus": ((*memory(), *SERIAL, "-smp", "2"), "-smp: vcpus is 1 there and 2 here"),
    "irqchip": (
        (*memory(), *SERIAL, "-machine", "kernel-irqchip=on"),
        "-machine: kernel-irqchip is False there and True here",
    ),
}
# There is one machine type so far; this command has a second one.
TWO_MACHINES = """
import sys
from vmm.__main__ import main
from vmm.cli import machine
machine.MACHINES = (*machine.MACHINES, "cpr-2.0")
sys.exit(main())
"""


async def test_successors_that_differ_are_refused_one_after_the_other_with_reasons_on_both_sides(
    rig: Rig, guest: MakeGuest
) -> None:
    rig.command = (sys.executable, "-c", TWO_MACHINES)
    await refused_in_turn(rig, guest, MISMATCHES)


@pytest.mark.needs_kvm
async def test_other_vcpus_or_interrupt_controllers_are_refused(guest: MakeGuest) -> None:
    async with Rig("kvm", "-kernel", str(guest("real"))) as rig:
        await refused_in_turn(rig, guest, KVM_MISMATCHES)


async def refused_in_turn(
    rig: Rig, guest: MakeGuest, mismatches: Mapping[str, tuple[tuple[str, ...], str]]
) -> None:
    """Each successor is refused for its reason, and the guest never feels it."""
    await rig.boot()
    for case, (options, reason) in mismatches.items():
        new = await rig.successor("-kernel", str(guest("real")), options=options)
        await rig.migrate(new)
        heard = await story(rig.vmm)
        assert heard == ["MIGRATION setup", "MIGRATION failed"], case  # never stopped
        assert reason in (await query_migrate(rig.vmm))["error-desc"], case
        assert await exit_status(new.process) == 1, case
        assert reason in new.process.log_path.read_text(), case
        await goes_on(rig.line)
    await unharmed(rig)


async def test_every_difference_is_named_at_once(rig: Rig, guest: MakeGuest) -> None:
    await rig.boot()
    options = (*memory(32 * MIB), "-cpu", "host")
    new = await rig.successor("-kernel", str(guest("real")), options=options)
    await rig.migrate(new)
    await story(rig.vmm)
    said = (await query_migrate(rig.vmm))["error-desc"]
    for reason in ("Size mismatch: ram0", "cpu-model is max there and host here", "'serial0' 0"):
        assert reason in said


async def test_successor_told_not_to_exit_keeps_the_reason_for_who_asks(
    rig: Rig, guest: MakeGuest
) -> None:
    await rig.boot()
    options = (*memory(32 * MIB), *SERIAL)
    new = await rig.successor("-kernel", str(guest("real")), options=options, defer=True)
    arguments = {"uri": f"unix:{new.main_path}", "exit-on-error": False}
    await new.process.execute("migrate-incoming", arguments)
    await rig.migrate(new)
    await story(rig.vmm)
    await story(new.process)
    info = await query_migrate(new.process)
    assert info["status"] == "failed"
    assert "Size mismatch: ram0" in info["error-desc"]
    assert await runstate(new.process) == "inmigrate"
    await unharmed(rig)
