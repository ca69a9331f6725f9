"""What the floor must share with the VMM to be a fair comparison."""

from __future__ import annotations

from tools.lab import floor_side
from vmm.command import GIL_SWITCH_INTERVAL_S, TIMER_SLACK_NS


def test_floor_switches_threads_as_often_as_the_vmm() -> None:
    assert floor_side.GIL_SWITCH_INTERVAL_S == GIL_SWITCH_INTERVAL_S
    assert floor_side.TIMER_SLACK_NS == TIMER_SLACK_NS
