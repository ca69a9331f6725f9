"""The drill's three pictures as inline SVG: timeline, scatter, histogram; pure, no scripts.

Colours are CSS classes of the page (`report_html.STYLE`), so that the pictures follow its light or
dark scheme. Every shape carries a <title>, which a browser shows on hovering.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from tools.lab.results import NS_PER_MS, UpdateRecord
from tools.lab.stats import histogram
from tools.lab.timeline import Phase, Side

WIDTH, HEIGHT = 640, 240
TIMELINE_WIDTH, TIMELINE_LEFT = 1060, 96
MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 56, 16, 14, 40
PLOT_WIDTH = WIDTH - MARGIN_LEFT - MARGIN_RIGHT
PLOT_HEIGHT = HEIGHT - MARGIN_TOP - MARGIN_BOTTOM
TICKS = 5
HISTOGRAM_BUCKETS = 24
LANE_HEIGHT, LANE_STEP = 34, 50
# Around the blackout the timeline also shows this share of it, so that its edges can be seen.
TIMELINE_SLACK = 0.12
LABEL_WIDTH_MIN = 46  # a narrower phase gets its name on hovering only


def timeline_svg(record: UpdateRecord) -> str:
    """Draw the switchover of one update: the old process, the guest's gap, the new process."""
    phases = record.phases
    start = min([record.gaps.switchover.start_ns, *(phase.start_ns for phase in phases)])
    end = max([record.gaps.switchover.end_ns, *(phase.end_ns for phase in phases)])
    slack = max(1, int((end - start) * TIMELINE_SLACK))
    axis = _Axis(start - slack, end + slack, start)
    lanes = {"old process": Side.OLD, "guest": None, "new process": Side.NEW}
    bottom = MARGIN_TOP + len(lanes) * LANE_STEP - 8
    body = list(_time_ticks(axis, bottom))  # first, so that the bars lie over the grid
    for row, (name, side) in enumerate(lanes.items()):
        top = MARGIN_TOP + row * LANE_STEP
        body.append(_text(6, top + LANE_HEIGHT / 2 + 4, name, "label"))
        body.append(_rect(axis.left, top, axis.width, LANE_HEIGHT, "lane", name))
        if side is None:
            body.append(_guest_lane(record, axis, top))
        else:
            body += [_phase(phase, axis, top) for phase in phases if phase.side is side]
    return _svg(TIMELINE_WIDTH, bottom + 24, body, "phases of the median update")


def scatter_svg(records: Sequence[UpdateRecord]) -> str:
    """Draw blackout (ms) over the number of the update."""
    top_ms = _nice_ceiling(max(record.blackout_ns for record in records) / NS_PER_MS)
    span = max(1, records[-1].number - records[0].number)
    body = _ms_grid(top_ms)
    for record in records:
        blackout_ms = record.blackout_ns / NS_PER_MS
        x = MARGIN_LEFT + (record.number - records[0].number) / span * PLOT_WIDTH
        y = MARGIN_TOP + (1 - blackout_ms / top_ms) * PLOT_HEIGHT
        title = (
            f"update {record.number}, {record.old_accel} → {record.new_accel}: {blackout_ms:.3f} ms"
        )
        body.append(
            f'<circle class="dot {escape(record.new_accel)}" cx="{x:.1f}" cy="{y:.1f}" r="3.5">'
            f"<title>{escape(title)}</title></circle>"
        )
    body.append(_text(MARGIN_LEFT, HEIGHT - 8, f"update {records[0].number}", "tick"))
    body.append(_text(WIDTH - MARGIN_RIGHT, HEIGHT - 8, f"{records[-1].number}", "tick end"))
    return _svg(WIDTH, HEIGHT, body, "blackout of every update")


