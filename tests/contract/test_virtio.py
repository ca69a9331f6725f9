"""Every device of CASES against the contract of `virtio_contract`, and against malformed rings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cpr.vmstate import Section
from tests.contract.virtio_contract import (
    ACCESSES,
    CASES,
    RAM_SIZE_BYTES,
    Access,
    Make,
    RingFuzzer,
    VirtioCase,
    set_up,
    something_arrives,
    used_part,
)
from tests.framework.virtio_driver import FakeRam, rig
from vmm.devices.virtio import mmio

every_device = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
# The maker holds a file at most, and each example makes devices of its own from it.
fuzz = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# For each of the cases: 24,000 chains by default, 120,000 in the long proof.
FUZZ_CHAINS, FUZZ_CHAINS_LONG = 4_000, 20_000


@pytest.fixture
def make(case: VirtioCase) -> Iterator[Make]:
    with case.maker() as make:
        yield make


@every_device
@fuzz
@given(accesses=ACCESSES)
def test_registers_take_anything_and_reads_fit_their_size(
    make: Make, accesses: list[Access]
) -> None:
    ram = FakeRam(RAM_SIZE_BYTES)
    device = rig(make, ram).device
    for access in accesses:
        value = access.apply(device)
        assert value is None or 0 <= value < 1 << 8 * access.size
    assert ram.red_zones_are_intact()


@every_device
@fuzz
@given(accesses=ACCESSES)
def test_state_survives_the_wire_and_replaces_whatever_was_there(
    make: Make, accesses: list[Access]
) -> None:
    used, target = (rig(make, FakeRam(RAM_SIZE_BYTES)).device for _ in range(2))
    for access in accesses:
        access.apply(used)
    for access in reversed(accesses):
        access.apply(target)
    used.stop()
    target.stop()
    state = used.save()
    assert used.save() == state
    assert type(state) is used.state_type
    assert Section.save(used.name, state).load(used.state_type) == state
    target.load(state)
    assert target.save() == state
    for offset in range(0, 0x140, 4):
        assert target.mmio_read(offset, 4) == used.mmio_read(offset, 4)


@every_device
def test_reset_is_a_fresh_device_and_lowers_the_line(make: Make) -> None:
    fresh = rig(make, FakeRam(RAM_SIZE_BYTES)).device.save()
    driver = set_up(make, FakeRam(RAM_SIZE_BYTES))
    driver.queues[0].offer(0xFFFF)
    driver.kick(0)
    for _ in range(2):
        driver.device.reset()
        assert driver.device.save() == fresh
        assert not driver.line.level


@every_device
def test_start_and_stop_come_in_any_number_and_change_no_state(make: Make) -> None:
    driver = set_up(make, FakeRam(RAM_SIZE_BYTES))
    state = driver.device.save()
    for _ in range(2):
        driver.device.start()
        driver.device.stop()
        driver.device.stop()
    assert driver.device.save() == state
    driver.device.close()
    driver.device.close()


@every_device
def test_stopped_device_leaves_the_rings_alone(make: Make) -> None:
    driver = set_up(make, FakeRam(RAM_SIZE_BYTES))
    driver.device.stop()
    before = [used_part(driver.ram, queue) for queue in driver.queues]
    for queue in driver.queues:
        queue.offer(0)
        driver.kick(queue.index)
    driver.loop.run()
    assert [used_part(driver.ram, queue) for queue in driver.queues] == before


@every_device
def test_driver_that_polls_needs_no_interrupt_line(make: Make) -> None:
    driver = set_up(make, FakeRam(RAM_SIZE_BYTES))
    driver.queues[-1].offer(0xFFFF)
    driver.kick(len(driver.queues) - 1)
    assert driver.needs_reset
    assert driver.read(mmio.INTERRUPT_STATUS) == 2


def _abuse(make: Make, seed: int, chains: int) -> tuple[int, int]:
    """Post `chains` malformed chains, resetting as a driver would.

    Returns how often the device broke, and how many chains were good enough to be served.
    """
    ram = FakeRam(RAM_SIZE_BYTES)
    driver = set_up(make, ram)
    fuzzer = RingFuzzer(driver, seed)
    features, free, broken, served = driver.offered(), driver.free, 0, 0
    for number in range(chains):
        queue = driver.queues[number % len(driver.queues)]
        fuzzer.post(queue)
        driver.kick(queue.index)
        driver.loop.run()
        something_arrives(driver.device, number)
        served += len(queue.reap())
        if driver.needs_reset:
            broken += 1
            assert driver.device.broken_reason
            for old in driver.queues:
                ram.write(old.desc, bytes(old.end - old.desc))
            driver.free = ram.start
            driver.set_up(features, size=queue.size)
            driver.free = free
    assert ram.red_zones_are_intact()
    return broken, served


@every_device
def test_malformed_chains_never_leave_guest_ram_nor_raise(case: VirtioCase, make: Make) -> None:
    broken, served = _abuse(make, 1, FUZZ_CHAINS)
    assert broken > FUZZ_CHAINS // 10
    assert served > FUZZ_CHAINS // 5 or case.name == "net, full tap"


@pytest.mark.long
@pytest.mark.timeout(600)
@every_device
def test_malformed_chains_never_leave_guest_ram_nor_raise_long(make: Make) -> None:
    broken, _ = _abuse(make, 2, FUZZ_CHAINS_LONG)
    assert broken > FUZZ_CHAINS_LONG // 10


@every_device
@fuzz
@given(seed=st.integers(0, 1 << 32))
def test_malformed_chains_of_any_seed(make: Make, seed: int) -> None:
    _abuse(make, seed, 20)
