from __future__ import annotations

import pytest

from cpr.errors import StateError
from tests.framework.virtio_driver import DRIVER_OK, Buffer, Driver, FakeRam, rig
from vmm.devices.virtio import mmio
from vmm.devices.virtio.device import BATCH
from vmm.devices.virtio.features import (
    INTERRUPT_CONFIG,
    INTERRUPT_QUEUE,
    RING_EVENT_IDX,
    STATUS_FEATURES_OK,
    STATUS_NEEDS_RESET,
    VERSION_1,
)
from vmm.devices.virtio.rng import REQUEST_SIZE_MAX_BYTES, VirtioRng
from vmm.errors import ConfigError


@pytest.fixture
def driver() -> Driver:
    return rig(VirtioRng, FakeRam())


def post(driver: Driver, count: int = 1) -> None:
    for _ in range(count):
        driver.queues[0].add(Buffer(0x8000, 32, True))


def test_identity_is_what_a_driver_looks_for(driver: Driver) -> None:
    assert driver.read(mmio.MAGIC).to_bytes(4, "little") == b"virt"
    assert driver.read(mmio.VERSION) == 2
    assert driver.read(mmio.DEVICE_ID) == 4
    assert driver.read(mmio.SHM_LEN_LOW) == 0xFFFF_FFFF


def test_feature_halves_are_selected_and_there_is_no_third(driver: Driver) -> None:
    assert driver.offered() & VERSION_1
    driver.write(mmio.DEVICE_FEATURES_SEL, 2)
    assert driver.read(mmio.DEVICE_FEATURES) == 0
    driver.write(mmio.DEVICE_FEATURES_SEL, 0xFFFF_FFFF)
    assert driver.read(mmio.DEVICE_FEATURES) == 0


@pytest.mark.parametrize("features", [0, VERSION_1 | 1 << 40, VERSION_1 | 1 << 20])
def test_features_without_version_1_or_beyond_the_offer_are_not_accepted(
    driver: Driver, features: int
) -> None:
    assert not driver.negotiate(features)
    driver.write(mmio.STATUS, DRIVER_OK)
    assert driver.read(mmio.STATUS) & DRIVER_OK == 3


def test_features_cannot_change_once_accepted(driver: Driver) -> None:
    assert driver.negotiate(VERSION_1)
    driver.write(mmio.DRIVER_FEATURES_SEL, 0)
    driver.write(mmio.DRIVER_FEATURES, RING_EVENT_IDX)
    assert driver.device.driver_features == VERSION_1


def test_request_is_served_at_the_notification_and_interrupts(driver: Driver) -> None:
    driver.set_up()
    post(driver)
    assert driver.queues[0].reap() == []
    driver.kick(0)
    assert [used.written for used in driver.queues[0].reap()] == [32]
    assert driver.line.level
    assert driver.acknowledge() == INTERRUPT_QUEUE
    assert not driver.line.level


def test_what_was_posted_before_driver_ok_is_served_by_it(driver: Driver) -> None:
    assert driver.negotiate(VERSION_1)
    driver.set_up_queue(0, 8)
    post(driver)
    driver.kick(0)
    assert driver.queues[0].reap() == []
    driver.write(mmio.STATUS, DRIVER_OK)
    assert len(driver.queues[0].reap()) == 1


def test_notification_of_a_queue_that_is_not_there_is_dropped(driver: Driver) -> None:
    driver.set_up()
    for index in (1, 0xFFFF, 0xFFFF_FFFF):
        driver.kick(index)
    assert not driver.needs_reset


def test_stopped_device_touches_no_ring_and_start_serves_it(driver: Driver) -> None:
    driver.set_up()
    driver.device.stop()
    post(driver)
    driver.kick(0)
    assert driver.queues[0].reap() == []
    driver.device.start()
    assert len(driver.queues[0].reap()) == 1


def test_more_than_a_batch_is_left_to_the_loop(driver: Driver) -> None:
    driver.device = VirtioRng(driver.ram.memory(), driver.line, driver.loop)
    driver.device.queues[0].size_max = 2 * BATCH
    driver.device.start()
    driver.set_up(size=2 * BATCH)
    post(driver, BATCH + 3)
    driver.kick(0)
    assert len(driver.queues[0].reap()) == BATCH
    assert driver.loop.run() == 1
    assert len(driver.queues[0].reap()) == 3
    assert driver.loop.run() == 0


def test_what_was_deferred_does_nothing_after_a_stop(driver: Driver) -> None:
    driver.device.queues[0].size_max = 2 * BATCH
    driver.set_up(size=2 * BATCH)
    post(driver, BATCH + 3)
    driver.kick(0)
    driver.device.stop()
    driver.loop.run()
    assert len(driver.queues[0].reap()) == BATCH


