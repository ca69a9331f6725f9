"""The tap back-end on real taps: what is read, when, and what is left to the successor."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from cpr.ownedfd import OwnedFd
from tools.lab.errors import LabError
from tools.lab.namespace import NetworkNamespace, TapSpec
from vmm.config import TapNetdev
from vmm.devices.net.netdev import Netdev, adopt_netdev, open_netdev
from vmm.devices.net.tap import ALL_OFFLOADS, TapBackend
from vmm.devices.net.tun import tap_identity, tap_info
from vmm.devices.virtio.net_backend import NO_OFFLOADS, VNET_HDR_SIZE_BYTES
from vmm.errors import DeviceError

pytestmark = pytest.mark.needs_tun
DEADLINE_S = 20
HEADER = bytes(VNET_HDR_SIZE_BYTES)
BROADCAST, GUEST_MAC = b"\xff" * 6, bytes.fromhex("525400123456")
ETHERTYPE = b"\x88\xb5"  # IEEE 802: for experiments, so the kernel's own frames are told apart
FRAME = BROADCAST + GUEST_MAC + ETHERTYPE + b"frame".ljust(46, b"\0")


class Card:
    """A NetFrontend with `buffers` free buffers."""

    def __init__(self, tap: TapBackend, buffers: int) -> None:
        self.tap = tap
        self.buffers = buffers
        self.frames: list[bytes] = []
        self.news = asyncio.Event()
        self.writable_calls = 0
        tap.attach(self)

    def readable(self) -> bool:
        while self.buffers:
            frame = self.tap.receive()
            if frame is None:
                return True
            if frame[VNET_HDR_SIZE_BYTES + 12 :][:2] == ETHERTYPE:
                self.buffers -= 1
                self.frames.append(frame)
                self.news.set()
        return False

    def writable(self) -> None:
        self.writable_calls += 1
        self.news.set()

    async def until(self, frames: int) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while len(self.frames) < frames:
                self.news.clear()
                await self.news.wait()


async def turn_of_the_loop() -> None:
    """Everything that is ready now has been served when this returns."""
    for _ in range(2):  # what is ready is found at the end of a turn and served in the next
        done = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(done.set_result, None)
        await done


@pytest.fixture(scope="module")
def namespace() -> Iterator[NetworkNamespace]:
    with NetworkNamespace.open() as made:
        yield made


@pytest.fixture(scope="module")
def numbers() -> Iterator[int]:
    return count()


@pytest.fixture
def ifname(
    namespace: NetworkNamespace, numbers: Iterator[int], request: pytest.FixtureRequest
) -> str:
    """A tap of the test's own; parameter "multi-queue" makes it one of those."""
    name = f"t{next(numbers)}"
    multi_queue = getattr(request, "param", None) == "multi-queue"
    namespace.add_tap(TapSpec(ifname=name, addresses=(), txqueuelen=8, multi_queue=multi_queue))
    return name


@pytest.fixture
def wire(namespace: NetworkNamespace, ifname: str) -> Iterator[socket.socket]:
    """The host's end: raw frames on the tap's interface."""
    with namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5)) as sock:
        sock.bind((ifname, 0x88B5))
        sock.settimeout(DEADLINE_S)
        yield sock


MakeTap = Callable[[], TapBackend]


@pytest.fixture
async def make_tap(namespace: NetworkNamespace, ifname: str) -> MakeTap:
    """A back-end on a queue of the test's tap; the loop is the test's."""
    return lambda: TapBackend("net0", [namespace.open_queue(ifname)], asyncio.get_running_loop())


@pytest.fixture
async def tap(make_tap: MakeTap) -> Iterator[TapBackend]:  # type: ignore[misc]
    backend = make_tap()
    yield backend
    backend.close()


async def test_frames_go_both_ways_with_their_header(tap: TapBackend, wire: socket.socket) -> None:
    card = Card(tap, buffers=8)
    tap.start()
    assert tap.send(HEADER + FRAME)
    assert wire.recv(2048) == FRAME
    wire.send(FRAME)
    await card.until(1)
    assert card.frames[0][VNET_HDR_SIZE_BYTES:] == FRAME


