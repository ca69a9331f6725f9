"""The 8042 at ports 0x60 and 0x64, as far as it is wired to the reset line.

There is no keyboard behind it. Its status always reads "output buffer full, input buffer empty":
with both empty a kernel that probes for a keyboard would wait for an answer, and with a full input
buffer one that wants a reset would wait before it asks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from cpr.vmstate import VmState
from vmm.devices.bus import ALL_ONES
from vmm.errors import DeviceError

DATA_PORT, COMMAND_PORT = 0x60, 0x64
_OUTPUT_BUFFER_FULL = 0x01
PULSE_RESET = 0xFE
_WRITE_OUTPUT_PORT = 0xD1  # the next data byte's bit 0 is the reset line, active low
_OUTPUT_NOT_RESET = 0x01


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyboardControllerState(VmState):
    """The command whose data byte is still to come; 0 = none."""

    NAME: ClassVar[str] = "i8042"
    VERSION: ClassVar[int] = 1
    READS_FROM: ClassVar[int] = 1

    pending_command: int


class KeyboardController:
    """`on_reset` is called on the vCPU's thread; it must only post the request to the loop."""

    TRANSIENT: ClassVar[frozenset[str]] = frozenset({"_lock", "_on_reset"})

    def __init__(self, on_reset: Callable[[], None], name: str = "i8042") -> None:
        self.name = name
        self.ports = range(DATA_PORT, COMMAND_PORT + 1)
        self._on_reset = on_reset
        self._lock = threading.Lock()
        self._pending_command = 0

    @property
    def state_type(self) -> type[VmState]:
        """KeyboardControllerState."""
        return KeyboardControllerState

    def port_read(self, offset: int, size: int) -> int:
        """Status and an empty data byte; the ports between are not ours and read all ones."""
        port = DATA_PORT + offset
        if port == COMMAND_PORT:
            return ALL_ONES[size] & ~0xFF | _OUTPUT_BUFFER_FULL
        if port == DATA_PORT:
            return ALL_ONES[size] & ~0xFF
        return ALL_ONES[size]

    def port_write(self, offset: int, size: int, value: int) -> None:
        """Only what moves the reset line does anything."""
        port = DATA_PORT + offset
        value &= 0xFF
        if port == COMMAND_PORT:
            with self._lock:
                self._pending_command = value if value == _WRITE_OUTPUT_PORT else 0
            if value == PULSE_RESET:
                self._on_reset()
        elif port == DATA_PORT:
            with self._lock:
                pending, self._pending_command = self._pending_command, 0
            if pending == _WRITE_OUTPUT_PORT and not value & _OUTPUT_NOT_RESET:
                self._on_reset()

    def start(self) -> None:
        """Nothing to do."""

    def stop(self) -> None:
        """Nothing to do."""

    def save(self) -> KeyboardControllerState:
        """See KeyboardControllerState."""
        return KeyboardControllerState(pending_command=self._pending_command)

    def load(self, state: VmState) -> None:
        """DeviceError for a command that takes no data byte."""
        assert isinstance(state, KeyboardControllerState)
        if state.pending_command not in (0, _WRITE_OUTPUT_PORT):
            raise DeviceError(
                f"{self.name}: pending_command is {state.pending_command}, expected 0 or "
                f"{_WRITE_OUTPUT_PORT}"
            )
        self._pending_command = state.pending_command

    def reset(self) -> None:
        """No command pending."""
        self._pending_command = 0

    def close(self) -> None:
        """Nothing to release."""
