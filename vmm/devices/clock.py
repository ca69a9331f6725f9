"""cpr-clock: CLOCK_MONOTONIC of the host, by port, for guests that want to know what time it is.

Ports 0xe00..0xeff, which no PC device uses: 8 for each vCPU (vCPU v at 0xe00 + 8 v), so that two
vCPUs never mix their halves:

    +0  32-bit read: latches the clock (ns) and gives the low 32 bits
    +4  32-bit read: the high 32 bits of what was latched

Other sizes and offsets read the latched value's bytes without latching; writes are ignored.

Both processes of an update read the same clock of the same host, so guest time goes on and never
jumps back. What is latched but not yet read is the only state.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

from cpr.vmstate import VmState
from vmm.errors import DeviceError

CLOCK_PORT = 0xE00
PORTS_PER_VCPU = 8
CLOCK_VCPUS_MAX = 32  # 256 ports
_MASK_64 = 0xFFFF_FFFF_FFFF_FFFF


@dataclass(frozen=True, kw_only=True, slots=True)
class ClockState(VmState):
    """The latched times in nanoseconds, one for each vCPU."""

    NAME: ClassVar[str] = "cpr-clock"
    VERSION: ClassVar[int] = 1
    READS_FROM: ClassVar[int] = 1

    latched_ns: tuple[int, ...]


class Clock:
    """A PortDevice without interrupts; a latch belongs to one vCPU, so there is no lock."""

    TRANSIENT: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, vcpu_count: int, name: str = "clock") -> None:
        """Raise DeviceError if there are more vCPUs than ports."""
        if not 1 <= vcpu_count <= CLOCK_VCPUS_MAX:
            raise DeviceError(f"{name}: expected 1..{CLOCK_VCPUS_MAX} vCPUs, got {vcpu_count}")
        self.name = name
        self.ports = range(CLOCK_PORT, CLOCK_PORT + vcpu_count * PORTS_PER_VCPU)
        self._latched = [0] * vcpu_count

    @property
    def state_type(self) -> type[VmState]:
        """ClockState."""
        return ClockState

    def port_read(self, offset: int, size: int) -> int:
        """See the module's text."""
        if size == 4:
            if not offset & 7:
                now = time.monotonic_ns()
                self._latched[offset >> 3] = now
                return now & 0xFFFF_FFFF
            if offset & 7 == 4:
                return self._latched[offset >> 3] >> 32
        latched = self._latched[offset >> 3] >> 8 * (offset & 7)
        return latched & ((1 << 8 * size) - 1)

    def port_write(self, offset: int, size: int, value: int) -> None:
        """Nobody sets the host's clock."""

    def start(self) -> None:
        """Nothing to do: there is no host thread or loop callback behind the device."""

    def stop(self) -> None:
        """Nothing to do."""

    def save(self) -> ClockState:
        """See ClockState."""
        return ClockState(latched_ns=tuple(self._latched))

    def load(self, state: VmState) -> None:
        """DeviceError if the sender has another number of vCPUs, or a latch is no 64-bit time."""
        assert isinstance(state, ClockState)
        if len(state.latched_ns) != len(self._latched):
            raise DeviceError(
                f"{self.name}: state has {len(state.latched_ns)} vCPUs, this machine has "
                f"{len(self._latched)}"
            )
        if any(not 0 <= value <= _MASK_64 for value in state.latched_ns):
            raise DeviceError(f"{self.name}: a latched time is not an unsigned 64-bit number")
        self._latched = list(state.latched_ns)

    def reset(self) -> None:
        """Forget what was latched."""
        self._latched = [0] * len(self._latched)

    def close(self) -> None:
        """Nothing to release."""
