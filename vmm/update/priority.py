"""Who may have the processor while a guest runs elsewhere: the guest.

A successor starts, imports and builds while the guest runs in the old process, often on the same
few cores, and an old process has work to do after the guest runs in the successor. Neither may take
time from the guest, so the loop's thread of either works in the background (nice 19) then.

A successor comes back before the rehearsal, so it goes there only if it may come back: that takes
CAP_SYS_NICE or RLIMIT_NICE (setpriority(2)). Without them it asks for SCHED_BATCH, which anybody
may leave again and which at least keeps it from pre-empting the guest on waking up (sched(7)).

On Linux priority is a thread's own and new threads inherit it, so coming back is for all of them.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

import prctl

BACKGROUND_NICE = 19
_NICE_CEILING = 20  # RLIMIT_NICE counts down from here


class Background:
    """The way to the background and back: `enter` before there are other threads."""

    def __init__(self) -> None:
        self._nice = os.getpriority(os.PRIO_PROCESS, 0)
        self._entered = False

    def enter(self) -> None:
        """Work in the background until `leave`."""
        self._entered = True
        if self._may_come_back():
            os.setpriority(os.PRIO_PROCESS, 0, BACKGROUND_NICE)
        else:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))

    def leave(self) -> None:
        """Be as before `enter`; again is harmless."""
        if not self._entered:
            return
        self._entered = False
        for task in Path("/proc/self/task").iterdir():
            thread_id = int(task.name)
            if os.sched_getscheduler(thread_id) == os.SCHED_BATCH:
                os.sched_setscheduler(thread_id, os.SCHED_OTHER, os.sched_param(0))
            else:
                os.setpriority(os.PRIO_PROCESS, thread_id, self._nice)

    def _may_come_back(self) -> bool:
        soft, _hard = resource.getrlimit(resource.RLIMIT_NICE)
        return bool(prctl.cap_effective.sys_nice) or soft >= _NICE_CEILING - self._nice


def stay_in_background() -> None:
    """The guest runs elsewhere and what is left here has time; not meant to be undone."""
    if os.getpriority(os.PRIO_PROCESS, 0) < BACKGROUND_NICE:
        os.setpriority(os.PRIO_PROCESS, 0, BACKGROUND_NICE)
