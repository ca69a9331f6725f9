"""`cont` on a successor that is undecided asks the kernel again."""

from __future__ import annotations

from functools import partial

from cpr.driver import Driver
from cpr.handshake import Action, Event, Phase, Role
from tests.unit.cpr.drivers import driver_in
from tests.unit.cpr.pairs import run
from vmm.update.target import TargetUpdate


def update_with(driver: Driver) -> TargetUpdate:
    """Only what `retry` uses: the rest of an update needs a whole process."""
    update = object.__new__(TargetUpdate)
    update._driver = driver
    return update


def test_the_answer_of_the_kernel_is_the_answer_to_the_user() -> None:
    async def story() -> None:
        for answer, phase, reason in (
            (Event.LEASE_BUSY, Phase.ORPHAN_WAIT, "the source holds it"),
            (Event.LEASE_TAKEN, Phase.DONE, None),
            (Event.EPOCH_MOVED, Phase.ABORTED, None),
        ):
            driver, performer = driver_in(Role.TARGET, Phase.UNDECIDED)
            driver.reason = "the source holds it"
            performer.on = {Action.TAKE_LEASE: partial(driver.feed, answer)}
            assert update_with(driver).retry() == reason
            assert driver.handshake.phase is phase
            driver.close()

    run(story())


def test_an_update_that_is_not_undecided_is_not_asked() -> None:
    async def story() -> None:
        driver, performer = driver_in(Role.TARGET, Phase.LOADED)
        assert update_with(driver).retry() is None
        assert performer.done == []
        driver.close()

    run(story())
