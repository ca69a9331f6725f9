"""isa-debugcon: one port; every byte written to it goes to a character back-end.

A read gives 0xe9, by which guests detect it (as in Bochs and QEMU). The port has no "busy" that a
guest could ask for, so bytes that the back-end does not take are kept here and travel in the state.
When that backlog is full the byte is dropped and counted: a vCPU never waits for a log reader.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import ClassVar

from cpr.vmstate import VmState
from vmm.devices.chardev_base import CharBackend
from vmm.errors import DeviceError

DETECTED = 0xE9
# Enough for a burst of boot messages to a reader that is slow for a moment; small enough for state.
BACKLOG_MAX_BYTES = 64 << 10


@dataclass(frozen=True, kw_only=True, slots=True)
class DebugConsoleState(VmState):
    """Bytes not yet written, and how many were dropped since reset."""

    NAME: ClassVar[str] = "isa-debugcon"
    VERSION: ClassVar[int] = 1
    READS_FROM: ClassVar[int] = 1

    backlog: bytes
    dropped_bytes: int


class DebugConsole:
    """A PortDevice and CharFrontend without input."""

    TRANSIENT: ClassVar[frozenset[str]] = frozenset({"_lock", "_backend"})

    def __init__(
        self, backend: CharBackend, *, iobase: int = DETECTED, name: str = "debugcon0"
    ) -> None:
        self.name = name
        self.ports = range(iobase, iobase + 1)
        self._lock = threading.Lock()
        self._backend = backend
        self._backlog = bytearray()
        self._dropped_bytes = 0
        backend.attach(self)

    @property
    def state_type(self) -> type[VmState]:
        """DebugConsoleState."""
        return DebugConsoleState

    @property
    def dropped_bytes(self) -> int:
        """Bytes lost because nobody read for too long."""
        return self._dropped_bytes

    def port_read(self, offset: int, size: int) -> int:
        """The detection value."""
        return DETECTED

    def port_write(self, offset: int, size: int, value: int) -> None:
        """Write the low byte."""
        with self._lock:
            if len(self._backlog) < BACKLOG_MAX_BYTES:
                self._backlog.append(value & 0xFF)
            else:
                self._dropped_bytes += 1
            self._drain()

    def _drain(self) -> None:
        if self._backlog:
            del self._backlog[: self._backend.write(bytes(self._backlog))]

    def receive_capacity(self) -> int:
        """There is no input."""
        return 0

    def receive(self, data: bytes) -> None:
        """There is no input; never called, because the capacity is 0."""
        raise DeviceError(f"{self.name}: {len(data)} bytes came to a device without input")

    def writable(self) -> None:
        """Write what the back-end refused before."""
        with self._lock:
            self._drain()

    def start(self) -> None:
        """Connect to the outside and write what was loaded."""
        self._backend.start()
        with self._lock:
            self._drain()

    def stop(self) -> None:
        """The backlog stays here, for the state."""
        self._backend.stop()

    def save(self) -> DebugConsoleState:
        """See DebugConsoleState."""
        with self._lock:
            return DebugConsoleState(
                backlog=bytes(self._backlog), dropped_bytes=self._dropped_bytes
            )

    def load(self, state: VmState) -> None:
        """DeviceError if the backlog is longer than ours can be."""
        assert isinstance(state, DebugConsoleState)
        if len(state.backlog) > BACKLOG_MAX_BYTES:
            raise DeviceError(
                f"{self.name}: backlog of {len(state.backlog)} bytes, expected at most "
                f"{BACKLOG_MAX_BYTES}"
            )
        with self._lock:
            self._backlog = bytearray(state.backlog)
            self._dropped_bytes = state.dropped_bytes

    def reset(self) -> None:
        """Keep the backlog: it was written before the reset and still wants out."""

    def close(self) -> None:
        """The back-end belongs to the machine, which closes it."""
