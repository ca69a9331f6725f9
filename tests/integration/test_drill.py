"""The main job, short: real processes, real guest, live updates, every check of the drill."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tools import drill
from tools.lab.procfs import child_pids

# Small enough to be quick, large enough that the guest has passes behind it.
SMALL = ("--mem", "16M", "--count", "4", "--seed", "3")


def run_drill(*options: str) -> int:
    status = drill.main([*SMALL, *options])
    assert child_pids(os.getpid()) == ()
    return status


def test_chain_of_updates_keeps_every_promise(
    accel: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    json_path, html_path = tmp_path / "drill.json", tmp_path / "drill.html"
    status = run_drill("--accel", accel, "--json", str(json_path), "--html", str(html_path))
    assert status == drill.EXIT_PASS, capsys.readouterr().out
    (chain,) = json.loads(json_path.read_text())["chains"]
    assert len(chain["records"]) == 4
    assert chain["ram_verifications"] == 1
    assert all(record["blackout_ns"] > 0 for record in chain["records"])
    assert list(chain["phase_ms"])[:2] == ["stop vCPUs", "save"]
    assert "no progress for" in html_path.read_text()


@pytest.mark.needs_tun
def test_no_frame_and_no_byte_is_lost_in_updates_under_load(
    accel: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "drill.json"
    options = ("--load", "udp=100,tcp=2,ping", "--pages", "1024", "--json", str(path))
    assert run_drill("--accel", accel, *options) == drill.EXIT_PASS, capsys.readouterr().out
    (chain,) = json.loads(path.read_text())["chains"]
    for ledger in (chain["baseline"], chain["ledger"]):
        assert len(ledger["directions"]) == 6  # two flows each way, ping, the guest's own
        assert all(way["sent"] and way["sent"] == way["received"] for way in ledger["directions"])
        assert [stream["exact"] for stream in ledger["streams"]] == [True, True]
        assert all(stream["bytes_sent"] for stream in ledger["streams"])
    assert "tap dropped 0" in capsys.readouterr().out


@pytest.mark.needs_tun
def test_loss_of_a_long_pause_is_what_rate_and_queue_length_predict(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status = run_drill("--accel", "unicorn", "--cliff", "--pages", "1024")
    below, above = capsys.readouterr().out.splitlines()
    assert status == drill.EXIT_PASS, (below, above)
    assert "<= txqueuelen 150: predicted loss 0, the tap dropped 0, missing" in below
    assert "> txqueuelen 150: predicted loss 1" in above


@pytest.mark.needs_kvm
def test_guest_changes_accelerator_back_and_forth(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_drill("--accel", "alternate") == drill.EXIT_PASS, capsys.readouterr().out


@pytest.mark.needs_kvm
def test_guest_with_two_vcpus_is_updated(capsys: pytest.CaptureFixture[str]) -> None:
    status = run_drill("--accel", "kvm", "--vcpus", "2")
    assert status == drill.EXIT_PASS, capsys.readouterr().out


def test_successor_that_cannot_start_fails_the_drill_with_reason_and_replay(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status = run_drill("--accel", "unicorn", "--new", "/bin/false")
    text = capsys.readouterr().out
    assert status == drill.EXIT_FAIL
    assert "FAIL unicorn: update 1 (unicorn -> unicorn): gen1: no QMP session" in text
    assert "replay: cpr-drill --accel unicorn --count 4 --seed 3" in text
