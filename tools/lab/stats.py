"""The few statistics that reports use, with their definitions; pure.

Percentiles are *nearest-rank*: the smallest sample that at least p per cent of the samples do not
exceed. Every figure shown is therefore one that was measured, and p99 of fewer than 100 samples is
the maximum; reports always give n beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Summary:
    """p50, p99 and max of n samples, in the samples' unit."""

    n: int
    p50: float
    p99: float
    max: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Summary:
        """Summarise at least one sample; ValueError for none."""
        return cls(len(samples), percentile(samples, 50), percentile(samples, 99), max(samples))


def percentile(samples: Sequence[float], percent: float) -> float:
    """Nearest-rank percentile, 0 < percent <= 100; ValueError when there is no sample."""
    if not samples or not 0 < percent <= 100:
        raise ValueError(f"percentile {percent} of {len(samples)} samples is not defined")
    return sorted(samples)[math.ceil(percent / 100 * len(samples)) - 1]


def linear_slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Least-squares slope of ys over xs; ValueError unless there are two different xs."""
    if len(xs) != len(ys) or len(set(xs)) < 2:
        raise ValueError("a slope needs at least two points with different x")
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    covariance = sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True))
    return covariance / sum((x - x_mean) ** 2 for x in xs)


@dataclass(frozen=True, slots=True)
class Bucket:
    """One bar of a histogram: samples in [low, high), the last one including high."""

    low: float
    high: float
    count: int


def histogram(samples: Sequence[float], buckets: int) -> tuple[Bucket, ...]:
    """Equal buckets from the smallest to the largest sample; ValueError for no sample."""
    if not samples or buckets < 1:
        raise ValueError("a histogram needs samples and buckets")
    low, high = min(samples), max(samples)
    width = (high - low) / buckets or max(abs(low), 1.0) / buckets
    counts = [0] * buckets
    for sample in samples:
        counts[min(int((sample - low) / width), buckets - 1)] += 1
    return tuple(
        Bucket(low + index * width, low + (index + 1) * width, count)
        for index, count in enumerate(counts)
    )
