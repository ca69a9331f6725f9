"""When measured loss agrees with the law, and when it does not."""

from __future__ import annotations

import pytest

from tools.lab.cliff import CliffPoint


def point(pause_s: float, predicted: int, dropped: int, lost: int) -> CliffPoint:
    return CliffPoint(pause_s, 300, 150, predicted, dropped, lost)


@pytest.mark.parametrize(
    ("measured", "agrees"),
    [
        (point(0.25, 0, 0, 0), True),
        (point(0.25, 0, 1, 1), False),
        (point(1.0, 150, 150, 150), True),
        (point(1.0, 150, 159, 158), True),
        (point(1.0, 150, 0, 0), False),
        (point(1.0, 150, 150, 100), False),
        (point(1.0, 150, 100, 150), False),
    ],
    ids=[
        *("below, nothing lost", "below, one lost", "above, as predicted"),
        *("above, a frame of the kernel's own", "above, nothing lost"),
        *("more dropped than missing", "more missing than dropped"),
    ],
)
def test_law_and_measurement_are_compared(measured: CliffPoint, agrees: bool) -> None:
    assert measured.agrees is agrees
    assert ("DOES NOT AGREE" in str(measured)) is not agrees
