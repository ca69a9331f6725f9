"""Faults on request: what can be asked for, and that each is what its name says."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cpr.channel import Channel
from cpr.codec import encode
from cpr.messages import Commit, Fds
from cpr.phases import Action, Role
from vmm.errors import MigrationError
from vmm.update.faults import Fault, FaultInjector, FaultPlan, When, injector_of


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("target/before/kill", "expected ROLE/WHEN/ACTION/FAULT"),
        ("nobody/before/BUILD/kill", "ROLE 'nobody' is not one of source, target"),
        ("target/during/BUILD/kill", "WHEN 'during' is not one of before, after"),
        ("target/before/DANCE/kill", "ACTION 'DANCE' is not one of SEND_HELLO"),
        ("target/before/BUILD/sulk", "FAULT 'sulk' is not one of kill, hang"),
        ("target/before/BUILD/flip", "BUILD sends no frame to damage"),
    ],
)
def test_fault_that_is_not_understood_is_refused_with_the_choices(text: str, problem: str) -> None:
    with pytest.raises(MigrationError, match=problem):
        FaultPlan.parse(text)


def test_plan_is_written_as_it_is_read() -> None:
    text = "source/after/SEND_STATE/half-close"
    assert str(FaultPlan.parse(text)) == text


def test_updates_of_every_day_have_no_injector() -> None:
    assert injector_of(None) is None


@pytest.fixture
async def channel() -> Iterator[tuple[Channel, socket.socket]]:  # type: ignore[misc]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    made = Channel(ours, asyncio.get_running_loop())
    made.start(lambda _message, _fds: None, lambda _reason: None)
    yield made, theirs
    made.close()
    theirs.close()


Pair = tuple[Channel, socket.socket]


def injector(text: str) -> FaultInjector:
    return FaultInjector(FaultPlan.parse(text))


async def test_only_the_step_that_was_asked_for_fails_and_only_once(
    channel: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    signals: list[int] = []
    monkeypatch.setattr(os, "kill", lambda _pid, number: signals.append(number))
    fault = injector("source/after/SEND_COMMIT/kill")
    for action in (Action.SEND_STATE, Action.SEND_COMMIT, Action.SEND_COMMIT):
        fault.before(action, channel[0])
        fault.after(action, channel[0])
    assert signals == [signal.SIGKILL]


async def test_hang_is_a_stop_signal(channel: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    signals: list[int] = []
    monkeypatch.setattr(os, "kill", lambda _pid, number: signals.append(number))
    injector("target/before/BUILD/hang").before(Action.BUILD, channel[0])
    assert signals == [signal.SIGSTOP]


@pytest.mark.parametrize(("fault", "we_hear"), [("eof", False), ("half-close", True)])
async def test_peer_meets_the_end_and_a_half_close_leaves_us_listening(
    channel: Pair, fault: str, we_hear: bool
) -> None:
    ours, theirs = channel
    injector(f"source/before/SEND_STATE/{fault}").before(Action.SEND_STATE, ours)
    assert theirs.recv(1) == b""
    if we_hear:
        theirs.send(b"x")
    else:
        with pytest.raises(BrokenPipeError):
            theirs.send(b"x")


async def test_reset_is_told_as_the_kernel_tells_it() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    reasons: list[str] = []
    made = Channel(ours, asyncio.get_running_loop())
    made.start(lambda _message, _fds: None, reasons.append)
    injector("source/before/SEND_STATE/reset").before(Action.SEND_STATE, made)
    assert reasons == ["receiving failed: Connection reset by peer"]
    made.close()
    theirs.close()


def sent(channel: Pair, text: str) -> bytes:
    """What arrives of COMMIT under a fault, and of a second COMMIT after it."""
    ours, theirs = channel
    fault = injector(text)
    fault.before(Action.SEND_COMMIT, ours)
    ours.send(Commit())
    fault.after(Action.SEND_COMMIT, ours)
    return theirs.recv(4096)


async def test_flip_changes_one_bit_of_one_frame(channel: Pair) -> None:
    frame, damaged = encode(Commit()), sent(channel, "source/before/SEND_COMMIT/flip")
    different = [a ^ b for a, b in zip(frame, damaged, strict=True) if a != b]
    assert len(different) == 1
    assert different[0].bit_count() == 1
    channel[0].send(Commit())
    assert channel[1].recv(4096) == frame


async def test_duplicate_sends_the_frame_twice(channel: Pair) -> None:
    assert sent(channel, "source/before/SEND_COMMIT/duplicate") == 2 * encode(Commit())


async def test_short_sends_half_and_ends(channel: Pair) -> None:
    frame = encode(Commit())
    assert sent(channel, "source/before/SEND_COMMIT/short") == frame[: len(frame) // 2]
    assert channel[1].recv(1) == b""


def kind_of(fd: int) -> str:
    return str(Path(f"/proc/self/fd/{fd}").readlink()).partition(":")[0]


@pytest.mark.parametrize(("fault", "count"), [("fd-missing", 1), ("fd-wrong", 2)])
async def test_fds_are_not_what_the_frame_says(channel: Pair, fault: str, count: int) -> None:
    ours, theirs = channel
    harm = injector(f"source/before/SEND_FDS/{fault}")
    harm.before(Action.SEND_FDS, ours)
    ours.send(Fds(names=("a", "b")), (ours._sock.fileno(), ours._sock.fileno()))
    _data, fds, _flags, _address = socket.recv_fds(theirs, 4096, 8)
    kinds = [kind_of(fd) for fd in fds]
    for fd in fds:
        os.close(fd)
    harm.close()
    assert kinds == (["socket"] if count == 1 else ["/dev/null", "socket"])


@pytest.fixture
def limits() -> Iterator[None]:
    kinds = (resource.RLIMIT_NOFILE, resource.RLIMIT_AS)
    before = {kind: resource.getrlimit(kind) for kind in kinds}
    yield
    for kind, limit in before.items():
        resource.setrlimit(kind, limit)


@pytest.mark.parametrize(
    ("fault", "attempt", "error"),
    [
        ("no-fds", lambda: os.close(os.open("/", os.O_RDONLY)), OSError),
        ("no-memory", lambda: bytearray(64 << 20), MemoryError),
    ],
)
@pytest.mark.usefixtures("limits")
def test_what_is_lacking_comes_back_when_the_update_is_over(
    fault: str, attempt: Callable[[], object], error: type[Exception]
) -> None:
    harm = injector(f"target/before/BUILD/{fault}")
    harm.before(Action.BUILD, None)
    with pytest.raises(error):
        attempt()
    harm.before(Action.REPORT, None)
    attempt()


def test_fault_of_a_channel_that_is_not_there_yet_says_so() -> None:
    with pytest.raises(MigrationError, match="there is no channel yet"):
        injector("source/before/SEND_HELLO/eof").before(Action.SEND_HELLO, None)


def test_plan_names_its_role() -> None:
    plan = FaultPlan.parse("target/before/LOAD_STATE/kill")
    assert (plan.role, plan.when, plan.action, plan.fault) == (
        Role.TARGET, When.BEFORE, Action.LOAD_STATE, Fault.KILL,
    )  # fmt: skip
