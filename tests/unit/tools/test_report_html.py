"""The drill's page: self-contained, well-formed, and true to the figures."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest

from tests.unit.tools.samples import make_chain, make_record
from tools.lab.charts import histogram_svg, scatter_svg, timeline_svg
from tools.lab.load_ledger import Direction, LoadResult
from tools.lab.report_html import render_html
from tools.lab.results import DrillResult


def titles(svg: str, css: str) -> list[str]:
    return [
        shape.findtext("title") or ""
        for shape in ET.fromstring(svg).iter()
        if shape.get("class", "").split()[:1] == [css]
    ]


def test_timeline_shows_phases_of_both_sides_and_the_gap() -> None:
    svg = timeline_svg(make_record(1, 1.25))
    assert titles(svg, "phase") == ["stop vCPUs: 0.250 ms", "save: 0.250 ms", "load: 0.500 ms"]
    assert titles(svg, "gap") == ["no progress for 1.250 ms"]


def test_scatter_has_one_dot_for_each_update() -> None:
    svg = scatter_svg(make_chain([1.0, 2.5, 0.5]).records)
    assert titles(svg, "dot")[1] == "update 2, kvm → kvm: 2.500 ms"
    assert len(titles(svg, "dot")) == 3


def test_histogram_bars_count_all_updates() -> None:
    svg = histogram_svg(make_chain([1.0, 1.0, 2.0]).records)
    assert sum(int(title.rsplit(": ", 1)[1]) for title in titles(svg, "bar")) == 3


@pytest.mark.parametrize("blackouts_ms", [[1.0], [2.0, 2.0]])
def test_pictures_of_few_or_equal_updates_have_finite_coordinates(
    blackouts_ms: list[float],
) -> None:
    records = make_chain(blackouts_ms).records
    for svg in (scatter_svg(records), histogram_svg(records), timeline_svg(records[0])):
        assert not re.search(r"nan|inf", svg)
        ET.fromstring(svg)


def test_page_loads_nothing_and_runs_nothing() -> None:
    page = render_html(DrillResult((make_chain([1.0, 2.0]),), 0))
    assert not re.search(r"<script|<link|<img|src=|href=|url\(|@import", page)


def test_page_names_figures_and_conditions() -> None:
    page = render_html(DrillResult((make_chain([1.0, 2.0, 3.0]),), 0))
    assert "2.00 ms" in page
    assert "256 MiB memfd" in page
    assert 'class="verdict pass"' in page
    assert 'class="verdict fail"' not in page


def test_failure_is_escaped_and_comes_with_its_replay_command() -> None:
    page = render_html(DrillResult((make_chain([], failure="bad <page> & more"),), 0))
    assert "bad &lt;page&gt; &amp; more" in page
    assert "cpr-drill --seed 1" in page
    assert 'class="verdict fail"' in page


def test_ledger_of_a_loaded_chain_and_its_baseline_stand_flow_by_flow() -> None:
    flow = Direction("UDP flow 0 to the guest", 40, 39, 1, 0, 0)
    ledger = LoadResult(1.0, (flow,), (), None, 2.0, tap_tx_dropped=3)
    baseline = replace(ledger, directions=(replace(flow, received=40, lost=0),), tap_tx_dropped=0)
    chain = replace(make_chain([1.0]), ledger=ledger, baseline=baseline)

    page = render_html(DrillResult((chain,), 0))

    row = "<tr>" + "".join(f"<td>{cell}</td>" for cell in (flow.name, 40, 39, 1, 0, 0)) + "</tr>"
    assert row in page
    assert page.count("<td>UDP flow 0 to the guest</td>") == 2
    assert "tap dropped 3" in page
    assert page.index("Load over all updates") < page.index("The same load without updates")
