"""The driver performs what the table says, in order, and says why things went wrong."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

import pytest

from cpr.channel import Channel
from cpr.driver import EVENT_OF_KIND
from cpr.errors import ChannelError, CprError, LocalProtocolError
from cpr.handshake import Action, Event, Phase, Role
from cpr.messages import (
    Abort,
    Commit,
    Connected,
    Failed,
    Fds,
    Listening,
    Loaded,
    Message,
    MessageKind,
    Prepared,
    Refuse,
    Rehearsal,
    Running,
    State,
)
from cpr.ownedfd import OwnedFd
from tests.unit.cpr.drivers import ACCEPT, attached, driver_in
from tests.unit.cpr.examples import HELLO
from tests.unit.cpr.pairs import close_all, memfds, run

NAMES = tuple(offer.name for offer in HELLO.fds)


def raises(error: Exception) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


# ---- the whole story -----------------------------------------------------------------------------


def test_two_drivers_hand_a_guest_over() -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        source, on_source = driver_in(Role.SOURCE, Phase.IDLE)
        target, on_target = driver_in(Role.TARGET, Phase.IDLE)
        sends, takes = Channel(ours, loop), Channel(theirs, loop)
        fds = memfds(len(NAMES))
        inodes = [os.fstat(fd.fileno()).st_ino for fd in fds]
        claimed: list[OwnedFd] = []

        def send_fds() -> None:
            sends.send(Fds(NAMES[:1], more=True), [fds[0].fileno()])
            sends.send(Fds(NAMES[1:]), [fds[1].fileno()])

        def build() -> None:
            claimed.extend(map(target.received_fds.claim, NAMES))
            target.feed(Event.BUILT)

        def main_sent() -> None:
            source.feed(Event.MAIN_SENT)
            target.feed(Event.MAIN_CHECKED)

        on_source.on = {
            Action.SEND_HELLO: lambda: sends.send(HELLO),
            Action.SEND_FDS: send_fds,
            Action.CONNECT_MAIN: main_sent,
            Action.REHEARSE: lambda: sends.send(Rehearsal(())),
            Action.STOP_GUEST: lambda: source.feed(Event.SAVED),
            Action.SEND_STATE: lambda: sends.send(State((), "running", 1, 2)),
            Action.SEND_COMMIT: lambda: sends.send(Commit()),
        }
        on_target.on = {
            Action.CHECK_HELLO: lambda: target.feed(Event.ACCEPTABLE),
            Action.SEND_ACCEPT: lambda: takes.send(ACCEPT),
            Action.BUILD: build,
            Action.SEND_LISTENING: lambda: takes.send(Listening()),
            Action.SEND_CONNECTED: lambda: takes.send(Connected()),
            Action.LOAD_REHEARSAL: lambda: target.feed(Event.REHEARSED),
            Action.SEND_PREPARED: lambda: takes.send(Prepared()),
            Action.LOAD_STATE: lambda: target.feed(Event.STATE_LOADED),
            Action.SEND_LOADED: lambda: takes.send(Loaded()),
            Action.TAKE_LEASE: lambda: target.feed(Event.LEASE_TAKEN),
            Action.SEND_RUNNING: lambda: takes.send(Running(3, "running")),
        }
        target.attach(takes)
        source.attach(sends)
        source.feed(Event.START)
        await source.finished.wait()
        await target.finished.wait()
        assert (source.handshake.phase, target.handshake.phase) == (Phase.DONE, Phase.DONE)
        assert [os.fstat(fd.fileno()).st_ino for fd in claimed] == inodes
        assert on_source.messages[-1] == Running(3, "running")
        assert [phase for _, _, phase in source.record] == [
            Phase.HELLO_SENT, Phase.FDS_SENT, Phase.CONNECTING, Phase.MAIN_WAIT, Phase.REHEARSING,
            Phase.REHEARSING_AGAIN, Phase.STOPPING, Phase.STATE_SENT, Phase.COMMITTED, Phase.DONE,
        ]  # fmt: skip
        times = [t_ns for t_ns, _, _ in source.record]
        assert times == sorted(times)
        assert (source.reason, target.reason) == ("", "")
        close_all(*fds, *claimed, source, target)

    run(story())


# ---- the pump ------------------------------------------------------------------------------------


def test_every_message_kind_is_an_event() -> None:
    assert set(EVENT_OF_KIND) == set(MessageKind)


def test_what_an_action_came_to_is_handled_before_what_was_heard_meanwhile() -> None:
    async def story() -> None:
        driver, performer = driver_in(Role.TARGET, Phase.LOADED)

        def take_lease() -> None:
            driver.feed(Event.LOST)
            driver.feed(Event.LEASE_TAKEN)

        performer.on = {Action.TAKE_LEASE: take_lease}
        driver.feed(Event.COMMIT)
        heard = [event for _, event, _ in driver.record]
        assert heard == [Event.COMMIT, Event.LEASE_TAKEN, Event.LOST]
        driver.close()

    run(story())


def test_events_fed_by_an_action_wait_until_its_row_is_done() -> None:
    async def story() -> None:
        driver, performer = driver_in(Role.TARGET, Phase.TAKING)
        performer.on = {
            Action.RUN_GUEST: lambda: driver.feed(Event.LOST),
            Action.SEND_RUNNING: lambda: driver.feed(Event.CANCEL),
        }
        driver.feed(Event.LEASE_TAKEN)
        assert performer.done == [Action.RUN_GUEST, Action.SEND_RUNNING, Action.COMPLETE]
        assert [event for _, event, _ in driver.record] == [
            Event.LEASE_TAKEN,
            Event.LOST,
            Event.CANCEL,
        ]
        driver.close()

    run(story())


def test_a_local_event_at_the_wrong_time_is_raised_after_the_others_were_handled() -> None:
    async def story() -> None:
        driver, performer = driver_in(Role.SOURCE, Phase.STATE_SENT)

        def two_events() -> None:
            driver.feed(Event.SAVED)
            driver.feed(Event.RUNNING)

        performer.on = {Action.RELEASE_LEASE: two_events}
        with pytest.raises(LocalProtocolError, match="SAVED"):
            driver.feed(Event.LOADED)
        assert driver.handshake.phase is Phase.DONE
        assert driver.finished.is_set()

    run(story())


def test_a_failed_action_is_a_failure_and_ends_its_row() -> None:
    async def story() -> None:
        driver, performer = driver_in(Role.SOURCE, Phase.STATE_SENT)
        performer.on = {Action.RELEASE_LEASE: raises(OSError("no such lock"))}
        driver.feed(Event.LOADED)
        assert performer.done == [Action.RELEASE_LEASE, Action.RECLAIM_LEASE]
        assert driver.reason == "no such lock"

    run(story())


def test_an_error_without_words_still_has_a_reason() -> None:
    async def story() -> None:
        driver, performer = driver_in(Role.TARGET, Phase.IDLE)
        performer.on = {Action.CHECK_HELLO: raises(ValueError())}
        driver.feed(Event.HELLO, HELLO)
        assert driver.reason == "ValueError()"
        assert performer.done == [Action.CHECK_HELLO, Action.SEND_FAILED, Action.REPORT]
        assert performer.messages == [HELLO, None, None]

    run(story())


def test_a_failure_in_the_last_row_is_raised_and_ends_it() -> None:
    async def story() -> None:
        driver, performer = driver_in(Role.TARGET, Phase.TAKING)
        performer.on = {Action.RUN_GUEST: raises(CprError("no cpu"))}
        with pytest.raises(CprError, match="no cpu"):
            driver.feed(Event.LEASE_TAKEN)
        assert performer.done == [
            Action.RUN_GUEST
        ]  # RUNNING is never said of a guest that does not
        assert driver.finished.is_set()

    run(story())


def test_a_failure_where_the_table_has_no_row_for_it_is_raised() -> None:
    async def story() -> None:
        driver, performer = driver_in(Role.SOURCE, Phase.UNDECIDED)
        performer.on = {Action.RECLAIM_LEASE: raises(CprError("odd"))}
        driver.feed(Event.RETRY)
        assert driver.handshake.phase is Phase.UNDECIDED
        with pytest.raises(LocalProtocolError, match="FAILURE"):
            driver.fail("nobody works on anything")

    run(story())


def test_a_channel_that_breaks_while_talking_does_not_keep_the_rest_from_being_done() -> None:
    async def story() -> None:
        driver, performer = driver_in(Role.TARGET, Phase.TAKING)
        performer.on = {Action.SEND_RUNNING: raises(ChannelError("gone"))}
        driver.feed(Event.LEASE_TAKEN)
        assert performer.done == [Action.RUN_GUEST, Action.SEND_RUNNING, Action.COMPLETE]
        assert driver.reason == ""

    run(story())


def test_a_channel_that_breaks_counts_as_loss_once() -> None:
    async def story() -> None:
        driver, performer = driver_in(Role.SOURCE, Phase.STATE_SENT)
        other = attached(driver)
        other.close()
        channel = driver._channel
        assert channel is not None
        performer.on = {Action.SEND_COMMIT: lambda: channel.send(Commit())}
        driver.feed(Event.LOADED)
        assert performer.done[-1] is Action.RECLAIM_LEASE
        assert [event for _, event, _ in driver.record] == [Event.LOADED, Event.LOST]
        driver.close()

    run(story())


def test_a_full_queue_counts_as_loss_too() -> None:
    async def story() -> None:
        driver, performer = driver_in(Role.SOURCE, Phase.STOPPING)
        performer.on = {Action.SEND_STATE: raises(ChannelError("the peer does not read"))}
        driver.feed(Event.SAVED)
        assert performer.done == [Action.SEND_STATE, Action.RESUME_GUEST, Action.REPORT]
        assert driver.reason == "lost the target in phase STATE_SENT: the peer does not read"

    run(story())


# ---- reasons -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "phase", "message", "reason"),
    [
        (Role.SOURCE, Phase.HELLO_SENT, Refuse(("no room", "no cpu")), "no room; no cpu"),
        (Role.SOURCE, Phase.FDS_SENT, Failed("no room"), "no room"),
        (Role.TARGET, Phase.BUILDING, Abort("cancelled", cancelled=True), "cancelled"),
        (Role.SOURCE, Phase.FDS_SENT, Loaded(), "the target sent LOADED in phase FDS_SENT"),
        (Role.TARGET, Phase.BUILDING, Commit(), "the source sent COMMIT in phase BUILDING"),
    ],
)
def test_the_reason_is_what_the_peer_said_or_did(
    role: Role, phase: Phase, message: Message, reason: str
) -> None:
    async def story() -> None:
        driver, _performer = driver_in(role, phase)
        other = attached(driver)
        other.send(message)
        await driver.finished.wait()
        assert driver.handshake.phase is Phase.ABORTED
        assert driver.reason == reason
        close_all(driver, other)

    run(story())


def test_loss_is_told_with_the_phase() -> None:
    async def story() -> None:
        driver, _performer = driver_in(Role.SOURCE, Phase.MAIN_WAIT)
        attached(driver).close()
        await driver.finished.wait()
        assert driver.reason == "lost the target in phase MAIN_WAIT: the peer closed the channel"
        driver.close()

    run(story())


def test_a_broken_frame_is_told_and_answered() -> None:
    async def story() -> None:
        driver, performer = driver_in(Role.TARGET, Phase.IDLE)
        ours, theirs = socket.socketpair()
        driver.attach(Channel(ours, asyncio.get_running_loop()))
        theirs.send(b"GET / HTTP/1.1")
        await driver.finished.wait()
        assert performer.done == [Action.SEND_FAILED, Action.REPORT]
        assert driver.reason.startswith("source: expected a frame that begins with b'CPRL'")
        close_all(driver, theirs)

    run(story())


def test_death_is_told_with_the_phase() -> None:
    async def story() -> None:
        driver, _performer = driver_in(Role.TARGET, Phase.BUILDING)
        driver._on_peer_died()
        assert driver.reason == "the source process died in phase BUILDING"

    run(story())


def test_local_work_that_fails_is_the_reason_and_later_ones_are_not() -> None:
    async def story() -> None:
        driver, performer = driver_in(Role.TARGET, Phase.BUILDING)
        driver.fail("no room")
        driver.fail("also no time")
        assert driver.reason == "no room"
        assert performer.done == [Action.SEND_FAILED, Action.REPORT]

    run(story())
