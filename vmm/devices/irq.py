"""Interrupt lines between devices and the interrupt controller.

Several devices may share one input (COM1 and COM3 have IRQ 4): the input is high while any of them
is. Without a controller (kernel-irqchip=off, unicorn) a line leads nowhere and the guest polls.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

SetLevel = Callable[[bool], None]


def unconnected(_level: bool) -> None:
    """A line that leads nowhere."""


class IrqLines:
    """Gives devices their lines; `controller_input(gsi)` is None where there is no controller."""

    def __init__(self, controller_input: Callable[[int], SetLevel | None]) -> None:
        self._controller_input = controller_input
        self._shared: dict[int, _SharedInput] = {}

    def connect(self, gsi: int) -> SetLevel:
        """One more device's line to input `gsi`; call it with the level, on any thread."""
        shared = self._shared.get(gsi)
        if shared is None:
            drive = self._controller_input(gsi)
            if drive is None:
                return unconnected
            shared = self._shared[gsi] = _SharedInput(drive)
        return shared.add()


class _SharedInput:
    """The OR of all lines that lead to one input."""

    def __init__(self, drive: SetLevel) -> None:
        self._drive = drive
        self._lock = threading.Lock()  # devices drive from vCPU threads and from the loop's
        self._levels: list[bool] = []

    def add(self) -> SetLevel:
        index = len(self._levels)
        self._levels.append(False)

        def set_level(level: bool) -> None:
            with self._lock:
                self._levels[index] = level
                self._drive(any(self._levels))

        return set_level
