from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cpr.vmstate import VmState
from vmm.machine import SectionEncoder


@dataclass(frozen=True, kw_only=True, slots=True)
class CounterState(VmState):
    NAME: ClassVar[str] = "counter"
    VERSION: ClassVar[int] = 1
    READS_FROM: ClassVar[int] = 1
    count: int


def test_state_that_did_not_change_keeps_its_section_and_one_that_did_gets_a_new_one() -> None:
    encoder = SectionEncoder()
    (still, moved) = encoder.encode((("a", CounterState(count=1)), ("b", CounterState(count=1))))

    (still_again, moved_on) = encoder.encode(
        (("a", CounterState(count=1)), ("b", CounterState(count=2)))
    )

    assert still_again is still
    assert moved_on.load(CounterState).count == 2 != moved.load(CounterState).count
    assert encoder.encode((("b", CounterState(count=2)),)) == (moved_on,)
