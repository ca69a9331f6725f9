"""Idle processors stay awake while the guest changes hands.

A hand-over is a chain of short waits: for a vCPU to leave, for the peer to read, for its answer. A
processor that fell asleep in one of them takes some 50 µs to wake up (more on a virtual machine),
and there are five of them in a blackout. The kernel's PM QoS interface lets a process ask that idle
processors stay ready for as long as it holds a file open (pm_qos_interface.rst, "cpu_dma_latency").

The file is root's. A process that may not open it goes without: the hand-over is the same, only
slower, and the timeline of the update says which it was.
"""

from __future__ import annotations

import contextlib
import io
import struct

_DEVICE = "/dev/cpu_dma_latency"
_NO_LATENCY_US = struct.pack("i", 0)


class Wakefulness:
    """Asked for with `begin`, over with `end`; both are harmless when repeated."""

    def __init__(self) -> None:
        self._request: io.FileIO | None = None

    @property
    def granted(self) -> bool:
        """Whether processors stay awake for us now."""
        return self._request is not None

    def begin(self) -> bool:
        """Ask; whether they do. Without permission nothing happens."""
        if self._request is None:
            with contextlib.suppress(OSError), contextlib.ExitStack() as undo:
                request = undo.enter_context(io.FileIO(_DEVICE, "w"))
                request.write(_NO_LATENCY_US)
                self._request = request
                undo.pop_all()
        return self.granted

    def end(self) -> None:
        """Let them sleep again."""
        if self._request is not None:
            self._request.close()
            self._request = None
