"""What a benchmark found: rows, verdicts, and what was left out, as frozen values; pure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tools.lab.stats import Summary, linear_slope

FLOOR_RATIO_MAX = 2.0
SLOPE_MAX_MS_PER_GIB = 0.05
SLOPE_SIZES_MIN = 4
# The guest is paused once, at the switch. On a small machine it also waits for a core now and then
# while the successor starts, so the longest gap of the whole update (the blackout) and the one at
# the switch are judged side by side.
JUDGED_MS = {"blackout_ms": "blackout", "switch_ms": "pause at the switch"}
VCPU_RATIO_MAX = 2.0
NICS_RATIO_MAX = 2.0
PEER_RATIO_MAX = 1 / 3


@dataclass(frozen=True, slots=True)
class Row:
    """One subject in one group. Figures by name, each with its unit in the name."""

    group: str
    name: str
    conditions: Mapping[str, str]
    figures: Mapping[str, Summary]
    phases_ms: Mapping[str, float] = dataclasses.field(default_factory=dict)  # p50 by phase


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target and whether it was met; `measured` says the figure and what it is made of."""

    name: str
    target: str
    measured: str
    met: bool


@dataclass(frozen=True, slots=True)
class GroupResult:
    """Everything that one group found; `left_out` names what could not be measured, and why."""

    rows: tuple[Row, ...]
    verdicts: tuple[Verdict, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BenchResult:
    """One run."""

    conditions: Mapping[str, str]
    groups: tuple[GroupResult, ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows in the order in which they were measured."""
        return tuple(row for group in self.groups for row in group.rows)

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """All verdicts."""
        return tuple(verdict for group in self.groups for verdict in group.verdicts)

    @property
    def left_out(self) -> tuple[str, ...]:
        """All that was not measured."""
        return tuple(text for group in self.groups for text in group.left_out)

    @property
    def met(self) -> bool:
        """Whether every target that was looked at was met."""
        return all(verdict.met for verdict in self.verdicts)


@dataclass(frozen=True, slots=True)
class Line:
    """A least-squares line: its slope and how far the scatter of the points lets it be trusted."""

    slope: float
    standard_error: float


def fit_line(xs: Sequence[float], ys: Sequence[float]) -> Line:
    """Fit a line; ValueError for fewer than three points or a single x."""
    if len(xs) < 3:
        raise ValueError("a line with an error needs at least three points")
    slope = linear_slope(xs, ys)
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    residuals = [y - y_mean - slope * (x - x_mean) for x, y in zip(xs, ys, strict=True)]
    spread = sum((x - x_mean) ** 2 for x in xs)
    variance = sum(residual**2 for residual in residuals) / (len(xs) - 2)
    return Line(slope, math.sqrt(variance / spread))


def floor_verdict(accel: str, ours: Summary, floor: Summary, what: str = "blackout") -> Verdict:
    """Ours over the floor, p50."""
    return _ratio_verdict(f"{what} beside the floor, {accel}", ours, floor, FLOOR_RATIO_MAX)


def vcpu_verdict(one: Summary, several: Summary, vcpu_count: int) -> Verdict:
    """Several vCPUs over one, p50."""
    return _ratio_verdict(f"{vcpu_count} vCPUs beside one", several, one, VCPU_RATIO_MAX)


def nics_verdict(accel: str, none: Summary, many: Summary, count: int) -> Verdict:
    """Many cards over none, p50."""
    return _ratio_verdict(f"{count} cards beside none, {accel}", many, none, NICS_RATIO_MAX)


def peer_verdict(ours_name: str, ours: Summary, theirs_name: str, theirs: Summary) -> Verdict:
    """Ours over a real QEMU, p50 of the guest-felt gap."""
    verdict = _ratio_verdict(f"{ours_name} beside {theirs_name}", ours, theirs, PEER_RATIO_MAX)
    return dataclasses.replace(verdict, target="p50 of the guest-felt gap at most 1/3")


def _ratio_verdict(name: str, judged: Summary, beside: Summary, ratio_max: float) -> Verdict:
    ratio = judged.p50 / beside.p50
    return Verdict(
        name,
        f"p50 at most {ratio_max:g}x",
        f"{ratio:.2f}x ({judged.p50:.2f} / {beside.p50:.2f} ms, n {judged.n} / {beside.n})",
        ratio <= ratio_max,
    )


def slope_verdict(
    name: str, p50_ms_by_gib: Mapping[float, float], what: str = "blackout"
) -> Verdict | None:
    """Change of the median per GiB; None with fewer sizes than a fit needs."""
    if len(p50_ms_by_gib) < SLOPE_SIZES_MIN:
        return None
    line = fit_line(list(p50_ms_by_gib), list(p50_ms_by_gib.values()))
    return Verdict(
        f"{what} against RAM, {name}",
        f"slope at most {SLOPE_MAX_MS_PER_GIB:g} ms/GiB",
        f"{line.slope:+.3f} +- {line.standard_error:.3f} ms/GiB over {len(p50_ms_by_gib)} sizes",
        line.slope <= SLOPE_MAX_MS_PER_GIB,
    )


def to_json(result: BenchResult) -> dict[str, Any]:
    """Plain JSON values."""
    return {
        "conditions": dict(result.conditions),
        "met": result.met,
        "rows": [dataclasses.asdict(row) for row in result.rows],
        "verdicts": [dataclasses.asdict(verdict) for verdict in result.verdicts],
        "left_out": list(result.left_out),
    }
