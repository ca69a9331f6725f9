"""isa-debug-exit: a guest's write of `value` ends the VMM with status (value << 1) | 1, as in QEMU.

The status is never 0, so a test harness can tell the guest's verdict from an ordinary exit. Reads
give 0. There is no state; the section is there so that both sides agree that the device exists.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from cpr.vmstate import VmState


@dataclass(frozen=True, kw_only=True, slots=True)
class DebugExitState(VmState):
    """Nothing."""

    NAME: ClassVar[str] = "isa-debug-exit"
    VERSION: ClassVar[int] = 1
    READS_FROM: ClassVar[int] = 1


class DebugExit:
    """`on_exit(status)` is called on the vCPU's thread; it must only post to the loop."""

    TRANSIENT: ClassVar[frozenset[str]] = frozenset({"_on_exit"})

    def __init__(
        self, iobase: int, iosize: int, on_exit: Callable[[int], None], name: str = "debug-exit0"
    ) -> None:
        self.name = name
        self.ports = range(iobase, iobase + iosize)
        self._on_exit = on_exit

    @property
    def state_type(self) -> type[VmState]:
        """DebugExitState."""
        return DebugExitState

    def port_read(self, offset: int, size: int) -> int:
        """Reads are 0."""
        return 0

    def port_write(self, offset: int, size: int, value: int) -> None:
        """Ask for the end of the process."""
        self._on_exit((value << 1) | 1)

    def start(self) -> None:
        """Nothing to do."""

    def stop(self) -> None:
        """Nothing to do."""

    def save(self) -> DebugExitState:
        """See DebugExitState."""
        return DebugExitState()

    def load(self, state: VmState) -> None:
        """Nothing to load."""
        assert isinstance(state, DebugExitState)

    def reset(self) -> None:
        """Nothing to reset."""

    def close(self) -> None:
        """Nothing to release."""
