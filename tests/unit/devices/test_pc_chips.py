"""Clock chip, reset line and power switch, as an operating system uses them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from vmm.devices.acpi_sleep import AcpiSleep, AcpiSleepState
from vmm.devices.keyboard_controller import KeyboardController, KeyboardControllerState
from vmm.devices.rtc import Rtc, RtcState
from vmm.errors import DeviceError

NOW = datetime(2026, 11, 26, 15, 4, 59, tzinfo=UTC)


class Chip:
    """An RTC with a host clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = NOW.timestamp()
        self.rtc = Rtc(lambda: self.now_s)

    def read(self, register: int) -> int:
        self.rtc.port_write(0, 1, register)
        return self.rtc.port_read(1, 1)

    def write(self, register: int, value: int) -> None:
        self.rtc.port_write(0, 1, register)
        self.rtc.port_write(1, 1, value)

    def time(self) -> tuple[int, ...]:
        """Century, year, month, day, weekday, hour, minute, second."""
        return tuple(self.read(register) for register in (0x32, 9, 8, 7, 6, 4, 2, 0))


def test_the_time_is_utc_in_bcd_and_never_being_updated() -> None:
    chip = Chip()
    assert chip.time() == (0x20, 0x26, 0x11, 0x26, 5, 0x15, 0x04, 0x59)
    chip.now_s += 1
    assert chip.time()[-2:] == (0x05, 0x00)
    assert chip.read(10) & 0x80 == 0
    assert chip.read(13) == 0x80


def test_binary_and_12_hours_are_shown_when_asked_for() -> None:
    chip = Chip()
    chip.write(11, 0x04)
    assert chip.time() == (20, 26, 11, 26, 5, 0x80 | 3, 4, 59)
    chip.now_s += 9 * 3600  # four minutes past midnight
    assert chip.read(4) == 12
    chip.write(4, 0x80 | 12)  # noon
    chip.write(11, 0x06)
    assert chip.read(4) == 12


@pytest.mark.parametrize("stop_first", [False, True])
def test_a_guest_sets_the_clock_and_it_runs_on_from_there(stop_first: bool) -> None:
    chip = Chip()
    if stop_first:
        chip.write(11, 0x82)
        chip.now_s += 100  # stands still meanwhile
        assert chip.read(0) == 0x59
    for register, value in ((9, 0x30), (8, 0x02), (7, 0x03), (4, 0x01), (2, 0x02), (0, 0x03)):
        chip.write(register, value)
    if stop_first:
        chip.write(11, 0x02)
    assert chip.time() == (0x20, 0x30, 0x02, 0x03, 1, 0x01, 0x02, 0x03)
    chip.now_s += 60
    successor = Chip()
    successor.now_s = chip.now_s
    successor.rtc.load(chip.rtc.save())
    assert successor.time() == (0x20, 0x30, 0x02, 0x03, 1, 0x01, 0x03, 0x03)


def test_a_date_that_does_not_exist_changes_nothing() -> None:
    chip = Chip()
    chip.write(8, 0x13)
    chip.write(7, 0x00)
    assert chip.time() == (0x20, 0x26, 0x11, 0x26, 5, 0x15, 0x04, 0x59)


def test_a_clock_at_the_end_of_the_calendar_does_not_fail() -> None:
    chip = Chip()
    written = ((0x32, 0x99), (9, 0x99), (8, 0x12), (7, 0x31), (4, 0x23), (2, 0x59), (0, 0x59))
    for register, value in written:
        chip.write(register, value)
    chip.now_s += 10
    assert chip.time() == (0x99, 0x99, 0x12, 0x31, 6, 0x23, 0x59, 0x59)
    for offset_s in (-300_000_000_000, 300_000_000_000):
        chip.rtc.load(RtcState(index=0, cmos=bytes(128), offset_s=offset_s))
        assert all(0 <= value <= 0xFF for value in chip.time())


def test_cmos_memory_keeps_its_bytes_over_reset_and_what_is_fixed_stays() -> None:
    chip = Chip()
    chip.write(0x40, 0xA5)
    chip.write(13, 0)
    chip.rtc.port_write(0, 2, 0x5A41)  # index and data in one access
    chip.rtc.reset()
    assert (chip.read(0x40), chip.read(0x41), chip.read(13)) == (0xA5, 0x5A, 0x80)


def test_the_index_port_reads_all_ones() -> None:
    assert Rtc().port_read(0, 2) == 0xFFFF


@pytest.mark.parametrize(
    "state",
    [
        RtcState(index=0, cmos=bytes(127), offset_s=0),
        RtcState(index=128, cmos=bytes(128), offset_s=0),
        RtcState(index=0, cmos=bytes(128), offset_s=1 << 60),
    ],
)
def test_a_clock_state_that_cannot_be_is_refused(state: RtcState) -> None:
    with pytest.raises(DeviceError, match="rtc: "):
        Rtc().load(state)


def test_both_ways_to_the_reset_line() -> None:
    resets: list[int] = []
    chip = KeyboardController(lambda: resets.append(1))
    assert chip.port_read(4, 1) == 1  # nothing stands in the way of the next command
    chip.port_write(4, 1, 0xFE)
    assert len(resets) == 1
    chip.port_write(0, 1, 0)  # data without a command
    chip.port_write(4, 1, 0xD1)
    successor = KeyboardController(lambda: resets.append(2))
    successor.load(chip.save())
    successor.port_write(0, 1, 0x01)  # the reset line stays high
    assert len(resets) == 1
    chip.port_write(0, 1, 0xFE)
    assert resets == [1, 1]
    with pytest.raises(DeviceError, match="pending_command is 7"):
        chip.load(KeyboardControllerState(pending_command=7))


def test_only_s5_with_sleep_enable_switches_off() -> None:
    offs: list[int] = []
    chip = AcpiSleep(lambda: offs.append(1))
    chip.port_write(1, 1, 0x80)  # clearing WAK_STS, as Linux does first
    chip.port_write(0, 1, 5 << 2)
    chip.port_write(0, 1, 3 << 2 | 0x20)
    assert not offs
    chip.port_write(0, 1, 5 << 2 | 0x20)
    assert offs == [1]
    assert (chip.port_read(0, 1), chip.port_read(1, 1)) == (5 << 2, 0)
    with pytest.raises(DeviceError, match="control is 32"):
        chip.load(AcpiSleepState(control=0x20))
