"""Run the blackout's code before the blackout.

Python specialises a function while it runs the first few times, and the processor has to have seen
it too: the first save of a process takes ten times as long as the hundredth. So each process goes
through saving, encoding, decoding and loading its own machine before a guest runs in it. A process
that boots does it before the first instruction, a successor while the guest still runs elsewhere,
and both are warm for the role of the source later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpr.codec import FrameDecoder, encode
from cpr.messages import State

if TYPE_CHECKING:
    from vmm.machine import Machine

# CPython 3.11 specialises within the first eight runs; beyond twenty there is nothing to measure.
ROUNDS = 20


def warm_up(machine: Machine) -> None:
    """Save and load the stopped machine again and again; its state is the same afterwards."""
    for _round in range(ROUNDS):
        state = State(
            sections=machine.save(),
            runstate="running",
            epoch=machine.state_epoch,
            stopped_ns=0,
        )
        for message in FrameDecoder().feed(encode(state)):
            assert isinstance(message, State)
            machine.load(message.sections, epoch=machine.state_epoch)
