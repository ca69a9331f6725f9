"""What the driver waits for: deadlines, and the fds that HELLO offered."""

from __future__ import annotations

import pytest

from cpr.deadlines import Deadlines
from cpr.handshake import Action, Event, Phase, Role
from cpr.messages import Accept, FdOffer, Fds, Hello
from tests.unit.cpr.drivers import ACCEPT, attached, driver_in
from tests.unit.cpr.pairs import close_all, memfds, run

# ---- deadlines -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "deadlines", "reason"),
    [
        (ACCEPT, Deadlines(prepare_ms=1), "within 1 ms in phase FDS_SENT (deadline 'prepare')"),
        (
            Accept(1, "", "", deferred=True),
            Deadlines(defer_ms=1),
            "within 1 ms in phase FDS_SENT (deadline 'defer')",
        ),
    ],
)
def test_a_deadline_that_passes_is_named(accept: Accept, deadlines: Deadlines, reason: str) -> None:
    async def story() -> None:
        driver, performer = driver_in(Role.SOURCE, Phase.HELLO_SENT, deadlines)
        driver.feed(Event.ACCEPT, accept)
        await driver.finished.wait()
        assert driver.reason == f"the target did not answer {reason}"
        assert performer.done == [Action.SEND_FDS, Action.SEND_ABORT, Action.REPORT]

    run(story())


def test_a_target_whose_source_connects_and_says_nothing_does_not_wait_for_ever() -> None:
    async def story() -> None:
        driver, _performer = driver_in(Role.TARGET, Phase.IDLE, Deadlines(hello_ms=1))
        other = attached(driver)
        await driver.finished.wait()
        assert "(deadline 'hello')" in driver.reason
        close_all(driver, other)

    run(story())


def test_a_user_who_sets_the_pace_has_no_deadline() -> None:
    async def story() -> None:
        driver, performer = driver_in(Role.SOURCE, Phase.REHEARSING_AGAIN, Deadlines(stop_ms=1))
        performer.on = {Action.STOP_GUEST: driver.disarm}
        driver.feed(Event.PREPARED)
        assert driver._timer is None
        driver.disarm()
        assert driver.handshake.phase is Phase.STOPPING

    run(story())


def test_an_event_that_changes_nothing_does_not_start_the_deadline_again() -> None:
    async def story() -> None:
        driver, _performer = driver_in(Role.SOURCE, Phase.STATE_SENT)
        driver.feed(Event.LOADED)
        timer = driver._timer
        assert timer is not None
        driver.feed(Event.CANCEL)
        assert driver._timer is timer
        driver.feed(Event.RUNNING)
        assert timer.cancelled()

    run(story())


# ---- fds -----------------------------------------------------------------------------------------


def _hello_with(*names: str) -> Hello:
    offers = tuple(FdOffer(name, "ram", {}) for name in names)
    return Hello(1, 1, "", "", {}, (), offers, user_paced=False, nonce=b"")


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([Fds(("ram:a:0",))], "offered fd(s) ram:b:0 did not come"),
        ([Fds(("ram:a:0",), more=True), Fds(("ram:a:0", "ram:b:0"))], "fd 'ram:a:0' came twice"),
        ([Fds(("ram:a:0", "ram:c:0", "ram:b:0"))], "fd 'ram:c:0' came, but HELLO does not offer"),
        ([Fds(("ram:a:0", "nonsense"))], "fd name 'nonsense' is not 'kind:owner:index'"),
    ],
)
def test_fds_must_be_those_that_hello_offered(frames: list[Fds], reason: str) -> None:
    async def story() -> None:
        driver, performer = driver_in(Role.TARGET, Phase.IDLE)
        performer.on = {Action.CHECK_HELLO: lambda: driver.feed(Event.ACCEPTABLE)}
        other = attached(driver)
        offered = (
            ["ram:a:0", "ram:b:0", "nonsense"] if "nonsense" in reason else ["ram:a:0", "ram:b:0"]
        )
        other.send(_hello_with(*offered))
        for frame in frames:
            fds = memfds(len(frame.names))
            other.send(frame, [fd.fileno() for fd in fds])
            close_all(*fds)
        await driver.finished.wait()
        assert reason in driver.reason
        assert driver.handshake.phase is Phase.ABORTED
        assert not driver.received_fds.names
        close_all(driver, other)

    run(story())


def test_a_frame_with_fewer_fds_than_names_is_refused() -> None:
    async def story() -> None:
        driver, _performer = driver_in(Role.TARGET, Phase.ACCEPTED)
        other = attached(driver)
        (fd,) = memfds(1)
        other.send(Fds(("ram:a:0", "ram:b:0")), [fd.fileno()])
        await driver.finished.wait()
        assert driver.reason == "FDS names 2 fds and carries 1"
        close_all(fd, driver, other)

    run(story())


def test_fds_at_the_wrong_time_are_closed() -> None:
    async def story() -> None:
        driver, _performer = driver_in(Role.SOURCE, Phase.HELLO_SENT)
        other = attached(driver)
        (fd,) = memfds(1)
        other.send(Fds(("ram:a:0",)), [fd.fileno()])
        await driver.finished.wait()
        assert driver.reason == "the target sent FDS in phase HELLO_SENT"
        close_all(fd, driver, other)

    run(story())


def test_closing_a_driver_closes_what_nobody_claimed() -> None:
    async def story() -> None:
        driver, _performer = driver_in(Role.TARGET, Phase.ACCEPTED)
        (fd,) = memfds(1)
        driver.received_fds.offer("ram:a:0", fd)
        driver.close()
        driver.close()
        assert fd.closed

    run(story())
