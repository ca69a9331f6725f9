from __future__ import annotations

import pytest

from tools.peer.compare import QUIET_NOISE_MS, Comparison, Side
from tools.peer.session import GapSample


def sample(gap_ms: float, noise_ms: float = 0.0, switch_ms: float | None = None) -> GapSample:
    return GapSample(
        gap_ms=gap_ms,
        resolution_ms=0.2,
        gap_after_stop_ms=None,
        switch_ms=switch_ms,
        stop_resume_ms=None,
        total_ms=50.0,
        noise_ms=noise_ms,
        realtime=True,
    )


def test_updates_on_a_noisy_machine_are_left_out_of_the_figures() -> None:
    side = Side("x", (sample(4.0), sample(90.0, noise_ms=QUIET_NOISE_MS), sample(5.0)))
    assert side.gap_ms.n == 2
    assert side.gap_ms.max == 5.0


def test_all_updates_count_when_none_was_quiet() -> None:
    side = Side("x", (sample(4.0, noise_ms=9.0), sample(6.0, noise_ms=9.0)))
    assert side.gap_ms.n == 2


def test_ratio_is_our_median_over_theirs() -> None:
    ours, theirs = Side("ours", (sample(1.0),)), Side("theirs", (sample(4.0),))
    assert Comparison(ours, theirs, ram_bytes=1).ratio == pytest.approx(0.25)


def test_switch_is_judged_apart_from_pauses_elsewhere_in_the_update() -> None:
    ours = Side("ours", (sample(9.0, switch_ms=1.0),))
    theirs = Side("theirs", (sample(4.0, switch_ms=4.0),))
    assert Comparison(ours, theirs, ram_bytes=1).switch_ratio == pytest.approx(0.25)


def test_gap_stands_for_the_switch_where_its_events_were_not_seen() -> None:
    assert Side("x", (sample(3.0),)).switch_ms.p50 == 3.0
