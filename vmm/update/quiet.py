"""Keep Python's own housekeeping out of the guest's time.

A full garbage collection holds the interpreter lock for milliseconds, and every device exit of the
guest waits for that lock. So a process collects once before its guest first runs and freezes what
is left; later collections see only what is younger. During an update there are none at all.
"""

from __future__ import annotations

import gc


def settle_heap() -> None:
    """Collect and freeze; called while no guest runs in this process."""
    gc.collect()
    gc.freeze()


def begin_quiet() -> None:
    """No collection from here on."""
    gc.disable()


def end_quiet() -> None:
    """Collections again; called when the guest runs, here or there."""
    gc.enable()
