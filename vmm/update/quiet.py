"""Keep Python's own housekeeping out of the guest's time.

A full garbage collection holds the interpreter lock for milliseconds, and every device exit of the
guest waits for that lock. So a process collects once before its guest first runs and freezes what
is left; later collections see only what is younger. During an update there are none at all.
"""

from __future__ import annotations

import gc


def settle_heap() -> None:
    """Collect and freeze; takes many milliseconds of processor.

    A process that boots does it before its guest runs, a successor before anybody can begin an
    update: later its collection would take a processor from the guest in the old process.
    """
    gc.collect()
    gc.freeze()


def keep_heap() -> None:
    """Freeze what is there without a collection; what a successor built is in use."""
    gc.freeze()


def begin_quiet() -> None:
    """No collection from here on."""
    gc.disable()


def end_quiet() -> None:
    """Collections again; called when the guest runs, here or there."""
    gc.enable()
