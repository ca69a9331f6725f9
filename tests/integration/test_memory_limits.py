"""A control group's memory limit meets either process in an update: at most one owner, no hanging.

Nothing of the product knows about it. The kernel kills who asks for more, wherever that is, so the
limits here reach from "not another page" to enough.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import TypeVar

import pytest

from tests.framework.memory_cgroup import MemoryCgroup, memory_cgroup
from tests.scoreboard.rig import BUILD, GUEST, Rig, ended, status
from tools.lab.child import PLAIN_CHILD, ChildSetup
from tools.lab.errors import LabError, LaunchError
from tools.lab.launcher import Launched, Launcher
from tools.lab.process import VmmProcess

KIB, MIB = 1 << 10, 1 << 20
ENOUGH_BYTES = 1 << 30
Test = TypeVar("Test", bound=Callable[..., object])
# What either process may have beyond what it has when the update begins. Some 2 MiB are enough.
SPARE = [0, 64 * KIB, 256 * KIB, 512 * KIB, 1 * MIB, 1536 * KIB, 64 * MIB]


def long_and_limited(test: Test) -> Test:
    """Marks for every test here."""
    marked: Test = pytest.mark.long(pytest.mark.needs_memory_cgroup(test))
    return marked


@long_and_limited
def test_a_group_without_room_kills_who_is_in_it() -> None:
    """The instrument: otherwise nothing below would say anything."""

    async def story() -> None:
        with memory_cgroup() as group:
            group.limit(4 * MIB)
            setup = ChildSetup(entrance=group.enter)
            async with Launcher(GUEST, successor=setup) as launcher:
                await launcher.start_first(BUILD)
                with pytest.raises(LaunchError):
                    await launcher.start_successor(BUILD)

    asyncio.run(story())


@long_and_limited
@pytest.mark.parametrize("spare_bytes", SPARE)
async def test_successor_with_a_limit(spare_bytes: int) -> None:
    with memory_cgroup() as group:
        async with Launcher(GUEST, successor=ChildSetup(entrance=group.enter)) as launcher:
            old, serial = await launcher.start_first(BUILD)
            r = Rig(launcher, old, serial)
            new = await r.successor()
            word = await update_with(r, new, group, spare_bytes)
            if word == "completed":
                r.old = new.process
            else:
                assert await ended(new.process) != 0
                assert await r.reason()
            if await runs(r.old):
                await r.guest_goes_on()
                await r.update()
                await r.guest_goes_on()
            else:  # killed when the guest was its own already
                assert word == "completed"
                assert await ended(r.old) == -signal.SIGKILL
    assert word == "completed" or spare_bytes < SPARE[-1]


@long_and_limited
@pytest.mark.parametrize("spare_bytes", SPARE)
async def test_source_with_a_limit(spare_bytes: int) -> None:
    """A source that is killed before STATE takes the guest with it; then the successor says so."""
    with memory_cgroup() as group:
        setup = ChildSetup(entrance=group.enter)
        async with Launcher(GUEST, first=setup, successor=PLAIN_CHILD) as launcher:
            old, serial = await launcher.start_first(BUILD)
            r = Rig(launcher, old, serial)
            new = await r.successor()
            word = await update_with(r, new, group, spare_bytes)
            owners = [p for p in (r.old, new.process) if await runs(p)]
            if owners:
                (r.old,) = owners
                await r.guest_goes_on()
                await r.update()
                await r.guest_goes_on()
            else:
                assert await ended(r.old) == -signal.SIGKILL
                assert await ended(new.process) == 1
                assert "source" in new.process.log_tail()
    assert word == "completed" or spare_bytes < SPARE[-1]


async def update_with(r: Rig, new: Launched, group: MemoryCgroup, spare_bytes: int) -> str:
    """An update that ends somehow: the old process's last word, or `died`; then without a limit."""
    group.limit(group.usage_bytes + spare_bytes)
    await r.begin(new)
    word = asyncio.ensure_future(r.last_word())
    died = asyncio.ensure_future(r.old.wait_exit())
    await asyncio.wait({word, died}, return_when=asyncio.FIRST_COMPLETED)
    said = word.result() if word.done() and not word.exception() else "died"
    for each in (word, died):
        each.cancel()
    await asyncio.gather(word, died, return_exceptions=True)
    group.limit(ENOUGH_BYTES)
    return said


async def runs(process: VmmProcess) -> bool:
    """Whether it has the guest; a process that is about to end is waited for."""
    try:
        said = await status(process)
    except LabError:  # it ended meanwhile
        said = "inmigrate"
    if said == "inmigrate":
        await ended(process)
    return said == "running"
