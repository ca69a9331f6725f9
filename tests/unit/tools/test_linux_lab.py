"""The parts of the Linux lab that need no Linux."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tools.lab.errors import CheckFailedError, LabError
from tools.lab.linux.agentlink import OF_A_CROWDED_HOST, AgentReport, check_report
from tools.lab.linux.cpio import Entry, archive
from tools.lab.linux.disk import BLOCK_BYTES, block, check_disk, check_numbers

REPORT: dict[str, Any] = {
    "ticks": 10,
    "longest_gap_ns": 5,
    "longest_drift_ns": 5,
    "monotonic_backwards": 0,
    "realtime_backwards": 0,
    "blocks_written": 3,
    "disk_errors": 0,
    "answers_refused": 0,
    "queue_drops": 0,
    "flows": [
        {"flow": 1, "run": 2, "received": 9, "next_sequence": 9, "duplicated": 1, "reordered": 0}
    ],
    "warnings": ["known at boot"],
}


def report(**changed: Any) -> AgentReport:
    return AgentReport.parse(json.dumps({**REPORT, **changed}).encode())


def test_a_report_is_read_with_its_flows() -> None:
    flow = report().net_report().flow(1, 2)
    assert flow is not None
    assert (flow.received, flow.duplicated, flow.missing) == (9, 1, 1)


@pytest.mark.parametrize("line", [b"", b"[]", b"{}", b'{"flows": []}'])
def test_what_is_no_report_is_refused(line: bytes) -> None:
    with pytest.raises(LabError, match="the guest's agent sent"):
        AgentReport.parse(line)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ticks": 10}, "the ticker stands at 10"),
        ({"monotonic_backwards": 1}, "CLOCK_MONOTONIC went backwards"),
        ({"realtime_backwards": 1}, "CLOCK_REALTIME went backwards"),
        ({"longest_drift_ns": 5_000_000}, "CLOCK_REALTIME jumped"),
        ({"disk_errors": 1}, "1 disk errors"),
        ({"answers_refused": 2}, "2 UDP answers refused"),
        ({"queue_drops": 2}, "2 frames dropped by Linux's own queue"),
        ({"warnings": ["known at boot", "soft lockup"]}, "the kernel says: soft lockup"),
    ],
)
def test_everything_that_a_guest_may_not_notice_is_a_failure(
    changed: dict[str, Any], message: str
) -> None:
    check_report(report(), report(ticks=11))
    with pytest.raises(CheckFailedError, match=message):
        check_report(report(), report(**{"ticks": 11, **changed}))


def test_only_what_is_allowed_may_be_said_by_the_kernel() -> None:
    slow = report(ticks=11, warnings=["known at boot", "hrtimer: interrupt took 20040388 ns"])
    check_report(report(), slow, allowed=OF_A_CROWDED_HOST)
    with pytest.raises(CheckFailedError, match="the kernel says: hrtimer"):
        check_report(report(), slow)
    with pytest.raises(CheckFailedError, match="the kernel says: soft lockup"):
        check_report(
            report(), report(ticks=11, warnings=["", "soft lockup"]), allowed=OF_A_CROWDED_HOST
        )


def test_a_disk_must_hold_the_last_write_of_each_block(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    places, written = 4, 6
    content = [block(s, s % places * BLOCK_BYTES) for s in (4, 5, 2, 3)]
    image.write_bytes(b"".join(content))
    check_disk(image, written)
    with pytest.raises(CheckFailedError, match="the guest wrote nothing"):
        check_disk(image, 0)
    with pytest.raises(CheckFailedError, match="should hold write 6 of 7, it holds 2"):
        check_disk(image, written + 1)
    image.write_bytes(b"".join(content)[:-1] + b"!")
    with pytest.raises(CheckFailedError, match="should hold write 3"):
        check_disk(image, written)


def test_an_archive_has_folders_before_files_and_ends_in_its_trailer() -> None:
    data = archive([Entry.file("a/b/c", b"12345"), Entry.file("a/d", b""), Entry.folder("a")])
    names, offset = [], 0
    while True:
        assert data[offset : offset + 6] == b"070701"
        size = int(data[offset + 54 : offset + 62], 16)
        name_size = int(data[offset + 94 : offset + 102], 16)
        names.append(data[offset + 110 : offset + 110 + name_size - 1].decode())
        offset += (110 + name_size + 3 & ~3) + (size + 3 & ~3)
        if names[-1] == "TRAILER!!!":
            break
    assert names == ["a", "a/b", "a/b/c", "a/d", "TRAILER!!!"]
    assert offset == len(data)


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (b"0\r\n1\r\n", "line 2 of 3 should be 2, it is nothing"),
        (b"0\r\n2\r\n1\r\n", "line 1 of 3 should be 1, it is 2"),
        (b"0\r\n1\r\n1\r\n2\r\n", "line 2 of 3 should be 2, it is 1"),
        (b"0\r\n1\r\n2\r\n3\r\n", "line 3 of 3 should be nothing, it is 3"),
        (b"0\r\n1\r\n\xff\r\n", "line 2 of 3 should be 2, it is \ufffd"),
    ],
    ids=["lost", "reordered", "doubled", "invented", "garbled"],
)
def test_each_block_is_announced_once_and_in_order(
    tmp_path: Path, said: bytes, problem: str
) -> None:
    console = tmp_path / "numbers"
    console.write_bytes(b"0\r\n1\r\n2\r\n")
    check_numbers(console, 3)
    console.write_bytes(said)
    with pytest.raises(CheckFailedError, match=problem):
        check_numbers(console, 3)
