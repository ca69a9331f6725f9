"""The signal that brings a vCPU thread out of the kernel.

Only its delivery matters: it makes KVM_RUN return with EINTR (KVM API, 4.10). The handler must be a
Python no-op, not SIG_IGN, because an ignored signal interrupts nothing.
"""

from __future__ import annotations

import signal

KICK_SIGNAL = signal.SIGUSR1


def install_kick_handler() -> None:
    """Install the no-op handler; called once, on the main thread, before any vCPU runs."""
    signal.signal(KICK_SIGNAL, lambda _number, _frame: None)
