"""MC146818: the clock chip of a PC and its CMOS memory, at ports 0x70 (index) and 0x71 (data).

It tells UTC, as QEMU's default `-rtc base=utc`. A guest that sets it keeps its own time: the state
is the difference to the host's clock. Reading is instantaneous, so "update in progress" is never
seen, and there are no alarms: no interrupt leads anywhere. Registers: MC146818 data sheet.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar

from cpr.vmstate import VmState
from vmm.devices.bus import ALL_ONES
from vmm.errors import DeviceError

RTC_PORTS = range(0x70, 0x72)
CMOS_SIZE_BYTES = 128
_INDEX_MASK = 0x7F  # bit 7 masks NMI on a PC; there is none to mask

_SECONDS, _MINUTES, _HOURS, _WEEKDAY, _DAY, _MONTH, _YEAR, _CENTURY = 0, 2, 4, 6, 7, 8, 9, 0x32
_TIME_REGISTERS = (_SECONDS, _MINUTES, _HOURS, _WEEKDAY, _DAY, _MONTH, _YEAR, _CENTURY)
_REG_A, _REG_B, _REG_C, _REG_D = 10, 11, 12, 13
_A_RESET = 0x26  # 32.768 kHz, 1024 Hz periodic rate
_A_UPDATING = 0x80
_B_SET, _B_BINARY, _B_24_HOURS = 0x80, 0x04, 0x02
_D_VALID = 0x80
_PM, _NOON = 0x80, 12
# What a century and a year register can tell, and a calendar has; beyond it the clock stands still.
_FIRST_S = int(datetime(1, 1, 1, tzinfo=UTC).timestamp())
_LAST_S = int(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp())
_OFFSET_MAX_S = _LAST_S - _FIRST_S


@dataclass(frozen=True, kw_only=True, slots=True)
class RtcState(VmState):
    """`offset_s` is guest time minus host time; while the guest sets the clock it stands still."""

    NAME: ClassVar[str] = "mc146818"
    VERSION: ClassVar[int] = 1
    READS_FROM: ClassVar[int] = 1

    index: int
    cmos: bytes
    offset_s: int


class Rtc:
    """`now` gives seconds since 1970, UTC."""

    TRANSIENT: ClassVar[frozenset[str]] = frozenset({"_lock", "_now"})

    def __init__(self, now: Callable[[], float] = time.time, name: str = "rtc") -> None:
        self.name = name
        self.ports = RTC_PORTS
        self._now = now
        self._lock = threading.Lock()
        self._index = 0
        self._cmos = _fresh_cmos()
        self._offset_s = 0

    @property
    def state_type(self) -> type[VmState]:
        """RtcState."""
        return RtcState

    def port_read(self, offset: int, size: int) -> int:
        """The index port cannot be read; the data port gives one byte."""
        if offset == 0:
            return ALL_ONES[size]
        with self._lock:
            return ALL_ONES[size] & ~0xFF | self._read()

    def port_write(self, offset: int, size: int, value: int) -> None:
        """A 16-bit write to the index port writes both."""
        with self._lock:
            if offset == 0:
                self._index = value & _INDEX_MASK
                if size > 1:
                    self._write(value >> 8 & 0xFF)
            else:
                self._write(value & 0xFF)

    def _read(self) -> int:
        if self._index in _TIME_REGISTERS and not self._stands_still:
            return self._shown_time()[self._index]
        value = self._cmos[self._index]
        if self._index == _REG_C:
            self._cmos[_REG_C] = 0
        return value

    def _write(self, value: int) -> None:
        if self._index in (_REG_C, _REG_D):
            return  # read-only
        if self._index == _REG_A:
            self._cmos[_REG_A] = value & ~_A_UPDATING
        elif self._index == _REG_B:
            self._write_control(value)
        elif self._index in _TIME_REGISTERS and not self._stands_still:
            self._take_time({**self._shown_time(), self._index: value})
        else:
            self._cmos[self._index] = value

    def _write_control(self, value: int) -> None:
        """SET stops the clock so that a guest can write all registers; clearing it starts anew.

        Only then do the registers hold a time; otherwise it follows from the host's clock.
        """
        stood_still, shown = self._stands_still, self._shown_time()
        self._cmos[_REG_B] = value
        if self._stands_still and not stood_still:
            for register, content in shown.items():
                self._cmos[register] = content
        elif stood_still and not self._stands_still:
            self._take_time({register: self._cmos[register] for register in _TIME_REGISTERS})
            for register in _TIME_REGISTERS:
                self._cmos[register] = 0

    @property
    def _stands_still(self) -> bool:
        return bool(self._cmos[_REG_B] & _B_SET)

    def _shown_time(self) -> dict[int, int]:
        """The time registers of this moment, as register B wants them."""
        guest_s = int(self._now()) + self._offset_s
        t = datetime.fromtimestamp(min(max(guest_s, _FIRST_S), _LAST_S), UTC)
        in_24_hours = self._cmos[_REG_B] & _B_24_HOURS
        values = {
            _SECONDS: t.second,
            _MINUTES: t.minute,
            _HOURS: t.hour if in_24_hours else (t.hour + 11) % 12 + 1,
            _WEEKDAY: t.isoweekday() % 7 + 1,  # 1 is Sunday
            _DAY: t.day,
            _MONTH: t.month,
            _YEAR: t.year % 100,
            _CENTURY: t.year // 100,
        }
        shown = {register: self._coded(value) for register, value in values.items()}
        if not in_24_hours and t.hour >= _NOON:
            shown[_HOURS] |= _PM
        return shown

    def _take_time(self, written: Mapping[int, int]) -> None:
        """Follow what the guest wrote; a date that does not exist leaves the clock as it was."""
        plain = {register: self._plain(value) for register, value in written.items()}
        hour = plain[_HOURS]
        if not self._cmos[_REG_B] & _B_24_HOURS:
            hour = self._plain(written[_HOURS] & ~_PM) % _NOON
            hour += _NOON if written[_HOURS] & _PM else 0
        try:
            wanted = datetime(
                plain[_CENTURY] * 100 + plain[_YEAR],
                plain[_MONTH],
                plain[_DAY],
                hour,
                plain[_MINUTES],
                plain[_SECONDS],
                tzinfo=UTC,
            )
        except ValueError:
            return
        self._offset_s = int(wanted.timestamp()) - int(self._now())

    def _coded(self, value: int) -> int:
        return value if self._cmos[_REG_B] & _B_BINARY else value // 10 << 4 | value % 10

    def _plain(self, value: int) -> int:
        return value if self._cmos[_REG_B] & _B_BINARY else (value >> 4) * 10 + (value & 0x0F)

    def start(self) -> None:
        """Nothing to do."""

    def stop(self) -> None:
        """Nothing to do."""

    def save(self) -> RtcState:
        """See RtcState."""
        return RtcState(index=self._index, cmos=bytes(self._cmos), offset_s=self._offset_s)

    def load(self, state: VmState) -> None:
        """DeviceError for values that this chip cannot hold."""
        assert isinstance(state, RtcState)
        if len(state.cmos) != CMOS_SIZE_BYTES:
            raise DeviceError(
                f"{self.name}: cmos has {len(state.cmos)} bytes, expected {CMOS_SIZE_BYTES}"
            )
        if not 0 <= state.index <= _INDEX_MASK or abs(state.offset_s) > _OFFSET_MAX_S:
            raise DeviceError(
                f"{self.name}: index {state.index} and offset_s {state.offset_s}, expected at most "
                f"{_INDEX_MASK} and {_OFFSET_MAX_S}"
            )
        self._index = state.index
        self._cmos = bytearray(state.cmos)
        self._offset_s = state.offset_s

    def reset(self) -> None:
        """The battery keeps the time and the memory; the reset line clears what can interrupt."""
        self._index = 0
        self._cmos[_REG_B] &= _B_SET | _B_BINARY | _B_24_HOURS
        self._cmos[_REG_C] = 0

    def close(self) -> None:
        """Nothing to release."""


def _fresh_cmos() -> bytearray:
    cmos = bytearray(CMOS_SIZE_BYTES)
    cmos[_REG_A], cmos[_REG_B], cmos[_REG_D] = _A_RESET, _B_24_HOURS, _D_VALID
    return cmos
