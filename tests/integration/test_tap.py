"""Taps through live updates of real processes: the table of who passes what, and the privilege.

The rows are those of the table of `migrate-fds` (G: the migration parameter, D: the device's
property). Mode normal is refused here as a whole, because it would copy RAM. So of its rows those
exist that are refused before that (2), and the rest (1, 3, 4, 5, 10) is seen as refusal or in
cpr-transfer, which passes by the same rule.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import ExecuteError

from tests.framework import recording_vmm
from tests.framework.taps import taps_of
from tools.lab.argv import Build, GuestSpec, migrate_channels
from tools.lab.child import ChildSetup
from tools.lab.deadlines import UPDATE_MS, within
from tools.lab.errors import UpdateFailedError
from tools.lab.launcher import Launched, Launcher
from tools.lab.namespace import NetworkNamespace, TapSpec
from tools.lab.nics import Nic, add_nics
from tools.lab.options import own_vmm
from tools.lab.process import VmmProcess
from tools.lab.update import live_update

pytestmark = pytest.mark.needs_tun
GUEST = GuestSpec(ram_bytes=16 << 20, pages=16)
BUILD = Build(own_vmm(), "unicorn")
NO_SERIAL = ("-serial", "null")
NIC, OTHER_NIC = Nic(0), Nic(1)
PASSED, KEPT = NIC.argv(), NIC.argv(migrate_fds=False)
UNPLUGGED = ["-device", "virtio-net-device"]
ROOT = Path(__file__).parents[2]
NOBODY = 65534


@pytest.fixture
def namespace() -> Iterator[NetworkNamespace]:
    with NetworkNamespace.open() as made:
        add_nics(made, 2, TapSpec())
        yield made


class Rig:
    """A launcher whose first process lives in the namespace and whose successors do not."""

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher

    async def first(self, *argv: str) -> VmmProcess:
        return (await self.launcher.start_plain(BUILD, [*NO_SERIAL, *argv])).process

    async def successor(self, *argv: str, build: Build = BUILD) -> Launched:
        return await self.launcher.start_successor(build, [*NO_SERIAL, *argv])

    async def update(self, old: VmmProcess, new: Launched) -> None:
        await live_update(old, new.process, new.sockets.migrate_arguments())


@pytest.fixture
async def rig(namespace: NetworkNamespace) -> AsyncIterator[Rig]:
    first = ChildSetup(entrance=namespace.entrance())
    async with Launcher(GUEST, first=first) as launcher:
        yield Rig(launcher)


@pytest.fixture
async def rig_inside(namespace: NetworkNamespace) -> AsyncIterator[Rig]:
    """Successors live in the namespace too: they may open taps."""
    inside = ChildSetup(entrance=namespace.entrance())
    async with Launcher(GUEST, first=inside, successor=inside) as launcher:
        yield Rig(launcher)


async def refused(process: VmmProcess, arguments: dict[str, Any], **parameters: Any) -> str:
    """The text with which `migrate` is refused before anything has changed."""
    await process.execute("migrate-set-parameters", parameters)
    with pytest.raises(ExecuteError) as caught:
        await process.execute("migrate", arguments)
    assert await process.execute("query-migrate") == {}
    assert (await process.execute("query-status"))["status"] == "running"
    return str(caught.value)


def to_uri(uri: str) -> dict[str, Any]:
    return {"uri": uri}


# ---- refused upfront: rows 2, 8, 12; 1 and 3 as far as they go --------------------------------

NEEDS_UNIX = "Migration requires a UNIX domain socket as transport, because migrate-fds is enabled"


@pytest.mark.parametrize("card", [PASSED, KEPT, []], ids=["D=1", "D=0", "no card"])
@pytest.mark.parametrize("name", ["migrate-fds", "local"])
async def test_row_2_parameter_without_unix_socket_is_refused_upfront(
    rig: Rig, card: list[str], name: str
) -> None:
    old = await rig.first(*card)
    for uri in ("tcp:127.0.0.1:1", "vsock:1:1", "exec:cat", "file:/nowhere", "fd:0"):
        text = await refused(old, to_uri(uri), mode="normal", **{name: True})
        assert text == NEEDS_UNIX, uri


@pytest.mark.parametrize("passes", [False, True], ids=["row 1", "row 3"])
async def test_mode_normal_is_refused_as_a_whole_and_not_for_the_transport(
    rig: Rig, passes: bool
) -> None:
    old = await rig.first(*KEPT)
    text = await refused(old, to_uri("unix:/nowhere"), mode="normal", **{"migrate-fds": passes})
    assert text.startswith("mode 'normal' would copy RAM")


@pytest.mark.parametrize(
    ("cpr", "text"),
    [
        ([], "missing 'cpr' migration channel"),
        (
            [{"transport": "socket", "type": "inet", "host": "127.0.0.1", "port": "1"}],
            "must be unix",
        ),
    ],
    ids=["missing", "not unix"],
)
async def test_row_8_cpr_channel_must_be_a_unix_socket(
    rig: Rig, cpr: list[dict[str, str]], text: str
) -> None:
    old = await rig.first(*PASSED)
    main = {"transport": "socket", "type": "unix", "path": "/nowhere"}
    channels = [{"channel-type": "main", "addr": main}]
    channels += [{"channel-type": "cpr", "addr": addr} for addr in cpr]
    await old.execute("migrate-set-parameters", {"mode": "cpr-transfer"})
    with pytest.raises(ExecuteError, match=text):
        await old.execute("migrate", {"channels": channels})
    assert (await old.execute("query-status"))["status"] == "running"


async def test_row_12_reboot_with_the_parameter_is_refused_upfront(rig: Rig) -> None:
    old = await rig.first(*PASSED)
    parameters = {"mode": "cpr-reboot", "migrate-fds": True}
    assert await refused(old, to_uri("file:/nowhere"), **parameters) == NEEDS_UNIX


# ---- cpr-transfer: rows 4, 5, 6, 7 ------------------------------------------------------------


@pytest.mark.parametrize("parameter", [False, True], ids=["G by the mode", "G set as well"])
async def test_rows_4_and_6_successor_that_could_open_nothing_has_the_tap(
    rig: Rig, namespace: NetworkNamespace, parameter: bool
) -> None:
    old = await rig.first(*PASSED)
    await old.execute("migrate-set-parameters", {"migrate-fds": parameter})
    new = await rig.successor(*PASSED)
    assert taps_of(new.process.pid) == []
    await rig.update(old, new)
    assert taps_of(new.process.pid) == [NIC.ifname]
    await old.quit()
    assert namespace.counters(NIC.ifname).txqueuelen > 0  # the tap is still there


async def test_row_5_card_without_a_live_fd_is_opened_by_the_successor(rig_inside: Rig) -> None:
    old = await rig_inside.first(*UNPLUGGED)
    new = await rig_inside.successor(*PASSED)
    await rig_inside.update(old, new)
    assert taps_of(old.pid) == []
    assert taps_of(new.process.pid) == [NIC.ifname]


async def test_row_5_tap_that_was_deleted_is_opened_anew_by_the_successor(
    rig_inside: Rig, namespace: NetworkNamespace
) -> None:
    old = await rig_inside.first(*PASSED)
    namespace.remove(NIC.ifname)
    namespace.add_tap(TapSpec(ifname=NIC.ifname))
    new = await rig_inside.successor(*PASSED)
    await rig_inside.update(old, new)
    assert taps_of(new.process.pid) == [NIC.ifname]


async def test_row_7_kept_tap_is_not_passed_and_the_user_is_warned(rig_inside: Rig) -> None:
    old = await rig_inside.first(*KEPT)
    own = [word.replace(NIC.ifname, OTHER_NIC.ifname) for word in KEPT]
    new = await rig_inside.successor(*own)
    await rig_inside.update(old, new)
    assert taps_of(new.process.pid) == [OTHER_NIC.ifname]
    assert "'virtio-net0': migrate-fds=off, so netdev 'net0' is not passed" in old.log_tail()


async def test_partial_cards_one_is_passed_and_one_is_opened_anew(rig_inside: Rig) -> None:
    old = await rig_inside.first(*PASSED, *UNPLUGGED)
    new = await rig_inside.successor(*PASSED, *OTHER_NIC.argv())
    await rig_inside.update(old, new)
    assert taps_of(new.process.pid) == [NIC.ifname, OTHER_NIC.ifname]


async def test_chain_of_updates_hands_the_tap_on(rig: Rig) -> None:
    old = await rig.first(*PASSED)
    for _ in range(3):
        new = await rig.successor(*PASSED)
        await rig.update(old, new)
        await old.quit()
        old = new.process
    assert taps_of(old.pid) == [NIC.ifname]


# ---- what fails, and leaves the guest with the source: rows 9, 11 -----------------------------


async def failed_update(rig: Rig, old: VmmProcess, new: Launched) -> str:
    """Why the update failed; the guest goes on in the old process, with its tap."""
    with pytest.raises(UpdateFailedError) as caught:
        await rig.update(old, new)
    assert (await old.execute("query-status"))["status"] == "running"
    assert (await old.execute("query-migrate"))["status"] == "failed"
    assert taps_of(old.pid) == [NIC.ifname]
    return str(caught.value)


async def test_kept_tap_that_the_source_holds_cannot_be_opened_and_the_source_goes_on(
    rig_inside: Rig,
) -> None:
    old = await rig_inside.first(*KEPT)
    new = await rig_inside.successor(*KEPT)
    reason = await failed_update(rig_inside, old, new)
    assert "could not configure /dev/net/tun (tap0): Device or resource busy" in reason


async def test_row_11_card_that_takes_no_fds_here_is_refused_by_name(rig: Rig) -> None:
    old = await rig.first(*PASSED)
    reason = await failed_update(rig, old, await rig.successor(*KEPT))
    assert "device 'virtio-net0': migrate-fds is on in the source and off here" in reason


async def test_card_that_wants_fds_from_a_source_that_keeps_them_is_refused_by_name(
    rig: Rig,
) -> None:
    old = await rig.first(*KEPT)
    reason = await failed_update(rig, old, await rig.successor(*PASSED))
    assert "device 'virtio-net0': migrate-fds is off in the source and on here" in reason


async def test_fds_of_another_netdev_are_refused(rig: Rig) -> None:
    old = await rig.first(*PASSED)
    reason = await failed_update(rig, old, await rig.successor(*UNPLUGGED))
    assert "the source passes 'tap:net0:0', and here it has no fd" in reason


async def test_tap_of_another_name_is_refused(rig: Rig) -> None:
    old = await rig.first(*PASSED)
    other = [word.replace(f"ifname={NIC.ifname}", "ifname=tap7") for word in PASSED]
    reason = await failed_update(rig, old, await rig.successor(*other))
    assert "is a queue of tap 'tap0', and -netdev net0 says ifname=tap7" in reason


async def test_row_9_proxy_that_drops_fds_fails_the_update(rig: Rig) -> None:
    old = await rig.first(*PASSED)
    new = await rig.successor(*PASSED)
    assert new.sockets.cpr is not None
    assert new.sockets.main is not None
    path = rig.launcher.run_dir / "proxy.sock"
    proxy = await proxy_without_fds(path, new.sockets.cpr)
    async with proxy:
        with pytest.raises(UpdateFailedError, match="FDS announces 3 fds, and 0 came"):
            await live_update(old, new.process, migrate_channels(path, new.sockets.main))
    assert (await old.execute("query-status"))["status"] == "running"
    assert taps_of(old.pid) == [NIC.ifname]


async def proxy_without_fds(path: Path, to: Path) -> asyncio.Server:
    """A container's proxy: forwards bytes; the kernel closes the fds that nobody took."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_unix_connection(to)
        for end in (writer, far_writer):  # a peer that did not ask yet still gets who we are
            end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    return await asyncio.start_unix_server(serve, path)