async def test_nothing_is_read_before_start_and_after_stop(
    tap: TapBackend, wire: socket.socket
) -> None:
    card = Card(tap, buffers=8)
    wire.send(FRAME + b"1")
    tap.start()
    tap.stop()
    wire.send(FRAME + b"2")
    await turn_of_the_loop()  # a watcher left behind would read now
    assert card.frames == []
    tap.start()
    await card.until(2)
    assert [frame[-1:] for frame in card.frames] == [b"1", b"2"]


async def test_frames_without_a_buffer_wait_in_the_tap_until_receive_more(
    tap: TapBackend, wire: socket.socket
) -> None:
    card = Card(tap, buffers=1)
    tap.start()
    for number in range(3):
        wire.send(FRAME + bytes([number]))
    await card.until(1)
    card.buffers = 2
    tap.receive_more()
    await card.until(3)
    assert [frame[-1] for frame in card.frames] == [0, 1, 2]


async def test_successor_finds_what_the_predecessor_has_not_read(
    tap: TapBackend, wire: socket.socket
) -> None:
    old = Card(tap, buffers=1)
    tap.start()
    wire.send(FRAME + b"1")
    await old.until(1)
    tap.stop()
    wire.send(FRAME + b"2")
    successor = TapBackend("net0", [os.dup(tap.fds()[0].fd)], asyncio.get_running_loop())
    new = Card(successor, buffers=8)
    tap.close()
    successor.start()
    await new.until(1)
    successor.close()
    assert [frame[-1:] for frame in old.frames + new.frames] == [b"1", b"2"]


async def test_queue_longer_than_txqueuelen_is_counted_as_dropped_by_the_kernel(
    tap: TapBackend, wire: socket.socket, namespace: NetworkNamespace, ifname: str
) -> None:
    card = Card(tap, buffers=64)
    before = namespace.counters(ifname)
    sent = 12
    for number in range(sent):
        wire.send(FRAME + bytes([number]))
    dropped = namespace.counters(ifname).tx_dropped - before.tx_dropped
    assert dropped == sent - before.txqueuelen
    tap.start()
    await card.until(before.txqueuelen)
    assert [frame[-1] for frame in card.frames] == list(range(before.txqueuelen))


async def test_link_that_is_gone_drops_and_does_not_spin(
    tap: TapBackend, namespace: NetworkNamespace, ifname: str
) -> None:
    Card(tap, buffers=8)
    tap.start()
    namespace.remove(ifname)
    assert tap.send(HEADER + FRAME)
    assert tap.dropped_frames == 1
    assert tap.receive() is None
    await turn_of_the_loop()
    assert not asyncio.get_running_loop().remove_reader(tap.fds()[0].fd)


async def test_link_that_is_gone_does_not_keep_the_guest_from_running(
    tap: TapBackend, namespace: NetworkNamespace, ifname: str
) -> None:
    Card(tap, buffers=8)
    namespace.remove(ifname)
    tap.start()
    assert tap.send(HEADER + FRAME)
    assert tap.receive() is None


async def test_offloads_of_a_successor_are_applied_by_start(make_tap: MakeTap) -> None:
    tap = make_tap()
    try:
        tap.set_offloads(NO_OFFLOADS)
        tap.set_offloads(ALL_OFFLOADS)
        tap.start()
        assert tap.offloads == ALL_OFFLOADS
        tap.set_offloads(NO_OFFLOADS)
    finally:
        tap.close()
        tap.close()


def test_second_opener_of_a_tap_is_refused_with_qemus_text(
    namespace: NetworkNamespace, ifname: str
) -> None:
    queue = namespace.open_queue(ifname)
    try:
        configure = rf"could not configure /dev/net/tun \({ifname}\)"
        with pytest.raises(LabError, match=f"{configure}: Device or resource busy"):
            namespace.open_queue(ifname)
    finally:
        os.close(queue)


