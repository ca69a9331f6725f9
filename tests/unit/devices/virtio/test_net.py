from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.framework.fake_net import FakeNet
from tests.framework.virtio_driver import (
    Buffer,
    Deferred,
    Driver,
    FakeRam,
    Line,
    rig,
)
from vmm.devices.virtio import net_features
from vmm.devices.virtio.features import RING_EVENT_IDX, RING_INDIRECT_DESC, VERSION_1
from vmm.devices.virtio.memory import GuestMemory
from vmm.devices.virtio.mmio import CONFIG
from vmm.devices.virtio.net import CONTROL_QUEUE, RX_QUEUE, TX_QUEUE, VirtioNet
from vmm.devices.virtio.net_backend import NO_OFFLOADS, NetOffloads
from vmm.devices.virtio.ring import Virtqueue
from vmm.errors import DeviceError

MAC = bytes.fromhex("525400123456")
HEADER = bytes(12)
OFFLOADS = NetOffloads(csum=True, tso4=True, tso6=True, tso_ecn=True)


class NetRig:
    """A card, its driver and its back-end."""

    def __init__(
        self, backend: FakeNet, ram: FakeRam | None = None, features: int | None = VERSION_1
    ) -> None:
        self.backend = backend
        self.ram = ram or FakeRam()

        def make(memory: GuestMemory, line: Line, loop: Deferred) -> VirtioNet:
            return VirtioNet(backend, MAC, memory, line, loop)

        self.driver: Driver = rig(make, self.ram)
        device = self.driver.device
        assert isinstance(device, VirtioNet)
        self.card = device
        if features is not None:
            self.driver.set_up(features)
        self.at = 0x4_0000

    def give(self, size: int = 2048) -> int:
        """Offer a receive buffer; returns its address."""
        at, self.at = self.at, self.at + size
        self.driver.queues[RX_QUEUE].add(Buffer(at, size, True))
        self.driver.kick(RX_QUEUE)
        return at

    def transmit(self, frame: bytes, *, kick: bool = True) -> None:
        self.ram.write(self.at, HEADER + frame)
        self.driver.queues[TX_QUEUE].add(Buffer(self.at, 12), Buffer(self.at + 12, len(frame)))
        self.at += 12 + len(frame)
        if kick:
            self.driver.kick(TX_QUEUE)

    def arrive(self, *frames: bytes) -> None:
        self.backend.waiting.extend(frames)
        self.backend.poll()

    def received(self, at: int) -> tuple[bytes, list[int]]:
        """Header and frame at `at`, and the sizes that were published."""
        sizes = [used.written for used in self.driver.queues[RX_QUEUE].reap()]
        return self.ram.read(at, sum(sizes)), sizes

    def command(self, data: bytes) -> int:
        self.ram.write(0x3_0000, data + b"\x77")
        self.driver.queues[CONTROL_QUEUE].add(
            Buffer(0x3_0000, len(data)), Buffer(0x3_0000 + len(data), 1, True)
        )
        self.driver.kick(CONTROL_QUEUE)
        return self.ram.read(0x3_0000 + len(data), 1)[0]

    def successor(self) -> NetRig:
        """Stop here, go on there, with the same tap."""
        self.card.stop()
        backend = FakeNet(self.backend.vnet_hdr_size, self.backend.offloads)
        backend.waiting = self.backend.waiting
        other = NetRig(backend, self.ram, None)
        other.card.stop()
        other.card.load(self.card.save())
        other.driver.queues, other.at = self.driver.queues, self.at
        other.card.start()
        return other


@pytest.fixture
def net() -> NetRig:
    return NetRig(FakeNet())


def frame_to(mac: bytes, body: bytes = b"x" * 50) -> bytes:
    return mac + MAC + b"\x08\x00" + body


def test_config_shows_mac_and_link(net: NetRig) -> None:
    config = b"".join(net.driver.read(CONFIG + at, 1).to_bytes(1, "little") for at in range(8))
    assert config == MAC + b"\x01\x00"
    net.card.set_link(up=False)
    assert net.driver.read(CONFIG + 6, 2) == 0
    assert net.driver.acknowledge() == 2
    assert net.card.save().transport.config_generation == 1


def test_frame_goes_out_without_the_header_and_is_published(net: NetRig) -> None:
    net.transmit(frame_to(MAC))
    assert net.backend.sent == [frame_to(MAC)]
    assert len(net.driver.queues[TX_QUEUE].reap()) == 1


