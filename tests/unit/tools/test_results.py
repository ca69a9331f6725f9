"""What a drill concludes from its records."""

from __future__ import annotations

import dataclasses
import json

import pytest

from tests.unit.tools.samples import make_chain
from tools.lab.gaps import GapSpan
from tools.lab.results import DrillResult, conditions, to_json


def test_a_chain_that_did_all_updates_without_a_failure_passed() -> None:
    assert make_chain([1.0, 2.0]).passed


@pytest.mark.parametrize("failure", ["RAM: page 3 ...", "update 3: nothing came"])
def test_a_chain_with_a_failure_did_not_pass_and_neither_did_its_drill(failure: str) -> None:
    chain = make_chain([1.0], failure=failure)
    assert not chain.passed
    assert not DrillResult((make_chain([1.0]), chain), 0).passed


def test_a_drill_that_left_a_process_behind_or_did_nothing_did_not_pass() -> None:
    assert DrillResult((make_chain([1.0]),), 0).passed
    assert not DrillResult((make_chain([1.0]),), 1).passed
    assert not DrillResult((), 0).passed


def test_blackout_summary_is_in_milliseconds() -> None:
    summary = make_chain([3.0, 1.0, 2.0]).blackout_ms()
    assert summary is not None
    assert (summary.n, summary.p50, summary.max) == (3, 2.0, 3.0)


def test_median_update_is_a_real_one() -> None:
    median = make_chain([4.0, 1.0, 3.0, 2.0]).median_record()
    assert median is not None
    assert median.number == 4


def test_chain_without_updates_has_no_figures() -> None:
    chain = make_chain([], failure="start: no QMP session")
    assert chain.blackout_ms() is None
    assert chain.median_record() is None
    assert chain.leak_slopes() == ()


def test_leak_slope_is_fds_per_generation() -> None:
    (slopes,) = make_chain([1.0] * 6, fd_growth=2).leak_slopes()
    assert slopes.fds == pytest.approx(2.0)
    assert slopes.mappings == pytest.approx(2.0)
    assert slopes.threads == pytest.approx(0.0)


def test_phases_are_summarised_by_name() -> None:
    phases = make_chain([1.0, 1.0]).phase_ms()
    assert {name: summary.p50 for name, summary in phases.items()} == {
        "stop vCPUs": 0.25,
        "save": 0.25,
        "load": 0.5,
    }


def test_json_has_the_conditions_beside_the_figures() -> None:
    document = json.loads(json.dumps(to_json(DrillResult((make_chain([1.5]),), 0))))
    (chain,) = document["chains"]
    assert document["passed"] is True
    assert chain["blackout_ms"]["p50"] == 1.5
    assert chain["records"][0]["blackout_ns"] == 1_500_000
    assert set(chain["conditions"]) == set(conditions(make_chain([1.5])))
    assert {"guest", "RAM", "vCPUs", "devices", "load", "n", "clock"} <= set(chain["conditions"])


def test_median_update_is_one_whose_stop_can_be_seen() -> None:
    chain = make_chain([5.0, 6.0, 1.0])
    records = [
        dataclasses.replace(
            record,
            gaps=dataclasses.replace(record.gaps, switchover=GapSpan(0, record.blackout_ns)),
        )
        if record.number != 3
        else record
        for record in chain.records
    ]
    median = dataclasses.replace(chain, records=tuple(records)).median_record()
    assert median is not None
    assert median.number == 3