async def test_fd_that_is_no_tap_is_refused_and_closed() -> None:
    read_end, write_end = os.pipe()
    os.close(write_end)
    with pytest.raises(DeviceError, match="is not a tap"):
        TapBackend("net0", [read_end], asyncio.get_running_loop())
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(read_end)


async def test_second_device_on_one_netdev_is_refused(tap: TapBackend) -> None:
    Card(tap, buffers=0)
    with pytest.raises(DeviceError, match="already in use"):
        Card(tap, buffers=0)


@pytest.mark.parametrize("ifname", ["multi-queue"], indirect=True)
async def test_all_frames_of_a_multi_queue_tap_come_by_the_first_queue(
    namespace: NetworkNamespace, ifname: str, wire: socket.socket
) -> None:
    queues = tuple(namespace.open_queue(ifname, multi_queue=True) for _ in range(3))
    for queue in queues:
        os.set_inheritable(queue, True)
    config = TapNetdev("net0", fds=queues, script=None, downscript=None, queues=3)
    netdev = open_netdev(config, asyncio.get_running_loop())
    card = Card(netdev.backend, buffers=64)
    netdev.backend.start()
    for number in range(8):
        wire.send(BROADCAST + bytes([2, 0, 0, 0, 0, number]) + ETHERTYPE + bytes(46))
    await card.until(8)
    netdev.close()


# ---- handed over ---------------------------------------------------------------------------------


def adopted(config: TapNetdev, fd: int, identity: dict[str, int]) -> Netdev:
    name = "tap:net0:0"
    return adopt_netdev(config, [OwnedFd(fd, name)], {name: identity}, asyncio.get_running_loop())


async def test_tap_that_was_promised_is_adopted(tap: TapBackend, ifname: str) -> None:
    fd = tap.fds()[0].fd
    netdev = adopted(TapNetdev("net0", ifname=ifname), os.dup(fd), tap_identity(fd))
    assert tap_info(netdev.fds()[0].fd).ifname == ifname
    netdev.hold_fds()
    netdev.close()


async def test_other_tap_than_promised_is_refused(tap: TapBackend) -> None:
    fd = tap.fds()[0].fd
    promised = tap_identity(fd) | {"ifname-0": 0}
    with pytest.raises(DeviceError, match="not what the source promised"):
        adopted(TapNetdev("net0"), os.dup(fd), promised)


async def test_tap_of_another_name_than_configured_is_refused(tap: TapBackend) -> None:
    fd = tap.fds()[0].fd
    with pytest.raises(DeviceError, match="says ifname=other"):
        adopted(TapNetdev("net0", ifname="other"), os.dup(fd), tap_identity(fd))


# ---- scripts -------------------------------------------------------------------------------------


def script(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def configured(tmp_path: Path) -> TapNetdev:
    down = script(tmp_path / "down", f'echo "$1" > {tmp_path}/went-down')
    return TapNetdev("net0", script=None, downscript=down)


async def test_down_script_runs_at_close(
    make_tap: MakeTap, configured: TapNetdev, tmp_path: Path, ifname: str
) -> None:
    Netdev(configured, make_tap()).close()
    assert (tmp_path / "went-down").read_text() == f"{ifname}\n"


async def test_down_script_does_not_run_when_a_successor_has_the_tap(
    make_tap: MakeTap, configured: TapNetdev, tmp_path: Path
) -> None:
    netdev = Netdev(configured, make_tap())
    netdev.hold_fds()
    netdev.close()
    assert not (tmp_path / "went-down").exists()


async def test_down_script_runs_after_an_update_that_did_not_happen(
    make_tap: MakeTap, configured: TapNetdev, tmp_path: Path
) -> None:
    netdev = Netdev(configured, make_tap())
    netdev.hold_fds()
    netdev.release_fds()
    netdev.close()
    assert (tmp_path / "went-down").exists()


async def test_script_that_fails_is_reported_by_name(make_tap: MakeTap, tmp_path: Path) -> None:
    down = script(tmp_path / "down", "exit 3")
    netdev = Netdev(TapNetdev("net0", script=None, downscript=down), make_tap())
    with pytest.raises(DeviceError, match=f"network script {down} failed with status 3"):
        netdev.close()
