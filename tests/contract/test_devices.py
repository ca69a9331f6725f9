"""Every device of CASES against the contract of `device_contract`."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from cpr.vmstate import Section
from tests.contract.device_contract import (
    ACCESSES,
    CASES,
    SIZES,
    Access,
    DeviceCase,
    attributes,
    unlisted_resources,
)

every_device = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
fuzz = settings(max_examples=60, deadline=None)


@every_device
@fuzz
@given(accesses=ACCESSES)
def test_state_after_load_equals_the_saved_one_whatever_was_there_before(
    case: DeviceCase, accesses: list[Access]
) -> None:
    used, target = case.make(), case.make()
    for access in accesses:
        access.apply(used)
    for access in reversed(accesses):
        access.apply(target)
    state = used.save()
    target.load(state)
    assert target.save() == state
    assert attributes(target) == attributes(used)


@every_device
@fuzz
@given(accesses=ACCESSES)
def test_state_survives_the_wire_and_save_changes_nothing(
    case: DeviceCase, accesses: list[Access]
) -> None:
    device = case.make()
    for access in accesses:
        access.apply(device)
    before = attributes(device)
    state = device.save()
    assert attributes(device) == before
    assert type(state) is device.state_type
    assert Section.save(device.name, state).load(device.state_type) == state


@every_device
@fuzz
@given(accesses=ACCESSES)
def test_loaded_device_answers_like_the_saved_one(case: DeviceCase, accesses: list[Access]) -> None:
    used, target = case.make(), case.make()
    for access in accesses:
        access.apply(used)
    target.load(used.save())
    for position in range(len(used.ports)):
        if case.name == "clock" and position % 8 == 0:
            continue  # this read is the time itself
        probe = Access(position, 1, None)
        assert probe.apply(target) == probe.apply(used)


@every_device
@fuzz
@given(accesses=ACCESSES)
def test_reads_fit_their_size(case: DeviceCase, accesses: list[Access]) -> None:
    device = case.make()
    for access in accesses:
        value = access.apply(device)
        if value is not None:
            assert 0 <= value < 1 << 8 * access.size


@every_device
def test_every_port_takes_every_size_in_both_directions(case: DeviceCase) -> None:
    device = case.make()
    for offset in range(len(device.ports)):
        for size in SIZES:
            assert 0 <= device.port_read(offset, size) < 1 << 8 * size
            device.port_write(offset, size, (1 << 8 * size) - 1)


@every_device
def test_reset_twice_is_reset_once_and_load_of_it_is_a_fresh_device(case: DeviceCase) -> None:
    device, fresh = case.make(), case.make()
    device.reset()
    once = device.save()
    device.reset()
    assert device.save() == once == fresh.save()


@every_device
def test_start_and_stop_come_in_any_number_and_change_no_state(case: DeviceCase) -> None:
    device = case.make()
    state = device.save()
    for _ in range(2):
        device.start()
        device.stop()
        device.stop()
    assert device.save() == state
    device.close()


@every_device
def test_what_cannot_be_saved_is_listed_as_transient(case: DeviceCase) -> None:
    assert unlisted_resources(case.make()) == []


def test_section_names_are_different() -> None:
    devices = [case.make() for case in CASES if "blocked" not in case.name]
    assert len({device.name for device in devices}) == len(devices)