def test_header_is_passed_through_to_a_tap_that_has_one() -> None:
    net = NetRig(FakeNet(12, OFFLOADS))
    net.transmit(frame_to(MAC))
    assert net.backend.sent == [HEADER + frame_to(MAC)]
    at = net.give()
    net.arrive(b"\x01" * 12 + frame_to(MAC))
    data, _ = net.received(at)
    assert data == b"\x01" * 10 + b"\x01\x00" + frame_to(MAC)


def test_full_tap_leaves_the_frame_in_the_ring_and_writable_sends_it_once(net: NetRig) -> None:
    net.backend.room = 1
    for number in range(3):
        net.transmit(frame_to(MAC, bytes([number]) * 50))
    assert len(net.backend.sent) == len(net.driver.queues[TX_QUEUE].reap()) == 1
    net.backend.unblock()
    assert [frame[14] for frame in net.backend.sent] == [0, 1, 2]
    assert len(net.driver.queues[TX_QUEUE].reap()) == 2


def test_frame_that_the_old_tap_refused_is_sent_once_by_the_successor(net: NetRig) -> None:
    net.backend.room = 1
    for number in range(3):
        net.transmit(frame_to(MAC, bytes([number]) * 50))
    other = net.successor()
    assert [frame[14] for frame in net.backend.sent + other.backend.sent] == [0, 1, 2]
    assert len(net.driver.queues[TX_QUEUE].reap()) == 3


def test_frame_posted_without_notification_is_sent_at_start(net: NetRig) -> None:
    net.transmit(frame_to(MAC), kick=False)
    assert len(net.successor().backend.sent) == 1


def test_received_frame_is_in_guest_ram_with_header_and_used_entry(net: NetRig) -> None:
    at = net.give()
    net.arrive(frame_to(MAC))
    data, sizes = net.received(at)
    assert data == bytes(10) + b"\x01\x00" + frame_to(MAC)
    assert sizes == [12 + len(frame_to(MAC))]
    assert net.driver.line.level


def test_no_frame_is_taken_from_the_tap_without_a_buffer(net: NetRig) -> None:
    net.arrive(frame_to(MAC))
    assert len(net.backend.waiting) == 1
    assert not net.backend.polling
    net.give()
    assert net.backend.polling
    net.backend.poll()
    assert not net.backend.waiting


def test_tap_is_not_read_after_stop(net: NetRig) -> None:
    net.give()
    net.card.stop()
    net.arrive(frame_to(MAC))
    assert not net.card.readable()
    assert len(net.backend.waiting) == 1


def test_frames_that_wait_in_the_tap_over_an_update_arrive_in_order(net: NetRig) -> None:
    buffers = [net.give() for _ in range(3)]
    net.arrive(frame_to(MAC, b"0" * 50))
    net.card.stop()
    net.arrive(frame_to(MAC, b"1" * 50), frame_to(MAC, b"2" * 50))
    other = net.successor()
    other.backend.poll()
    assert [net.ram.read(at + 26, 1) for at in buffers] == [b"0", b"1", b"2"]


@pytest.mark.parametrize("features", [0, RING_EVENT_IDX])
def test_stall_and_refill_lose_nothing_with_either_notification_rule(features: int) -> None:
    net = NetRig(FakeNet(), features=VERSION_1 | features)
    count = 0
    for burst in range(1, 12):
        for _ in range(burst % 4):
            net.give()
        net.arrive(*[frame_to(MAC)] * (burst % 3))
        count += burst % 3
        net.driver.queues[RX_QUEUE].reap()
    for _ in range(len(net.backend.waiting)):
        net.give()
        net.backend.poll()
    assert not net.backend.waiting
    assert net.driver.queues[RX_QUEUE].used_idx == count


def test_large_frame_is_merged_over_several_buffers() -> None:
    net = NetRig(FakeNet(), features=VERSION_1 | net_features.MRG_RXBUF)
    at = net.give(128)
    net.give(128)
    net.give(128)
    body = bytes(range(200))
    net.arrive(frame_to(MAC, body))
    data, sizes = net.received(at)
    assert data == bytes(10) + b"\x02\x00" + frame_to(MAC, body)
    assert sizes == [128, 98]


