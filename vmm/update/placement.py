"""Each vCPU on a processor of its own while the guest changes hands.

The kernel puts a thread that wakes up where it ran last or where its waker runs. Two vCPUs that are
resumed together may so be queued on one processor beside one that is idle, until the load balancer
looks there at its next tick: measured, up to 4 ms (HZ=250), several times the blackout. With more
processors than vCPUs the kernel finds an idle one, so they are placed only where they leave none.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence

# After the guest has changed hands both processes have a few milliseconds of work left to do.
AFTERMATH_MS = 100
_MS_PER_S = 1000


class Placement:
    """Made with `begin`, over with `end` or `end_soon`; all are harmless when repeated."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._before: dict[int, set[int]] = {}
        self._ending: asyncio.TimerHandle | None = None

    def begin(self, thread_ids: Sequence[int]) -> None:
        """Spread these threads over the processors that they may use, in turn."""
        self._keep()
        if self._before or len(thread_ids) < 2:
            return
        allowed = {thread_id: os.sched_getaffinity(thread_id) for thread_id in thread_ids}
        processors = sorted(set.intersection(*allowed.values()))
        if not 1 < len(processors) <= len(thread_ids):
            return  # one to spare, or nothing to choose; or the user has placed them already
        self._before = allowed
        for number, thread_id in enumerate(thread_ids):
            os.sched_setaffinity(thread_id, {processors[number % len(processors)]})

    def end_soon(self) -> None:
        """`end`, but not before both processes have wound up."""
        self._keep()
        if self._before:
            self._ending = self._loop.call_later(AFTERMATH_MS / _MS_PER_S, self.end)

    def end(self) -> None:
        """Let them run where they might before."""
        self._keep()
        for thread_id, processors in self._before.items():
            with contextlib.suppress(ProcessLookupError):  # the machine was closed
                os.sched_setaffinity(thread_id, processors)
        self._before = {}

    def _keep(self) -> None:
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None
