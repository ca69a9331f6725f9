"""cpr-pair: started by a program, used over QMP by another, ended in each of its ways."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import EventListener, QMPClient

from tests.framework.taps import taps_of

EXIT_DEADLINE_S = 30
UPDATE_DEADLINE_S = 30
COMMAND = (sys.executable, "-m", "tools.pair", "--mem", "16M", "--accel", "unicorn", "--json")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def pair() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        COMMAND, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    yield process
    process.terminate()
    process.communicate(timeout=EXIT_DEADLINE_S)


def sockets_of(pair: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert pair.stdout is not None
    assert pair.stderr is not None
    line = pair.stdout.readline()
    assert line, pair.stderr.read().decode()
    described: dict[str, Any] = json.loads(line)
    return described


async def update_and_quit(described: dict[str, Any]) -> str:
    """Update from old to new with the stock client, end both; the new one's last status."""
    old, new = QMPClient("old"), QMPClient("new")
    resumed = EventListener("RESUME")
    new.register_listener(resumed)
    await old.connect(described["old"]["qmp"])
    await new.connect(described["new"]["qmp"])
    await old.execute("migrate-set-parameters", {"mode": "cpr-transfer"})
    await old.execute("migrate", described["migrate"])
    await resumed.get()
    status = await new.execute("query-status")
    assert isinstance(status, dict)
    for client in (old, new):
        await client.execute("quit")
        with contextlib.suppress(EOFError, OSError):  # the server may hang up first
            await client.disconnect()
    return str(status["status"])


def test_pair_is_updated_by_a_stock_qmp_client_and_ends_when_both_have_quit(
    pair: subprocess.Popen[bytes],
) -> None:
    described = sockets_of(pair)
    assert described["old"]["pid"] != described["new"]["pid"]

    async def story() -> str:
        async with asyncio.timeout(UPDATE_DEADLINE_S):
            return await update_and_quit(described)

    assert asyncio.run(story()) == "running"
    assert pair.wait(EXIT_DEADLINE_S) == 0
    assert not Path(described["old"]["qmp"]).parent.exists()


@pytest.mark.needs_tun
@pytest.mark.needs_root
def test_pair_with_network_cards_has_taps_that_the_host_does_not_see() -> None:
    command = (*COMMAND, "--net", "2")
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:  # whose end closes its standard input, which ends the pair
        assert process.stdout is not None
        described = json.loads(process.stdout.readline())
        assert taps_of(described["old"]["pid"]) == ["tap0", "tap1"]
        assert not Path("/sys/class/net/tap0").exists()
    assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_pair_and_removes_everything(
    pair: subprocess.Popen[bytes], number: signal.Signals
) -> None:
    described = sockets_of(pair)
    pair.send_signal(number)
    assert pair.wait(EXIT_DEADLINE_S) == 0
    assert_all_gone(described)


def test_end_of_standard_input_ends_the_pair(pair: subprocess.Popen[bytes]) -> None:
    described = sockets_of(pair)
    assert pair.stdin is not None
    pair.stdin.close()
    pair.stdin = None
    assert pair.wait(EXIT_DEADLINE_S) == 0
    assert_all_gone(described)


def test_killed_launcher_takes_both_vmms_with_it(pair: subprocess.Popen[bytes]) -> None:
    described = sockets_of(pair)
    pidfds = [os.pidfd_open(described[role]["pid"]) for role in ("old", "new")]
    pair.kill()
    for pidfd in pidfds:
        wait_readable(pidfd)
        os.close(pidfd)
    subprocess.run(["rm", "-r", str(Path(described["old"]["qmp"]).parent)], check=True)


def wait_readable(fd: int) -> None:
    """Wait for a pidfd: its process has ended."""

    async def wait() -> None:
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(fd, ended.set)
        async with asyncio.timeout(EXIT_DEADLINE_S):
            await ended.wait()

    asyncio.run(wait())


def assert_all_gone(described: dict[str, Any]) -> None:
    assert not Path(described["old"]["qmp"]).parent.exists()
    assert not Path(f"/proc/{described['old']['pid']}").exists()
    assert not Path(f"/proc/{described['new']['pid']}").exists()