def histogram_svg(records: Sequence[UpdateRecord]) -> str:
    """Draw how many updates had which blackout (ms)."""
    bars = histogram([record.blackout_ns / NS_PER_MS for record in records], HISTOGRAM_BUCKETS)
    highest = max(bar.count for bar in bars)
    step = PLOT_WIDTH / len(bars)
    body = []
    for index, bar in enumerate(bars):
        height = bar.count / highest * PLOT_HEIGHT
        title = f"{bar.low:.3f} to {bar.high:.3f} ms: {bar.count}"
        left, top = MARGIN_LEFT + index * step, MARGIN_TOP + PLOT_HEIGHT - height
        body.append(_rect(left + 1, top, step - 2, height, "bar", title))
    base = MARGIN_TOP + PLOT_HEIGHT
    body.append(f'<path class="axis" d="M{MARGIN_LEFT} {base}H{WIDTH - MARGIN_RIGHT}"/>')
    for index in range(0, len(bars) + 1, len(bars) // 4):
        value = bars[0].low + index * (bars[0].high - bars[0].low)
        css = "tick end" if index == len(bars) else "tick middle"
        body.append(_text(MARGIN_LEFT + index * step, base + 18, f"{value:.2f} ms", css))
    body.append(_text(MARGIN_LEFT - 8, MARGIN_TOP + 10, str(highest), "tick end"))
    return _svg(WIDTH, HEIGHT, body, "distribution of blackouts")


class _Axis:
    """Maps CLOCK_MONOTONIC ns to x."""

    def __init__(self, start_ns: int, end_ns: int, zero_ns: int) -> None:
        self.start_ns, self.end_ns, self.zero_ns = start_ns, end_ns, zero_ns
        self.left: float = TIMELINE_LEFT
        self.width: float = TIMELINE_WIDTH - TIMELINE_LEFT - MARGIN_RIGHT

    def x(self, t_ns: float) -> float:
        return self.left + (t_ns - self.start_ns) / (self.end_ns - self.start_ns) * self.width


def _guest_lane(record: UpdateRecord, axis: _Axis, top: float) -> str:
    left, right = axis.x(record.gaps.switchover.start_ns), axis.x(record.gaps.switchover.end_ns)
    end = axis.left + axis.width
    label = f"no progress for {record.gaps.switchover.length_ns / NS_PER_MS:.3f} ms"
    return "".join(
        (
            _rect(axis.left, top, left - axis.left, LANE_HEIGHT, "runs", "guest runs in old"),
            _rect(left, top, right - left, LANE_HEIGHT, "gap", label),
            _rect(right, top, end - right, LANE_HEIGHT, "runs", "guest runs in new"),
            _text((left + right) / 2, top + LANE_HEIGHT / 2 + 4, label, "inside middle"),
        )
    )


def _phase(phase: Phase, axis: _Axis, top: float) -> str:
    left, right = axis.x(phase.start_ns), axis.x(phase.end_ns)
    title = f"{phase.name}: {phase.length_ns / NS_PER_MS:.3f} ms"
    shape = _rect(left, top, max(right - left, 1), LANE_HEIGHT, f"phase {phase.side.value}", title)
    if right - left < max(LABEL_WIDTH_MIN, 7 * len(phase.name)):
        return shape
    return shape + _text((left + right) / 2, top + LANE_HEIGHT / 2 + 4, phase.name, "inside middle")


def _time_ticks(axis: _Axis, y: float) -> Iterable[str]:
    span_ms = (axis.end_ns - axis.zero_ns) / NS_PER_MS
    step_ms = _nice_ceiling(span_ms / TICKS)
    for index in range(TICKS + 1):
        t_ms = index * step_ms
        if t_ms > span_ms:
            return
        x = axis.x(axis.zero_ns + t_ms * NS_PER_MS)
        yield f'<path class="grid" d="M{x:.1f} {MARGIN_TOP}V{y:.1f}"/>'
        yield _text(x, y + 16, f"{t_ms:g} ms", "tick middle")


def _ms_grid(top_ms: float) -> list[str]:
    parts = []
    for index in range(TICKS + 1):
        y = MARGIN_TOP + PLOT_HEIGHT * (1 - index / TICKS)
        parts.append(f'<path class="grid" d="M{MARGIN_LEFT} {y:.1f}H{WIDTH - MARGIN_RIGHT}"/>')
        parts.append(_text(MARGIN_LEFT - 8, y + 4, f"{top_ms * index / TICKS:g} ms", "tick end"))
    return parts


def _nice_ceiling(value: float) -> float:
    """Round up to 1, 2, 2.5 or 5 times a power of ten, so that ticks are round numbers."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return float(next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= value))


def _rect(x: float, y: float, width: float, height: float, css: str, title: str) -> str:
    return (
        f'<rect class="{css}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
        f'rx="2"><title>{escape(title)}</title></rect>'
    )


def _text(x: float, y: float, text: str, css: str) -> str:
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _svg(width: float, height: float, body: Iterable[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(label)}">'
        f"{''.join(body)}</svg>"
    )
