"""What an update leaves behind: no socket file, no process, no fd, no thread too many."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.framework.dialogue import Wire, story
from tests.framework.guest_rig import Rig, Successor, query_migrate, runstate
from tests.framework.rounds import goes_on
from tests.integration.conftest import MakeGuest
from tools.lab.procfs import child_pids, find_memfd, leaks, memfd_identity

PAUSE_BEFORE_SWITCHOVER = {
    "capabilities": [{"capability": "pause-before-switchover", "state": True}]
}
RIG_SOCKETS = ("line.sock", "gen*.qmp", "cpr*.sock")

pytestmark = pytest.mark.needs_assembler


@pytest.fixture
async def rig(guest: MakeGuest) -> AsyncIterator[Rig]:
    async with Rig("unicorn", "-kernel", str(guest("real"))) as new_rig:
        yield new_rig


def dotted(kind: str, path: Path) -> str:
    """A channel for -incoming in QEMU's second form."""
    return f"{kind},addr.transport=socket,addr.type=unix,addr.path={path}"


async def successor_that_binds(rig: Rig, *extra: str) -> Successor:
    """A successor that makes its own sockets, as the one of a plain QEMU command line does."""
    cpr, main = rig.run_dir / "own-cpr", rig.run_dir / "own-main"
    process = await rig.launch(
        *("-incoming", dotted("main", main), "-incoming", dotted("cpr", cpr)),
        *("-global", "migration.x-events=on"),
        *("-chardev", f"socket,id=line,path={rig.run_dir}/line.sock,server=on,wait=off"),
        *extra,
    )
    return Successor(process, cpr, main)


def socket_files(rig: Rig) -> set[str]:
    """Names of the sockets in the run directory, without those that the rig itself bound."""
    made = {path for made_here in RIG_SOCKETS for path in rig.run_dir.glob(made_here)}
    return {path.name for path in rig.run_dir.iterdir() if path.is_socket() and path not in made}


async def test_sockets_of_an_update_are_gone_as_soon_as_they_are_accepted(rig: Rig) -> None:
    await rig.boot()
    new = await successor_that_binds(rig)
    assert new.cpr_path.is_socket()
    await rig.migrate(new)
    await story(rig.vmm)
    await story(new.process)
    assert socket_files(rig) == set()
    await goes_on(rig.line)


async def test_paths_are_gone_while_an_accepted_update_still_waits(rig: Rig) -> None:
    await rig.boot()
    new = await successor_that_binds(rig)
    await rig.vmm.execute("migrate-set-capabilities", PAUSE_BEFORE_SWITCHOVER)
    await rig.migrate(new)
    await story(rig.vmm, "MIGRATION pre-switchover")
    assert socket_files(rig) == set()
    await rig.vmm.execute("migrate_cancel")
    await story(rig.vmm)
    await goes_on(rig.line)


async def test_successor_that_ends_unused_removes_its_sockets(rig: Rig) -> None:
    await rig.boot()
    qmp = rig.run_dir / "second-qmp"
    new = await successor_that_binds(rig, "-qmp", f"unix:{qmp},server=on,wait=off")
    assert socket_files(rig) == {"own-cpr", "second-qmp"}
    assert await new.process.quit() == 0
    assert socket_files(rig) == set()


async def test_both_processes_may_use_one_qmp_path(rig: Rig) -> None:
    path = rig.run_dir / "shared-qmp"
    option = ("-qmp", f"unix:{path},server=on,wait=off")
    await rig.boot(*option)
    with_old = await Wire.connect(path)
    new = await rig.successor(*option)
    with_new = await Wire.connect(path)
    with_new.send("query-status")
    assert await with_new.line() == {"return": {"status": "inmigrate", "running": False}}
    with_old.send("query-status")
    assert await with_old.line() == {"return": {"status": "running", "running": True}}
    await rig.migrate(new)
    await story(rig.vmm)
    await story(new.process)
    assert await rig.vmm.quit() == 0
    assert path.is_socket()  # it is the successor's now
    for wire in (with_old, with_new, again := await Wire.connect(path)):
        await wire.close()
    del again
    assert await new.process.quit() == 0
    assert not path.exists()


async def test_each_generation_holds_what_the_first_one_held(accel: str, guest: MakeGuest) -> None:
    async with Rig(accel, "-kernel", str(guest("real"))) as rig:
        first = await rig.boot()
        await goes_on(rig.line)
        with rig.ram() as ram:
            identity = ram.identity
        before = first.counters()
        await rig.update()
        second, steady = rig.vmm, rig.vmm.counters()
        assert leaks(before, first.counters()) == ()
        await rig.update()
        assert leaks(steady, rig.vmm.counters()) == ()
        assert rig.vmm.counters().children == 0
        ram_size = ram.ram_bytes
        assert memfd_identity(find_memfd(rig.vmm.pid, ram_size)) == identity
        for process in (first, second, rig.vmm):
            assert await process.quit() == 0
        assert child_pids(os.getpid()) == ()
        assert socket_files(rig) == set()


async def test_failed_update_leaves_the_source_as_it_was(rig: Rig) -> None:
    await rig.boot()
    await rig.update()  # the first one warms what stays
    before = rig.vmm.counters()
    new = await rig.successor(defer=True)
    await rig.migrate(new)
    await new.process.terminate()
    await story(rig.vmm)
    assert (await query_migrate(rig.vmm))["status"] == "failed"
    assert await runstate(rig.vmm) == "running"
    assert leaks(before, rig.vmm.counters()) == ()
    await goes_on(rig.line)
