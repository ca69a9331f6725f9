"""Verdicts of the benchmark: each target at its border, and what they are made of."""

from __future__ import annotations

import json

import pytest

from tools.lab.bench.results import (
    BenchResult,
    GroupResult,
    Row,
    Verdict,
    fit_line,
    floor_verdict,
    nics_verdict,
    peer_verdict,
    slope_verdict,
    to_json,
    vcpu_verdict,
)
from tools.lab.stats import Summary


def summary(p50: float) -> Summary:
    return Summary(n=5, p50=p50, p99=p50 * 2, max=p50 * 3)


@pytest.mark.parametrize(("ours", "met"), [(2.0, True), (2.01, False)])
def test_floor_target_is_twice_the_floor(ours: float, met: bool) -> None:
    verdict = floor_verdict("kvm", summary(ours), summary(1.0))
    assert verdict.met is met
    assert f"{ours:.2f}x" in verdict.measured
    assert "n 5 / 5" in verdict.measured


@pytest.mark.parametrize(("several", "met"), [(2.0, True), (2.2, False)])
def test_vcpu_target_is_twice_one_vcpu(several: float, met: bool) -> None:
    assert vcpu_verdict(summary(1.0), summary(several), 2).met is met


@pytest.mark.parametrize(("many", "met"), [(2.0, True), (2.1, False)])
def test_cards_target_is_twice_a_machine_without_any(many: float, met: bool) -> None:
    verdict = nics_verdict("kvm", summary(1.0), summary(many), 8)
    assert verdict.met is met
    assert verdict.name == "8 cards beside none, kvm"


@pytest.mark.parametrize(("ours", "met"), [(1.0, True), (1.1, False)])
def test_peer_target_is_a_third_of_qemu(ours: float, met: bool) -> None:
    assert peer_verdict("vmm/kvm", summary(ours), "qemu/kvm", summary(3.0)).met is met


@pytest.mark.parametrize(("per_gib_ms", "met"), [(0.049, True), (0.06, False), (-0.2, True)])
def test_slope_target_is_a_twentieth_of_a_millisecond_per_gib(per_gib_ms: float, met: bool) -> None:
    sizes_gib = (0.0625, 0.25, 1.0, 8.0)
    verdict = slope_verdict("sparse, kvm", {gib: 1.0 + per_gib_ms * gib for gib in sizes_gib})
    assert verdict is not None
    assert verdict.met is met
    assert f"{per_gib_ms:+.3f} +- 0.000 ms/GiB over 4 sizes" in verdict.measured


def test_slope_over_three_sizes_is_no_verdict() -> None:
    assert slope_verdict("touched, kvm", {1.0: 1.0, 2.0: 1.0, 4.0: 1.0}) is None


def test_line_knows_how_far_it_can_be_trusted() -> None:
    exact = fit_line([0, 1, 2, 3], [1, 3, 5, 7])
    assert exact.slope == pytest.approx(2)
    assert exact.standard_error == pytest.approx(0)
    # Residuals 0.4, -0.8, 0.4 of y = x + 0.6: variance 0.96 / 1, spread 2.
    scattered = fit_line([0, 1, 2], [1.0, 0.8, 3.0])
    assert scattered.slope == pytest.approx(1)
    assert scattered.standard_error == pytest.approx((0.96 / 2) ** 0.5)


def test_line_through_two_points_has_no_error_and_is_refused() -> None:
    with pytest.raises(ValueError, match="at least three points"):
        fit_line([0, 1], [0, 1])


def test_one_missed_target_makes_the_run_a_miss_and_json_carries_everything() -> None:
    row = Row(
        "ram", "sparse 1G/kvm", {"accel": "kvm"}, {"blackout_ms": summary(1.0)}, {"save": 0.2}
    )
    good, bad = (Verdict(name, "at most 1", "1", name == "good") for name in ("good", "bad"))
    result = BenchResult(
        {"clock": "CLOCK_MONOTONIC"},
        (GroupResult((row,), (good,)), GroupResult((), (bad,), ("touched RAM of 8G",))),
    )
    assert not result.met
    plain = json.loads(json.dumps(to_json(result)))
    assert plain["rows"][0]["figures"]["blackout_ms"]["p50"] == 1.0
    assert [verdict["met"] for verdict in plain["verdicts"]] == [True, False]
    assert plain["left_out"] == ["touched RAM of 8G"]