# ---- the stream -------------------------------------------------------------------------------


async def record(rig: Rig, old: VmmProcess, path: Path, argv: list[str], passes: bool) -> None:
    """Put HELLO and STATE of an update into `path`; its successor dies before it runs the guest."""
    await old.execute("migrate-set-parameters", {"mode": "cpr-transfer", "migrate-fds": passes})
    new = await rig.successor(*argv, build=Build(recording_vmm.command(path), "unicorn"))
    await old.execute("migrate", new.sockets.migrate_arguments())
    status = await within(UPDATE_MS, "the recording successor's death", new.process.wait_exit())
    assert status == -signal.SIGKILL
    await old_is_paused_again(old)


async def old_is_paused_again(old: VmmProcess) -> None:
    async with asyncio.timeout(UPDATE_MS / 1000):
        while True:
            event = await old.next_event()
            if event["event"] == "MIGRATION" and event["data"]["status"] == "failed":
                return


async def paused_and_recorded(
    rig: Rig, tmp_path: Path, argv: list[str], new_argv: list[str]
) -> tuple[bytes, bytes]:
    """What one paused guest sends with the parameter on, and off."""
    old = await rig.first(*argv, "-S", "-global", "migration.x-events=on")
    on, off = tmp_path / "on", tmp_path / "off"
    await record(rig, old, on, new_argv, passes=True)
    await record(rig, old, off, new_argv, passes=False)
    return on.read_bytes(), off.read_bytes()


