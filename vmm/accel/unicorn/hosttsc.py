"""The host's time stamp counter, as Unicorn's guests see it before their offset is added."""

from __future__ import annotations

import time
from typing import Protocol

from vmm.accel.tsc import TscReading

_CYCLES_PER_NS_TO_KHZ = 1_000_000
# The frequency is the slope since the first sample, so that one must not have been interrupted
# between its two clocks: of this many, the tightest counts.
_FIRST_SAMPLES = 5


class TscSource(Protocol):
    """Reads the counter; layout.Probe is one."""

    def read_tsc(self) -> int:
        """Cycles."""
        ...


class HostTsc:
    """The counter beside CLOCK_MONOTONIC, and its frequency as measured since the start."""

    def __init__(self, source: TscSource) -> None:
        self._source = source
        samples = [self._sample() for _ in range(_FIRST_SAMPLES)]
        _, self._first_ns, self._first_tsc = min(samples)

    def read(self) -> tuple[int, int]:
        """(CLOCK_MONOTONIC in ns, counter in cycles), the clock read just before the counter."""
        host_ns = time.monotonic_ns()
        return host_ns, self._source.read_tsc()

    def reading(self) -> TscReading:
        """Now, with the frequency: some microseconds off over the time since the start."""
        host_ns, host_tsc = self.read()
        elapsed_ns = max(1, host_ns - self._first_ns)
        khz = (host_tsc - self._first_tsc) * _CYCLES_PER_NS_TO_KHZ // elapsed_ns
        return TscReading(host_tsc, host_ns, khz)

    def _sample(self) -> tuple[int, int, int]:
        """(how long it took in ns, clock, counter)."""
        host_ns, host_tsc = self.read()
        return time.monotonic_ns() - host_ns, host_ns, host_tsc
