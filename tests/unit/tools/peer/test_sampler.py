from __future__ import annotations

from tools.peer.gapsampling import Observation
from tools.peer.sampler import PAUSES_KEPT, SETTLE_NS, SETTLE_STALL_NS, Pause, PauseFinder

PERIOD_NS = 200_000


def run(finder: PauseFinder, start_ns: int, values: list[int]) -> int:
    """One sample each period; returns the time of the sample after the last."""
    for number, value in enumerate(values):
        finder.sample(start_ns + number * PERIOD_NS, value)
    return start_ns + len(values) * PERIOD_NS


def test_steady_progress_has_no_pause() -> None:
    finder = PauseFinder()
    run(finder, 1000, list(range(100)))
    assert finder.pauses == []
    assert finder.samples == 100
    assert finder.longest_period_ns == PERIOD_NS


def test_pause_is_measured_from_last_change_to_next_change() -> None:
    finder = PauseFinder()
    run(finder, 0, [1, 2, 3, 3, 3, 3, 4, 5])
    (pause,) = finder.pauses
    assert pause == Pause(4 * PERIOD_NS, 2 * PERIOD_NS, 6 * PERIOD_NS, PERIOD_NS)


def test_late_sample_with_progress_is_not_a_pause() -> None:
    finder = PauseFinder()
    finder.sample(0, 1)
    finder.sample(PERIOD_NS, 2)
    finder.sample(50 * PERIOD_NS, 3)
    assert finder.pauses == []
    assert finder.longest_period_ns == 49 * PERIOD_NS


def test_late_sample_at_the_end_of_a_pause_is_its_resolution() -> None:
    finder = PauseFinder()
    next_ns = run(finder, 0, [1, 2, 2, 2])
    finder.sample(next_ns + 9 * PERIOD_NS, 3)
    (pause,) = finder.pauses
    assert pause.resolution_ns == 10 * PERIOD_NS


def test_counter_that_wraps_is_progress() -> None:
    finder = PauseFinder()
    run(finder, 0, [0xFFFFFFFF, 0])
    assert finder.counting


def test_pause_that_has_not_ended_shows_as_not_counting() -> None:
    finder = PauseFinder()
    run(finder, 0, [1, 2, 2])
    assert not finder.counting


def test_guest_settles_after_undisturbed_progress_for_the_named_time() -> None:
    finder = PauseFinder()
    needed = SETTLE_NS // PERIOD_NS
    now_ns = run(finder, 0, list(range(needed)))
    assert not finder.settled(now_ns - PERIOD_NS)
    now_ns = run(finder, now_ns, list(range(needed, needed + 3)))
    assert finder.settled(now_ns - PERIOD_NS)


def test_long_pause_starts_the_settling_again() -> None:
    finder = PauseFinder()
    now_ns = run(finder, 0, list(range(SETTLE_NS // PERIOD_NS + 3)))
    last = SETTLE_NS // PERIOD_NS + 2
    now_ns = run(finder, now_ns, [last] * (SETTLE_STALL_NS // PERIOD_NS + 2))
    finder.sample(now_ns, last + 1)
    assert not finder.settled(now_ns)


def test_guest_that_never_counted_is_not_settled() -> None:
    finder = PauseFinder()
    now_ns = run(finder, 0, [7] * (2 * SETTLE_NS // PERIOD_NS))
    assert not finder.settled(now_ns)


def test_only_the_longest_pauses_are_kept() -> None:
    finder = PauseFinder()
    now_ns = 0
    for number in range(PAUSES_KEPT + 10):
        now_ns = run(finder, now_ns, [number] * (2 + number % 7))
    finder.sample(now_ns, -1)
    assert len(finder.pauses) == PAUSES_KEPT
    assert max(pause.length_ns for pause in finder.pauses) == 8 * PERIOD_NS


def test_longest_pause_is_looked_for_inside_the_update_only() -> None:
    before, inside = Pause(900, 0, 900, 1), Pause(300, 1000, 1300, 1)
    seen = Observation((before, inside), samples=9, longest_period_ns=1, realtime=True)
    assert seen.longest_within(950, 2000) == inside
    assert seen.longest_within(0, 950) == before
    assert seen.longest_within(1400, 2000) is None