async def test_stream_of_cards_that_keep_their_fds_does_not_depend_on_the_parameter(
    rig_inside: Rig, tmp_path: Path
) -> None:
    own = [word.replace(NIC.ifname, OTHER_NIC.ifname) for word in KEPT]
    with_it, without = await paused_and_recorded(rig_inside, tmp_path, KEPT, own)
    assert with_it == without
    assert b"passed-fds" not in with_it
    assert b"tap:net0" not in with_it


async def test_stream_of_cards_that_pass_their_fds_names_them(rig: Rig, tmp_path: Path) -> None:
    stream, _ = await paused_and_recorded(rig, tmp_path, PASSED, PASSED)
    assert b"passed-fds" in stream
    assert stream.count(b"tap:net0:0") == 2  # the promise and the offer


# ---- frames -----------------------------------------------------------------------------------


class Echo:
    """Numbered datagrams to the guest's echo service, a fixed number of them under way.

    Each answer sends the next, so frames are under way whenever the guest stops, and the rate is
    what the guest carries.
    """

    WINDOW = 16

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sent = 0
        self.received: list[int] = []
        self._news = asyncio.Event()
        asyncio.get_running_loop().add_reader(sock.fileno(), self._read)
        for _ in range(self.WINDOW):
            self._send()

    def _send(self) -> None:
        self._sock.send(self._sent.to_bytes(8, "big"))
        self._sent += 1

    def _read(self) -> None:
        self.received.append(int.from_bytes(self._sock.recv(64), "big"))
        self._send()
        self._news.set()

    async def until_received(self, more: int) -> None:
        wanted = len(self.received) + more
        while len(self.received) < wanted:
            self._news.clear()
            await self._news.wait()

    def stop(self) -> None:
        asyncio.get_running_loop().remove_reader(self._sock.fileno())


