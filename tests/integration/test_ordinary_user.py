"""The pair and its tap belong to somebody without any power on the host.

Who runs these tests is usually root, so the drill runs in a user namespace in which it is an
ordinary user: not uid 0, without a capability over the network it was started in.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.needs import ORDINARY_USER, ROOT

DEADLINE_S = 110
WHOAMI = "import os; print(os.geteuid()); print(open('/proc/self/status').read())"


def as_ordinary_user(*command: str) -> subprocess.CompletedProcess[str]:
    words = [*ORDINARY_USER, *command] if os.geteuid() == 0 else command
    return subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )


@pytest.mark.needs_user_network
def test_that_user_is_nobody_special() -> None:
    uid, *status = as_ordinary_user(sys.executable, "-c", WHOAMI).stdout.splitlines()
    assert uid != "0"
    assert "CapEff:\t0000000000000000" in status


@pytest.mark.needs_user_network
def test_drill_with_traffic_passes_without_privilege(accel: str, tmp_path: Path) -> None:
    report = tmp_path / "drill.json"
    done = as_ordinary_user(
        *(sys.executable, "-m", "tools.drill", "--accel", accel, "--mem", "16M", "--count", "2"),
        *("--load", "udp=50,tcp=1", "--pages", "1024", "--json", str(report)),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (chain,) = json.loads(report.read_text())["chains"]
    ways = chain["ledger"]["directions"]
    assert all(way["sent"] and way["sent"] == way["received"] for way in ways)
    assert [stream["exact"] for stream in chain["ledger"]["streams"]] == [True]