def test_broken_ring_needs_reset_tells_the_driver_and_is_left_alone(driver: Driver) -> None:
    driver.set_up()
    driver.queues[0].offer(0xFFF)
    driver.kick(0)
    assert driver.needs_reset
    assert driver.acknowledge() == INTERRUPT_CONFIG
    assert driver.device.broken_reason is not None
    post(driver)
    driver.kick(0)
    assert driver.queues[0].reap() == []


def test_entropy_request_is_bounded_and_needs_a_buffer(driver: Driver) -> None:
    driver.set_up()
    driver.queues[0].add(Buffer(0x1_0000, REQUEST_SIZE_MAX_BYTES + 1, True))
    driver.kick(0)
    assert [used.written for used in driver.queues[0].reap()] == [REQUEST_SIZE_MAX_BYTES]
    assert len(set(driver.ram.read(0x1_0000, 256))) > 64
    driver.queues[0].add(Buffer(0x1_0000, 16))
    driver.kick(0)
    assert driver.needs_reset


def test_reset_heals_and_forgets_everything(driver: Driver) -> None:
    fresh = rig(VirtioRng, FakeRam()).device.save()
    driver.set_up()
    driver.queues[0].offer(0xFFF)
    driver.kick(0)
    driver.write(mmio.STATUS, 0)
    driver.write(mmio.DRIVER_FEATURES_SEL, 0)
    driver.write(mmio.QUEUE_SEL, 0)
    assert driver.device.save() == fresh
    assert not driver.line.level
    driver.ram = FakeRam()
    driver = rig(VirtioRng, driver.ram)
    driver.set_up()
    post(driver)
    driver.kick(0)
    assert len(driver.queues[0].reap()) == 1


def test_impossible_queue_is_not_enabled(driver: Driver) -> None:
    assert driver.negotiate(VERSION_1)
    driver.set_up_queue(0, 7)
    assert driver.read(mmio.QUEUE_READY) == 0
    assert driver.read(mmio.STATUS) & STATUS_NEEDS_RESET


def test_enabled_queue_cannot_be_moved(driver: Driver) -> None:
    driver.set_up()
    before = driver.device.save()
    driver.write(mmio.QUEUE_DESC_LOW, 0)
    driver.write(mmio.QUEUE_NUM, 2)
    assert driver.device.save() == before


def test_disabled_queue_starts_again_from_zero(driver: Driver) -> None:
    driver.set_up()
    post(driver)
    driver.kick(0)
    driver.write(mmio.QUEUE_READY, 0)
    assert driver.read(mmio.QUEUE_READY) == 0
    driver.set_up_queue(0, 8)
    assert driver.device.queues[0].next_avail == 0


def test_registers_of_a_queue_that_is_not_there_read_zero(driver: Driver) -> None:
    driver.write(mmio.QUEUE_SEL, 5)
    assert driver.read(mmio.QUEUE_NUM_MAX) == 0
    driver.write(mmio.QUEUE_NUM, 4)
    driver.write(mmio.QUEUE_READY, 1)
    assert driver.read(mmio.QUEUE_READY) == 0


@pytest.mark.parametrize("size", [1, 2, 8])
def test_control_registers_are_32_bits_wide(driver: Driver, size: int) -> None:
    assert driver.read(mmio.MAGIC, size) == 0
    driver.device.mmio_write(mmio.STATUS, size, 1)
    assert driver.read(mmio.STATUS) == 0


def test_state_that_does_not_fit_is_refused_and_changes_nothing(driver: Driver) -> None:
    driver.set_up()
    state = driver.device.save()
    other = VirtioRng(driver.ram.memory(), driver.line, driver.loop)
    other.offered_features = VERSION_1 | STATUS_FEATURES_OK
    before = other.save()
    driver.device.driver_features |= RING_EVENT_IDX
    with pytest.raises(StateError, match="does not offer"):
        other.load(driver.device.save())
    other.queues[0].size_max = 4
    with pytest.raises(StateError, match="entries"):
        other.load(state)
    assert other.save().to_map().keys() == before.to_map().keys()
    assert other.status == 0


def test_successor_drives_the_line_and_goes_on(driver: Driver) -> None:
    driver.set_up()
    post(driver)
    driver.kick(0)
    driver.device.stop()
    post(driver)
    successor = rig(VirtioRng, driver.ram)
    successor.device.stop()
    successor.device.load(driver.device.save())
    assert not successor.line.level
    successor.device.start()
    assert successor.line.level
    assert len(driver.queues[0].reap()) == 2


def test_slots_are_pages_with_an_interrupt_each() -> None:
    addresses, gsi = mmio.mmio_slot(1)
    assert (addresses.start, len(addresses), gsi) == (0xD000_1000, 0x1000, 6)
    gsis = [mmio.mmio_slot(index)[1] for index in range(len(mmio.VIRTIO_MMIO_GSIS))]
    assert len(set(gsis)) == len(gsis)
    with pytest.raises(ConfigError, match="room for"):
        mmio.mmio_slot(len(gsis))
