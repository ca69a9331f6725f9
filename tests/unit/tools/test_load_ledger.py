"""The loss ledger: every way in which a frame can go wrong is counted as what it is."""

from __future__ import annotations

import argparse

import pytest

from tools.lab.load import LoadSpec, parse_load
from tools.lab.load_ledger import (
    Direction,
    LoadResult,
    SequenceLedger,
    StreamResult,
    predicted_loss,
)


def ledger_of(*sequences: int) -> SequenceLedger:
    ledger = SequenceLedger()
    for sequence in sequences:
        ledger.note(sequence)
    return ledger


@pytest.mark.parametrize(
    ("sequences", "lost", "duplicated", "reordered"),
    [
        ((0, 1, 2, 3), 0, 0, 0),
        ((0, 1, 3), 1, 0, 0),
        ((0, 2, 1, 3), 0, 0, 1),
        ((0, 1, 1, 2, 3), 0, 1, 0),
        ((0, 3, 1, 1), 1, 1, 1),
        ((), 4, 0, 0),
    ],
    ids=["in order", "one lost", "two exchanged", "one twice", "all of it", "nothing came"],
)
def test_ledger_counts_what_went_wrong(
    sequences: tuple[int, ...], lost: int, duplicated: int, reordered: int
) -> None:
    found = ledger_of(*sequences).direction("flow", sent=4)
    assert (found.lost, found.duplicated, found.reordered) == (lost, duplicated, reordered)
    assert found.clean == (not (lost or duplicated or reordered))


def test_flow_that_began_before_we_listened_has_no_hole_before_its_first_frame() -> None:
    found = ledger_of(1000, 1001, 1003)
    assert (found.first, found.next, found.received) == (1000, 1004, 3)


def result(**changes: object) -> LoadResult:
    values: dict[str, object] = {
        "seconds": 1.0,
        "directions": (Direction("there", 3, 3, 0, 0, 0), Direction("back", 3, 3, 0, 0, 0)),
        "streams": (StreamResult(10, 10, exact=True),),
        "longest_ping_hole_ms": 12.0,
        "longest_round_trip_ms": 1.0,
        "tap_tx_dropped": 0,
    }
    return LoadResult(**{**values, **changes})  # type: ignore[arg-type] # tests name the fields


def test_clean_run_has_no_problems_and_one_line_says_so() -> None:
    assert result().problems() == ()
    assert "sent 6, received 6, lost 0" in result().summary()
    assert "TCP 1/1 byte-exact; longest ping hole 12.0 ms" in result().summary()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"directions": (Direction("there", 3, 2, 1, 0, 0),)}, "there: sent 3, received 2, lost 1"),
        ({"streams": (StreamResult(10, 9, exact=False),)}, "the hashes of both ends differ"),
        ({"streams": (StreamResult(9, 9, exact=True, error="reset"),)}, "9 came back, reset"),
        ({"tap_tx_dropped": 7}, "the tap dropped 7 frames"),
        ({"guest_resets": 1}, "the guest lost 1 TCP connections"),
    ],
    ids=["frame lost", "bytes differ", "reset", "tap dropped", "guest reset"],
)
def test_every_kind_of_loss_is_a_problem(changes: dict[str, object], text: str) -> None:
    (problem,) = result(**changes).problems()
    assert text in problem


@pytest.mark.parametrize(("frames", "loss"), [(900.0, 0), (1000.0, 0), (1500.4, 500)])
def test_the_queue_holds_its_length_and_no_more(frames: float, loss: int) -> None:
    assert predicted_loss(frames, txqueuelen=1000) == loss


def test_load_option_is_read_and_written_alike() -> None:
    assert parse_load("udp=1000,tcp=4,ping") == LoadSpec(udp_pps=1000, tcp_streams=4, ping=True)
    assert str(parse_load("ping,udp=50")) == "udp=50,ping"
    assert parse_load("tcp=2@10") == LoadSpec(tcp_streams=2, tcp_writes_per_s=10)
    assert str(parse_load("tcp=2@10,udp=5")) == "udp=5,tcp=2@10"


@pytest.mark.parametrize(
    "text", ["udp", "udp=0", "tcp=8", "tcp=1@", "tcp=1@0", "ping=1", "", "sctp=1"]
)
def test_wrong_load_is_refused_with_the_choices(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"udp=FRAMES_PER_SECOND, tcp=1\.\.7"):
        parse_load(text)