def test_frame_that_found_too_few_buffers_travels_and_comes_first() -> None:
    net = NetRig(FakeNet(), features=VERSION_1 | net_features.MRG_RXBUF)
    at = net.give(128)
    large, small = frame_to(MAC, bytes(range(200))), frame_to(MAC)
    net.arrive(large, small)
    assert net.card.save().held_frame == large
    assert len(net.backend.waiting) == 1
    other = net.successor()
    other.backend.poll()
    assert other.driver.queues[RX_QUEUE].reap() == []
    other.give(128)
    other.give(128)
    other.backend.poll()
    data, sizes = other.received(at)
    assert data == bytes(10) + b"\x02\x00" + large + data[226:]
    assert sizes == [128, 98, 12 + len(small)]
    assert other.card.save().held_frame == b""


class RacingGuest:
    """Does something between the device's look at a ring and its request for a notification."""

    def __init__(
        self, queue: Virtqueue, action: Callable[[], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        listen = queue.listen

        def racing(seen: int = 0) -> bool:
            monkeypatch.setattr(queue, "listen", listen)
            action()
            return listen(seen)

        monkeypatch.setattr(queue, "listen", racing)


@pytest.mark.parametrize("features", [0, RING_EVENT_IDX])
def test_buffer_that_comes_while_the_device_stalls_is_used(
    features: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = NetRig(FakeNet(), features=VERSION_1 | features)
    net.give()

    def refill_without_notification() -> None:
        net.driver.queues[RX_QUEUE].add(Buffer(0x5_0000, 2048, True))

    RacingGuest(net.card.queues[RX_QUEUE], refill_without_notification, monkeypatch)
    net.arrive(frame_to(MAC), frame_to(MAC))
    assert len(net.driver.queues[RX_QUEUE].reap()) == 2


@pytest.mark.parametrize("features", [0, RING_EVENT_IDX])
def test_missing_part_of_a_merged_buffer_that_comes_while_the_device_stalls_is_used(
    features: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = NetRig(FakeNet(), features=VERSION_1 | net_features.MRG_RXBUF | features)
    net.give(128)

    def refill_without_notification() -> None:
        net.driver.queues[RX_QUEUE].add(Buffer(0x5_0000, 2048, True))

    RacingGuest(net.card.queues[RX_QUEUE], refill_without_notification, monkeypatch)
    net.arrive(frame_to(MAC, bytes(200)))
    assert [used.written for used in net.driver.queues[RX_QUEUE].reap()] == [128, 98]


def test_frame_that_comes_while_the_device_goes_idle_is_sent(
    net: NetRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = lambda: net.transmit(frame_to(MAC, b"late"), kick=False)  # noqa: E731 - one expression
    RacingGuest(net.card.queues[TX_QUEUE], late, monkeypatch)
    net.transmit(frame_to(MAC))
    assert len(net.backend.sent) == 2


@pytest.mark.parametrize("mergeable", [0, net_features.MRG_RXBUF])
def test_frame_larger_than_everything_is_dropped_and_counted(mergeable: int) -> None:
    net = NetRig(FakeNet(), features=VERSION_1 | mergeable)
    for _ in range(16):
        net.give(64)
    net.arrive(frame_to(MAC, bytes(2000)), frame_to(MAC, b"ok"))
    assert net.card.oversize_frames == 1
    assert len(net.driver.queues[RX_QUEUE].reap()) == 1


def test_receive_buffer_without_room_for_a_header_breaks_the_device(net: NetRig) -> None:
    net.give(11)
    net.arrive(frame_to(MAC))
    assert net.driver.needs_reset
    assert not net.card.readable()


@pytest.mark.parametrize("size", [11, 70_000])
def test_impossible_transmit_frame_breaks_the_device(net: NetRig, size: int) -> None:
    net.driver.queues[TX_QUEUE].add(Buffer(0x4_0000, size))
    net.driver.kick(TX_QUEUE)
    assert net.driver.needs_reset
    assert not net.backend.sent


def test_offloads_are_offered_as_far_as_the_back_end_goes() -> None:
    bare = NetRig(FakeNet(), features=None).card.offered_features
    full = NetRig(FakeNet(12, OFFLOADS), features=None).card.offered_features
    assert not bare & (net_features.CSUM | net_features.GUEST_CSUM | net_features.HOST_TSO4)
    assert full & net_features.HOST_TSO6
    assert full & net_features.GUEST_ECN


def test_negotiated_offloads_are_set_and_set_again_by_the_successor() -> None:
    features = VERSION_1 | net_features.GUEST_CSUM | net_features.GUEST_TSO4
    net = NetRig(FakeNet(12, OFFLOADS), features=features)
    assert net.backend.set == NetOffloads(csum=True, tso4=True)
    assert net.successor().backend.set == NetOffloads(csum=True, tso4=True)
    net.driver.write(0x70, 0)
    assert net.backend.set == NO_OFFLOADS


@pytest.mark.parametrize(
    "features",
    [
        net_features.GUEST_TSO4,
        net_features.HOST_TSO6,
        net_features.GUEST_CSUM | net_features.GUEST_ECN,
        net_features.CTRL_RX,
        net_features.GUEST_ANNOUNCE,
    ],
)
def test_feature_without_what_it_needs_is_not_accepted(features: int) -> None:
    net = NetRig(FakeNet(12, OFFLOADS), features=None)
    assert not net.driver.negotiate(VERSION_1 | features)


CONTROL = VERSION_1 | net_features.CTRL_VQ | net_features.CTRL_RX | net_features.CTRL_MAC_ADDR
OTHER, GROUP = bytes.fromhex("525400999999"), bytes.fromhex("01005e000001")


def test_rx_mode_filters_frames() -> None:
    net = NetRig(FakeNet(), features=CONTROL)
    for _ in range(8):
        net.give()

    def arrives(mac: bytes) -> bool:
        before = net.driver.queues[RX_QUEUE].used_idx
        net.arrive(frame_to(mac))
        return net.driver.queues[RX_QUEUE].used_idx != before

    assert arrives(OTHER)
    assert net.command(b"\x00\x00\x00") == 0
    assert [arrives(mac) for mac in (OTHER, GROUP, MAC, b"\xff" * 6)] == [0, 0, 1, 1]
    table = (1).to_bytes(4, "little") + OTHER + (1).to_bytes(4, "little") + GROUP
    assert net.command(b"\x01\x00" + table) == 0
    assert [arrives(mac) for mac in (OTHER, GROUP)] == [1, 1]
    other = net.successor()
    assert other.card.save().rx_filter == net.card.save().rx_filter
    assert net.card.save().rx_filter.unicast == (OTHER,)


def test_table_that_is_too_long_opens_its_class() -> None:
    net = NetRig(FakeNet(), features=CONTROL)
    table = (65).to_bytes(4, "little") + OTHER * 65 + bytes(4)
    assert net.command(b"\x01\x00" + table) == 0
    assert net.card.save().rx_filter.all_unicast


def test_driver_may_change_its_address() -> None:
    net = NetRig(FakeNet(), features=CONTROL)
    assert net.command(b"\x01\x01" + OTHER) == 0
    assert net.successor().card.save().mac == OTHER
    net.driver.write(0x70, 0)
    assert net.card.save().mac == MAC


@pytest.mark.parametrize(
    "data",
    [
        b"\x00",
        b"\x09\x00",
        b"\x00\x09\x01",
        b"\x00\x00",
        b"\x01\x01abc",
        b"\x01\x00\xff\xff\xff\xff",
    ],
)
def test_unknown_or_malformed_command_is_answered_with_an_error(data: bytes) -> None:
    assert NetRig(FakeNet(), features=CONTROL).command(data) == 1


def test_announcement_is_only_made_when_asked_for_and_until_acknowledged() -> None:
    net = NetRig(FakeNet(), features=CONTROL | net_features.GUEST_ANNOUNCE)
    assert net.successor().driver.read(CONFIG + 6, 2) == 1
    net.card.start()
    assert net.card.announce()
    assert net.driver.read(CONFIG + 6, 2) == 3
    assert net.successor().driver.read(CONFIG + 6, 2) == 3
    net.card.start()
    assert net.command(b"\x03\x00") == 0
    assert net.driver.read(CONFIG + 6, 2) == 1
    assert not NetRig(FakeNet()).card.announce()


def test_every_offer_is_accepted_as_a_whole() -> None:
    net = NetRig(FakeNet(12, OFFLOADS), features=None)
    assert net.driver.offered() & RING_INDIRECT_DESC
    assert net.driver.negotiate(net.driver.offered())


def test_multicast_address_is_refused() -> None:
    with pytest.raises(DeviceError, match="MAC address"):
        VirtioNet(FakeNet(), GROUP, FakeRam().memory(), Line(), Deferred())
    with pytest.raises(DeviceError, match="headers of 10"):
        VirtioNet(FakeNet(10), MAC, FakeRam().memory(), Line(), Deferred())
