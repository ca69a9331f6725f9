"""Every ordered pair of versions: it works, or is refused while the guest runs, with what differs.

The guest goes on in every case, and the old process can then still be updated to its own version.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tests.skew import skewed_vmm
from tests.skew.flavours import FLAVOURS, expected_refusal
from tools.lab.argv import Build, GuestSpec
from tools.lab.deadlines import EXIT_MS, within
from tools.lab.errors import UpdateFailedError
from tools.lab.heartbeat import HeartbeatReader
from tools.lab.launcher import Launched, Launcher
from tools.lab.options import own_vmm
from tools.lab.update import live_update

GUEST = GuestSpec(ram_bytes=32 << 20, pages=64, heartbeat_ms=5)
HEARTBEATS = 5
OTHERS = [name for name in FLAVOURS if name != "present"]
# One for each rule; the rest, and every ordered pair, with the long proofs.
USUAL = ("past-section", "future-protocols", "future-section", "future-optional")


def build(flavour: str) -> Build:
    return Build(own_vmm() if flavour == "present" else skewed_vmm.command(flavour), "unicorn")


class Rig:
    """A guest in a process of one version."""

    def __init__(self, launcher: Launcher, flavour: str, old: Launched, serial: HeartbeatReader):
        self.launcher, self.flavour, self.old, self.serial = launcher, flavour, old, serial

    async def meets(self, other: str) -> None:
        """Update to a process of version `other`; the guest is in that one then, or stays."""
        refusal = expected_refusal(FLAVOURS[self.flavour], FLAVOURS[other])
        new = await self.launcher.start_successor(build(other))
        update = live_update(self.old.process, new.process, new.sockets.migrate_arguments())
        if refusal is None:
            await update
            await self.old.process.quit()
            self.old, self.flavour = new, other
        else:
            with pytest.raises(UpdateFailedError):
                await update
            await self._was_refused(new, refusal)
        await self.guest_goes_on()

    async def guest_goes_on(self) -> None:
        await self.serial.wait_lines(HEARTBEATS)
        assert self.serial.problems == []
        assert self.serial.latest is not None
        assert self.serial.latest.errors == 0

    async def _was_refused(self, new: Launched, named: str) -> None:
        info = await self.old.process.execute("query-migrate")
        assert info["status"] == "failed"
        assert named in info["error-desc"], info
        marks = await self.old.process.execute("x-query-cpr-timeline")
        assert not [mark for mark in marks if mark["what"] == "kick"], "the guest was stopped"
        assert (await self.old.process.execute("query-status"))["status"] == "running"
        assert await within(EXIT_MS, "the refusing successor's end", new.process.wait_exit()) == 1
        assert named in new.process.log_path.read_text()


@contextlib.asynccontextmanager
async def rig(flavour: str) -> AsyncIterator[Rig]:
    async with Launcher(GUEST) as launcher:
        old, serial = await launcher.start_first(build(flavour))
        yield Rig(launcher, flavour, old, serial)


def refused_by(flavour: str) -> list[str]:
    return [name for name in FLAVOURS if expected_refusal(FLAVOURS[flavour], FLAVOURS[name])]


async def test_present_version_to_every_other_that_refuses_it() -> None:
    async with rig("present") as r:
        refusing = refused_by("present")
        assert refusing
        for other in refusing:
            await r.meets(other)
        await r.meets("present")


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(name, marks=() if name in USUAL else pytest.mark.long, id=name)
        for name in OTHERS
    ],
)
async def test_every_other_version_to_the_present_one_and_back(other: str) -> None:
    async with rig(other) as r:
        await r.meets("present")
        if r.flavour == "present":
            await r.meets(other)
        await r.meets(r.flavour)


async def test_two_versions_with_one_protocol_in_common_that_only_one_prefers() -> None:
    async with rig("future-protocols") as r:  # 1..2 to 2..2: all but HELLO goes out in 2
        await r.meets("future-protocol")


@pytest.mark.long
@pytest.mark.parametrize("source", OTHERS)
async def test_every_ordered_pair(source: str) -> None:
    for target in OTHERS:
        async with asyncio.timeout(60), rig(source) as r:
            await r.meets(target)


def test_pairs_that_work_and_pairs_that_are_refused_are_both_there() -> None:
    outcomes = {expected_refusal(a, b) for a in FLAVOURS.values() for b in FLAVOURS.values()}
    protocol = "protocol 1..1, this process 2..2"  # and other pairs without one in common
    assert {None, protocol, "pc-ports", "fan0"} <= outcomes
