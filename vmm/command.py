"""The command: arguments -> configuration -> one process; nothing else."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

import prctl

from cpr.errors import CprError
from guestram.errors import RamError
from vmm.accel.kick import install_kick_handler
from vmm.cli import parse_args
from vmm.config import VmmConfig
from vmm.errors import VmmError
from vmm.pidfile import Pidfile
from vmm.process import Vmm
from vmm.sandbox import confine_process
from vmm.say import say
from vmm.update.priority import Background

# A vCPU thread that comes back from the guest needs the interpreter lock to serve the exit. This is
# the longest the loop's thread may keep it from getting it (Python's default is 5 ms).
GIL_SWITCH_INTERVAL_S = 0.000_02
# The kernel may round the end of every timed wait up by this, the waits above among them (its
# default is 50 us).
TIMER_SLACK_NS = 1_000


def run(argv: Sequence[str], background: Background) -> int:
    """Run one VMM; the exit status is the guest's (isa-debug-exit), 0, or 1 on an error."""
    config = VmmConfig()
    try:
        config = parse_args(argv)
        for warning in config.warnings:
            say(f"warning: {warning}", timestamps=config.timestamps)
        prctl.set_timerslack(TIMER_SLACK_NS)
        sys.setswitchinterval(GIL_SWITCH_INTERVAL_S)
        install_kick_handler()
        confine_process(config.sandbox)
        with Pidfile(config.pidfile):
            return asyncio.run(_run(config, background))
    except (VmmError, CprError, RamError) as error:
        say(str(error), timestamps=config.timestamps)
        return 1


async def _run(config: VmmConfig, background: Background) -> int:
    return await Vmm(config, background).run()
