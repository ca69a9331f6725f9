"""A real VMM process that is killed, or stopped, at one exact step of an update.

    python -m tests.framework.dying_vmm ROLE before|after ACTION SIGNAL -- the arguments of vmm

ROLE is source or target, ACTION a name of `cpr.handshake.Action`. The signal comes from the process
itself, so it hits the step exactly; nothing of the product knows about it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

from cpr.handshake import Action
from cpr.messages import Message
from vmm.__main__ import main
from vmm.update.source import SourceUpdate
from vmm.update.target import TargetUpdate

Perform = Callable[[Action, Message | None], None]


def command(role: str, when: str, action: Action, number: signal.Signals) -> tuple[str, ...]:
    """The command to give to the lab as a build."""
    module = "tests.framework.dying_vmm"
    return (sys.executable, "-m", module, role, when, action.name, number.name, "--")


def _arm(role: str, when: str, action_name: str, signal_name: str) -> None:
    update: type[SourceUpdate] | type[TargetUpdate] = (
        SourceUpdate if role == "source" else TargetUpdate
    )
    perform = update.perform
    fatal = Action[action_name]
    number = signal.Signals[signal_name]

    def dying(self: SourceUpdate | TargetUpdate, action: Action, message: Message | None) -> None:
        if action is fatal and when == "before":
            os.kill(os.getpid(), number)
        perform(self, action, message)  # type: ignore[arg-type]
        if action is fatal and when == "after":
            os.kill(os.getpid(), number)

    update.perform = dying  # type: ignore[method-assign]


if __name__ == "__main__":
    separator = sys.argv.index("--")
    role, when, action_name, signal_name = sys.argv[1:separator]
    _arm(role, when, action_name, signal_name)
    sys.exit(main(sys.argv[separator + 1 :]))
