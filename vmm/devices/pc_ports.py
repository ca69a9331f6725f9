"""The two system ports that boot code touches on every PC: 0x80 (POST) and 0x92 (port A).

0x80 keeps the last byte written (progress codes; also the classic I/O delay). 0x92 reads back what
was written: bit 1 opens the A20 gate (always open here, reading as 1 after reset as firmware leaves
it), and bit 0 going from 0 to 1 resets the machine. The ports between are the DMA page registers of
a PC; there is no DMA controller, so they read all ones.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from cpr.vmstate import VmState
from vmm.devices.bus import ALL_ONES
from vmm.errors import DeviceError

POST_PORT = 0x80
PORT_A = 0x92
_FAST_RESET = 0x01
_A20 = 0x02


@dataclass(frozen=True, kw_only=True, slots=True)
class PcPortsState(VmState):
    """Last byte written to each port."""

    NAME: ClassVar[str] = "pc-ports"
    VERSION: ClassVar[int] = 1
    READS_FROM: ClassVar[int] = 1

    post_code: int
    port_a: int


class PcPorts:
    """`on_reset` is called on the vCPU's thread; it must only post the request to the loop."""

    TRANSIENT: ClassVar[frozenset[str]] = frozenset({"_lock", "_on_reset"})

    def __init__(self, on_reset: Callable[[], None], name: str = "pc-ports") -> None:
        self.name = name
        self.ports = range(POST_PORT, PORT_A + 1)
        self._on_reset = on_reset
        self._lock = threading.Lock()
        self._post_code = 0
        self._port_a = _A20

    @property
    def state_type(self) -> type[VmState]:
        """PcPortsState."""
        return PcPortsState

    def port_read(self, offset: int, size: int) -> int:
        """Byte registers; the bytes of a wider read beyond the first are all ones."""
        port = POST_PORT + offset
        if port == POST_PORT:
            return ALL_ONES[size] & ~0xFF | self._post_code
        if port == PORT_A:
            return ALL_ONES[size] & ~0xFF | self._port_a
        return ALL_ONES[size]

    def port_write(self, offset: int, size: int, value: int) -> None:
        """Only the low byte counts."""
        port = POST_PORT + offset
        value &= 0xFF
        if port == POST_PORT:
            self._post_code = value
        elif port == PORT_A:
            with self._lock:
                rising = value & ~self._port_a & _FAST_RESET
                self._port_a = value
            if rising:
                self._on_reset()

    def start(self) -> None:
        """Nothing to do."""

    def stop(self) -> None:
        """Nothing to do."""

    def save(self) -> PcPortsState:
        """See PcPortsState."""
        return PcPortsState(post_code=self._post_code, port_a=self._port_a)

    def load(self, state: VmState) -> None:
        """DeviceError if a value is not a byte."""
        assert isinstance(state, PcPortsState)
        for what, value in (("post_code", state.post_code), ("port_a", state.port_a)):
            if not 0 <= value <= 0xFF:
                raise DeviceError(f"{self.name}: {what} is {value}, expected a byte")
        self._post_code = state.post_code
        self._port_a = state.port_a

    def reset(self) -> None:
        """A20 open, no reset pending."""
        self._post_code = 0
        self._port_a = _A20

    def close(self) -> None:
        """Nothing to release."""
