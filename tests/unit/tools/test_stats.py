"""Percentiles, slopes and histograms against hand-worked figures."""

from __future__ import annotations

import pytest

from tools.lab.stats import Summary, histogram, linear_slope, percentile


@pytest.mark.parametrize(
    ("percent", "expected"), [(1, 10), (25, 10), (26, 20), (50, 20), (75, 30), (99, 40), (100, 40)]
)
def test_nearest_rank_percentile_is_a_measured_sample(percent: float, expected: float) -> None:
    assert percentile([40, 10, 30, 20], percent) == expected


@pytest.mark.parametrize(("samples", "percent"), [([], 50), ([1.0], 0), ([1.0], 101)])
def test_percentile_that_is_not_defined_is_refused(samples: list[float], percent: float) -> None:
    with pytest.raises(ValueError, match="not defined"):
        percentile(samples, percent)


def test_p99_of_a_hundred_samples_is_not_the_maximum() -> None:
    assert Summary.of([float(n) for n in range(1, 101)]) == Summary(100, 50.0, 99.0, 100.0)


def test_slope_of_points_on_a_line_is_exact() -> None:
    assert linear_slope([1, 2, 3, 4], [10, 12, 14, 16]) == pytest.approx(2.0)


def test_slope_of_symmetric_noise_is_zero() -> None:
    assert linear_slope([1, 2, 3, 4], [5, 7, 7, 5]) == pytest.approx(0.0)


@pytest.mark.parametrize(("xs", "ys"), [([1, 1], [2, 3]), ([1], [2]), ([1, 2], [3])])
def test_slope_without_two_points_is_refused(xs: list[float], ys: list[float]) -> None:
    with pytest.raises(ValueError, match="two points"):
        linear_slope(xs, ys)


def test_histogram_counts_every_sample_once_and_puts_the_largest_in_the_last_bucket() -> None:
    bars = histogram([0.0, 0.5, 1.0, 1.5, 2.0], 2)
    assert [(bar.low, bar.high, bar.count) for bar in bars] == [(0.0, 1.0, 2), (1.0, 2.0, 3)]


def test_histogram_of_equal_samples_has_one_full_bar() -> None:
    bars = histogram([3.0, 3.0], 4)
    assert [bar.count for bar in bars] == [2, 0, 0, 0]
