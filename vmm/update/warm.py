"""Run the blackout's code before the blackout.

Python specialises a function while it runs the first few times, and the processor has to have seen
it too: the first save of a process takes ten times as long as the hundredth. So each process goes
through saving, encoding, decoding and loading before a guest runs in it. A process that boots does
it before the first instruction. A successor does most of it with its bare chassis, before anybody
begins an update, and the rest while the guest still runs elsewhere. Both are warm for the role of
the source later.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from cpr.codec import FrameDecoder, encode
from cpr.messages import NONCE_SIZE_BYTES, Hello, State
from cpr.vmstate import Section, VmState
from vmm.config import VmmConfig
from vmm.update.inventory import describe_machine, hello_problems, offer

if TYPE_CHECKING:
    from vmm.chassis import Chassis
    from vmm.machine import Machine

# CPython 3.11 specialises within the first eight runs; beyond twenty there is nothing to measure.
ROUNDS = 20
HELLO_ROUNDS = 3
# Of the whole machine: its devices are few and small, and the guest waits meanwhile.
MACHINE_ROUNDS = 1


def warm_chassis(chassis: Chassis, planned: Iterable[type[VmState]]) -> None:
    """Save and load what there is without a guest; be able to read the sections planned."""
    for state_type in planned:
        state_type.prepare()
    types = chassis.section_types()
    for _round in range(ROUNDS):
        sections = tuple(Section.save(name, state) for name, state in chassis.save())
        for received in _sent_and_received(sections, epoch=0):
            chassis.load({s.name: s.load(types[s.name]) for s in received})


def warm_hello(config: VmmConfig, planned: Mapping[str, type[VmState]]) -> None:
    """Say HELLO to ourselves: both sides' first words are spoken while a guest runs."""
    nonce = bytes(NONCE_SIZE_BYTES)
    hello = offer(describe_machine(config), planned, (), user_paced=False, nonce=nonce)
    for _round in range(HELLO_ROUNDS):
        for message in FrameDecoder().feed(encode(hello)):
            assert isinstance(message, Hello)
            hello_problems(message, config, planned)  # of course there are: it offers no RAM


def warm_machine(machine: Machine) -> None:
    """Save and load the stopped machine again and again; its state is the same afterwards."""
    for _round in range(MACHINE_ROUNDS):
        for received in _sent_and_received(machine.save(), machine.state_epoch):
            machine.load(received, epoch=machine.state_epoch)


def _sent_and_received(sections: tuple[Section, ...], epoch: int) -> Iterator[tuple[Section, ...]]:
    state = State(sections=sections, runstate="running", epoch=epoch, stopped_ns=0)
    for message in FrameDecoder().feed(encode(state)):
        assert isinstance(message, State)
        yield message.sections
