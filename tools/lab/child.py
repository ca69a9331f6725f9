"""What a VMM process becomes between fork and exec: where it lives, who it is, when it dies.

The order matters: a namespace is entered while we still may; the user changes next, and all
capabilities go with it; no_new_privs makes that final; the death signal comes last, because the
kernel clears it when credentials change.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

import prctl


@dataclass(frozen=True, slots=True)
class ChildSetup:
    """How to start a process. `uid` (also its group) needs root; None keeps ours."""

    entrance: Callable[[], None] | None = None  # NetworkNamespace.entrance()
    uid: int | None = None
    no_new_privs: bool = False

    def apply(self) -> None:
        """Run in the child, which has one thread; raises OSError, and then nothing is started."""
        if self.entrance is not None:
            self.entrance()
        if self.uid is not None:
            os.setgroups([])
            os.setresgid(self.uid, self.uid, self.uid)
            os.setresuid(self.uid, self.uid, self.uid)
        if self.no_new_privs:
            prctl.set_no_new_privs(1)
        prctl.set_pdeathsig(signal.SIGKILL)  # with its launcher


PLAIN_CHILD = ChildSetup()