async def test_no_frame_is_lost_doubled_or_reordered_over_a_chain_of_updates(
    namespace: NetworkNamespace, accel: str
) -> None:
    append = ["-append", f"heartbeat_ms=20 pages=16 ip={NIC.guest_address}/24"]
    first = ChildSetup(entrance=namespace.entrance())
    argv = [*NIC.argv(), *append]
    build = Build(own_vmm(), accel)
    async with Launcher(GUEST, first=first, extra=argv) as launcher:
        rig = Rig(launcher)
        old = (await launcher.start_plain(build, NO_SERIAL)).process
        with namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.connect((NIC.guest_address, 7))
            echo = Echo(sock)
            before = namespace.counters(NIC.ifname)  # a tap that nobody has open yet drops
            for _ in range(5):
                await within(UPDATE_MS, "echoes before the update", echo.until_received(64))
                new = await rig.successor(build=build)
                await rig.update(old, new)
                await old.quit()
                old = new.process
            await within(UPDATE_MS, "echoes after the last update", echo.until_received(64))
            echo.stop()
            after = namespace.counters(NIC.ifname)
    assert echo.received == list(range(len(echo.received)))
    assert after.tx_dropped == before.tx_dropped


# ---- inherited fds, privilege -----------------------------------------------------------------


def status_field(process: VmmProcess, name: str) -> str:
    text = Path(f"/proc/{process.pid}/status").read_text()
    found = re.search(rf"^{name}:\s*(.*)$", text, re.MULTILINE)
    assert found is not None
    return found[1]


@pytest.mark.needs_readable
async def test_successor_of_root_runs_as_nobody_without_capabilities(
    namespace: NetworkNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = Path(pytest.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{packages}")
    unprivileged = Build(("/usr/bin/python3", "-m", "vmm"), "unicorn")
    first = ChildSetup(entrance=namespace.entrance())
    nobody = ChildSetup(uid=NOBODY, no_new_privs=True)
    async with Launcher(GUEST, first=first, successor=nobody) as launcher:
        rig = Rig(launcher)
        old = await rig.first(*PASSED, "-global", f"migration.x-peer-uid={NOBODY}")
        new = await rig.successor(*PASSED, build=unprivileged)
        await rig.update(old, new)
        assert status_field(new.process, "Uid").split() == [str(NOBODY)] * 4
        assert status_field(new.process, "CapEff") == "0" * 16
        assert status_field(new.process, "CapPrm") == "0" * 16
        assert status_field(new.process, "NoNewPrivs") == "1"
        assert taps_of(new.process.pid) == [NIC.ifname]


@pytest.mark.needs_readable
async def test_successor_of_an_unknown_user_is_refused(
    namespace: NetworkNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = Path(pytest.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{packages}")
    unprivileged = Build(("/usr/bin/python3", "-m", "vmm"), "unicorn")
    first = ChildSetup(entrance=namespace.entrance())
    nobody = ChildSetup(uid=NOBODY, no_new_privs=True)
    async with Launcher(GUEST, first=first, successor=nobody) as launcher:
        rig = Rig(launcher)
        old = await rig.first(*PASSED)
        reason = await failed_update(rig, old, await rig.successor(*PASSED, build=unprivileged))
        assert f"belongs to user {NOBODY}" in reason


def test_same_address_and_port_in_two_namespaces_is_allowed(namespace: NetworkNamespace) -> None:
    with NetworkNamespace.open() as other:
        add_nics(other, 1, TapSpec())
        with (
            namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as here,
            other.socket(socket.AF_INET, socket.SOCK_DGRAM) as there,
        ):
            here.bind((NIC.host_address, 7777))
            there.bind((NIC.host_address, 7777))  # the same, twice
