"""The guest's TSC across an update: it goes on counting as if nothing had happened.

On the host that saved it, the offset between guest and host TSC is carried and nothing can drift.
A state from elsewhere (another host, a file after a reboot, an accelerator without an offset) has a
value and the CLOCK_MONOTONIC of that moment; its TSC is moved on by the time that has passed since,
never back. This is arithmetic only; each accelerator reads and sets the counter in its own way.
"""

from __future__ import annotations

from dataclasses import dataclass

_NS_PER_S = 10**9
_KHZ_TO_HZ = 1000
_U64 = 2**64

# Two readings of one counter agree within the rounding of tsc_khz and the slewing of
# CLOCK_MONOTONIC (at most 500 ppm, clock_adjtime(2)); a second more is for a preempted reader.
# Another host's counter differs by its boot time, which is hardly ever within that.
_MAX_SLEW = 1 / 1000
_MAX_READER_DELAY_NS = _NS_PER_S


@dataclass(frozen=True, slots=True)
class TscReading:
    """The host's TSC at one moment of CLOCK_MONOTONIC, and its frequency."""

    host_tsc: int
    host_ns: int
    khz: int

    def host_tsc_at(self, host_ns: int) -> int:
        """The host's TSC at another moment, in cycles."""
        return self.host_tsc + self.cycles(host_ns - self.host_ns)

    def cycles(self, duration_ns: int) -> int:
        """TSC cycles in `duration_ns`."""
        return duration_ns * self.khz * _KHZ_TO_HZ // _NS_PER_S

    def offset_for(self, tsc: int, tsc_host_ns: int, tsc_offset: int | None, now_ns: int) -> int:
        """The offset (unsigned 64-bit) with which a saved TSC goes on at `now_ns`."""
        if tsc_offset is not None and self._is_of_this_host(tsc, tsc_host_ns, tsc_offset):
            return tsc_offset % _U64
        elapsed_cycles = self.cycles(max(0, now_ns - tsc_host_ns))
        return (tsc + elapsed_cycles - self.host_tsc_at(now_ns)) % _U64

    def _is_of_this_host(self, tsc: int, tsc_host_ns: int, tsc_offset: int) -> bool:
        difference = abs((tsc - tsc_offset) % _U64 - self.host_tsc_at(tsc_host_ns))
        allowed_ns = _MAX_READER_DELAY_NS + abs(tsc_host_ns - self.host_ns) * _MAX_SLEW
        return difference <= self.cycles(int(allowed_ns))
