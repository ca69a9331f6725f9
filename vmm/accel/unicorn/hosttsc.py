"""The host's time stamp counter, as Unicorn's guests see it before their offset is added."""

from __future__ import annotations

import time

from vmm.accel.kvm.tsc import TscReading
from vmm.accel.unicorn.layout import Probe

_CYCLES_PER_NS_TO_KHZ = 1_000_000


class HostTsc:
    """Read through a probe engine; its frequency is measured over the time since the start."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._first_ns, self._first_tsc = self.read()

    def read(self) -> tuple[int, int]:
        """(CLOCK_MONOTONIC in ns, host TSC in cycles), taken together."""
        host_ns = time.monotonic_ns()
        return host_ns, self._probe.read_tsc()

    def reading(self) -> TscReading:
        """Now, with the frequency: good to a microsecond over the time since the start."""
        host_ns, host_tsc = self.read()
        elapsed_ns = max(1, host_ns - self._first_ns)
        khz = (host_tsc - self._first_tsc) * _CYCLES_PER_NS_TO_KHZ // elapsed_ns
        return TscReading(host_tsc, host_ns, khz)
