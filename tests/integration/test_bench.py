"""cpr-bench with real processes, as little of it as shows that every kind of figure comes out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools import bench
from tools.lab.cache import peer_qemu


def test_updates_are_measured_beside_the_floor(accel: str, tmp_path: Path) -> None:
    report = tmp_path / "bench.json"
    words = ["--only", "headline", "--accel", accel, "--count", "2", "--json", str(report)]
    assert bench.main(words) == 0
    result = json.loads(report.read_text())
    ours, floor = result["rows"]
    assert (ours["name"], floor["name"]) == (f"ours/{accel}", f"floor/{accel}")
    assert ours["figures"]["blackout_ms"]["n"] == floor["figures"]["blackout_ms"]["n"] == 2
    assert ours["figures"]["downtime_ms"]["p50"] > 0
    assert "save" in ours["phases_ms"]
    assert result["verdicts"][0]["name"] == f"blackout beside the floor, {accel}"


def test_accelerators_and_processes_are_measured_alone(tmp_path: Path) -> None:
    report = tmp_path / "bench.json"
    words = ["--only", "accel", "--only", "process", "--accel", "unicorn", "--quick"]
    assert bench.main([*words, "--json", str(report)]) == 0
    accelerator, process = json.loads(report.read_text())["rows"]
    assert accelerator["figures"]["kick_us"]["p50"] > 0
    assert accelerator["figures"]["exits_per_s"]["p50"] > 0
    assert process["figures"]["exec_to_qmp_ms"]["p50"] > 0
    assert 0 < process["figures"]["pss_mib"]["p50"] <= process["figures"]["rss_mib"]["p50"]


@pytest.mark.needs_tun
def test_path_of_a_frame_is_measured(tmp_path: Path) -> None:
    report = tmp_path / "bench.json"
    words = ["--only", "path", "--accel", "unicorn", "--quick", "--json", str(report)]
    assert bench.main(words) == 0
    (row,) = json.loads(report.read_text())["rows"]
    assert row["figures"]["frames_per_s"]["p50"] > 0
    assert row["figures"]["cpu_us_per_frame"]["p50"] > 0
    assert row["figures"]["round_trip_us"]["p50"] > 0


@pytest.mark.long
@pytest.mark.needs_tun
@pytest.mark.needs_peer_qemu
def test_path_of_a_frame_is_measured_beside_a_real_qemu(accel: str, tmp_path: Path) -> None:
    report = tmp_path / "bench.json"
    words = ["--only", "path", "--accel", accel, "--quick", "--qemu", str(peer_qemu())]
    assert bench.main([*words, "--json", str(report)]) == 0
    result = json.loads(report.read_text())
    theirs = {"kvm": "kvm", "unicorn": "tcg"}[accel]
    assert [row["name"] for row in result["rows"]] == [f"echo/{accel}", f"echo/qemu-{theirs}"]
    ours, qemus = (row["figures"] for row in result["rows"])
    for figure, summary in ours.items():
        assert summary["n"] == qemus[figure]["n"]
        assert min(summary["p50"], qemus[figure]["p50"]) > 0
    assert result["left_out"] == []


@pytest.mark.long
@pytest.mark.needs_tun
def test_many_cards_are_measured_beside_none(tmp_path: Path) -> None:
    report = tmp_path / "bench.json"
    words = ["--only", "nics", "--accel", "unicorn", "--count", "1", "--json", str(report)]
    assert bench.main(words) == 0
    result = json.loads(report.read_text())
    assert [row["name"] for row in result["rows"]] == [f"{n} cards/unicorn" for n in (0, 1, 8)]
    assert result["verdicts"][0]["name"] == "8 cards beside none, unicorn"
