"""virtio-console between a driver and a character back-end."""

from __future__ import annotations

import pytest

from tests.framework.fake_char import FakeChar
from tests.framework.virtio_driver import Buffer, Deferred, Driver, FakeRam, Line, Used, rig
from vmm.devices.virtio.console import (
    BACKLOG_MAX_BYTES,
    INPUT_SIZE_MAX_BYTES,
    OUTPUT_SIZE_MAX_BYTES,
    RX_QUEUE,
    TX_QUEUE,
    ConsoleState,
    VirtioConsole,
)
from vmm.devices.virtio.features import RING_EVENT_IDX, VERSION_1
from vmm.devices.virtio.memory import GuestMemory
from vmm.devices.virtio.virtio_state import TransportState


class Console:
    """A guest with a console, and the client at its other end."""

    def __init__(self, ram: FakeRam | None = None) -> None:
        self.ram = ram or FakeRam()
        self.client = FakeChar()

        def make(memory: GuestMemory, line: Line, loop: Deferred) -> VirtioConsole:
            return VirtioConsole(self.client, memory, line, loop)

        self.driver: Driver = rig(make, self.ram)
        device = self.driver.device
        assert isinstance(device, VirtioConsole)
        self.device = device

    def set_up(self, features: int = VERSION_1) -> Console:
        self.driver.set_up(features)
        self.buffer = self.driver.take(2 * OUTPUT_SIZE_MAX_BYTES)
        return self

    def write(self, data: bytes) -> list[Used]:
        self.ram.write(self.buffer, data)
        queue = self.driver.queues[TX_QUEUE]
        queue.add(Buffer(self.buffer, len(data)))
        self.driver.kick(TX_QUEUE)
        return queue.reap()

    def offer(self, size: int) -> int:
        """A buffer for input; returns where."""
        at = self.driver.take(size)
        self.driver.queues[RX_QUEUE].add(Buffer(at, size, device_writes=True))
        self.driver.kick(RX_QUEUE)
        return at

    def successor(self) -> Console:
        """Another process with the same RAM, its client not yet started."""
        self.device.stop()
        after = Console(self.ram)
        after.device.stop()
        after.device.load(self.device.save())
        after.driver.queues, after.driver.free = self.driver.queues, self.driver.free
        after.buffer = self.buffer
        return after


def test_output_reaches_the_client_and_is_published() -> None:
    console = Console().set_up()
    assert console.write(b"hello ") == [Used(0, 0)]
    assert console.write(b"world") == [Used(1, 0)]
    assert console.client.written == b"hello world"
    assert console.driver.line.level


def test_guest_never_waits_for_a_client_that_does_not_read() -> None:
    console = Console().set_up()
    console.client.accepts = 3
    assert len(console.write(b"abcdef")) == 1
    assert len(console.write(b"ghi")) == 1
    assert console.client.written == b"abc"
    console.client.unblock()
    assert console.client.written == b"abcdefghi"
    assert console.device.save().backlog == b""


def test_output_beyond_the_backlog_is_counted() -> None:
    console = Console().set_up()
    console.client.accepts = 0
    console.write(b"a" * BACKLOG_MAX_BYTES)
    assert console.device.dropped_bytes == 0
    console.write(b"bcd")
    assert console.device.dropped_bytes == 3
    console.client.unblock()
    assert console.client.written == b"a" * BACKLOG_MAX_BYTES
    console.write(b"e")
    assert console.client.written[-1:] == b"e"


def test_output_longer_than_any_driver_writes_breaks_the_device() -> None:
    console = Console().set_up()
    console.write(b"x" * OUTPUT_SIZE_MAX_BYTES)
    assert not console.driver.needs_reset
    console.write(b"x" * (OUTPUT_SIZE_MAX_BYTES + 1))
    assert console.driver.needs_reset


@pytest.mark.parametrize("features", [VERSION_1, VERSION_1 | RING_EVENT_IDX])
def test_input_is_read_only_into_buffers_of_the_guest(features: int) -> None:
    console = Console().set_up(features)
    assert console.client.feed(b"keys") == b"keys"
    asked = console.client.more_requests
    at = console.offer(3)
    assert console.client.more_requests > asked
    assert console.client.feed(b"keys") == b"s"
    assert console.ram.read(at, 3) == b"key"
    assert console.driver.queues[RX_QUEUE].reap() == [Used(0, 3)]
    assert console.driver.line.level
    assert console.device.receive_capacity() == 0


def test_input_is_read_in_pieces_of_limited_size() -> None:
    console = Console().set_up()
    console.offer(2 * INPUT_SIZE_MAX_BYTES)
    assert console.device.receive_capacity() == INPUT_SIZE_MAX_BYTES


def test_input_buffer_that_cannot_be_written_breaks_the_device() -> None:
    console = Console().set_up()
    console.driver.queues[RX_QUEUE].add(Buffer(console.buffer, 8))
    assert console.device.receive_capacity() == 0
    assert console.driver.needs_reset


def test_input_that_meets_a_reset_waits_for_the_next_driver() -> None:
    console = Console().set_up()
    console.offer(8)
    assert console.device.receive_capacity() == 8
    console.driver.write(0x70, 0)  # the driver resets between the two looks
    console.device.receive(b"typed")
    console.set_up()
    assert console.device.receive_capacity() == 0
    first, second = console.offer(2), console.offer(8)
    assert console.ram.read(first, 2) + console.ram.read(second, 3) == b"typed"


def test_no_byte_is_lost_and_none_comes_twice_in_an_update() -> None:
    old = Console().set_up()
    old.client.accepts = 2
    old.write(b"output")
    old.offer(8)
    old.driver.queues[RX_QUEUE].reap()
    new = old.successor()
    new.client.accepts = 1
    new.device.start()
    new.client.unblock()
    assert old.client.written + new.client.written == b"output"
    assert new.client.feed(b"input") == b""
    assert new.driver.queues[RX_QUEUE].reap() == [Used(0, 5)]
    new.write(b"!")
    assert new.client.written[-1:] == b"!"


def test_held_input_travels() -> None:
    old = Console().set_up()
    old.device.receive(b"held")
    new = old.successor()
    new.device.start()
    at = new.offer(8)
    assert new.ram.read(at, 4) == b"held"


@pytest.mark.parametrize(
    "field",
    [
        {"backlog": bytes(BACKLOG_MAX_BYTES + 1)},
        {"unread": bytes(INPUT_SIZE_MAX_BYTES + 1)},
        {"dropped_bytes": -1},
    ],
)
def test_state_that_no_console_can_have_is_refused(field: dict[str, bytes | int]) -> None:
    values: dict[str, object] = {
        "transport": TransportState.power_on((128, 128)),
        "backlog": b"",
        "unread": b"",
        "dropped_bytes": 0,
    }
    with pytest.raises(ValueError, match=next(iter(field))):
        ConsoleState(**(values | field))  # type: ignore[arg-type]
