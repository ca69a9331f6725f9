"""The echo that measures the data path, against a peer that can misbehave."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tools.lab.bench import path
from tools.lab.bench.path import FRAME_BYTES, echo
from tools.lab.errors import CheckFailedError

Answer = Callable[[int, bytes], list[bytes]]


@contextmanager
def peer(answer: Answer) -> Iterator[socket.socket]:
    """A datagram socket whose other end sends `answer(number, datagram)` for each datagram."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    def serve() -> None:
        number = 0
        while data := theirs.recv(2 * FRAME_BYTES):
            for each in answer(number, data):
                theirs.send(each)
            number += 1

    thread = threading.Thread(target=serve)
    thread.start()
    ours.settimeout(path.ECHO_DEADLINE_S)
    try:
        yield ours
    finally:
        ours.send(b"")
        thread.join()
        ours.close()
        theirs.close()


@pytest.mark.parametrize("window", [1, 7])
def test_every_frame_comes_back_with_its_round_trip(window: int) -> None:
    with peer(lambda _number, data: [data]) as sock:
        trips = echo(sock, 50, window)
    assert len(trips) == 50
    assert min(trips) > 0


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (lambda number, data: [] if number == 3 else [data], "echo 3 of 8"),
        (lambda number, data: [data, data] if number == 3 else [data], "echo 4 of 8.*sequence=3"),
        (lambda _number, _data: [b"x"], "echo 0 of 8: None came back"),
    ],
    ids=["lost", "doubled", "garbage"],
)
def test_frame_that_does_not_come_back_once_ends_the_measurement(
    answer: Answer, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(path, "ECHO_DEADLINE_S", 1.0)
    with peer(answer) as sock, pytest.raises(CheckFailedError, match=problem):
        echo(sock, 8, 2)
