"""The dialogue of a live update as QEMU 10.0 leads it: events, replies and final run states.

Driven by qemu.qmp's client, unchanged. What a QEMU 10.0.2 said in the same dialogue is written here
as the expectation; where we differ on purpose, the test says so.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from qemu.qmp import ExecuteError

from tests.framework.dialogue import Wire, both_stories, story
from tests.framework.guest_rig import Rig, exit_status, query_migrate, runstate
from tests.framework.rounds import goes_on
from tests.integration.conftest import MakeGuest
from tools.lab.update import EVENTS_ON

pytestmark = pytest.mark.needs_assembler

# Old and new side of an update of a running guest; the new one's events are on from the start.
OLD_RUNNING = [
    "MIGRATION setup",
    "STOP",
    "MIGRATION_PASS 1",
    "MIGRATION active",
    "MIGRATION device",
    "MIGRATION_PASS 2",
    "MIGRATION completed",
]
OLD_NOT_RUNNING = [event for event in OLD_RUNNING if event != "STOP"]
NEW_RUNNING = ["MIGRATION setup", "MIGRATION active", "RESUME", "MIGRATION completed"]
NEW_NOT_RUNNING = [event for event in NEW_RUNNING if event != "RESUME"]
# query-migrate of a completed update in QEMU 10.0.2, without times and what depends on them.
COMPLETED_KEYS = {"status", "setup-time", "downtime", "total-time", "ram"}
RAM_COUNTERS = {
    **dict.fromkeys(("total", "postcopy-requests", "multifd-bytes", "pages-per-second"), 0),
    **dict.fromkeys(("downtime-bytes", "remaining", "postcopy-bytes", "duplicate", "normal"), 0),
    **dict.fromkeys(("dirty-sync-missed-zero-copy", "precopy-bytes", "dirty-pages-rate"), 0),
    "normal-bytes": 0,
    "dirty-sync-count": 2,
    "page-size": 4096,
}


@pytest.fixture
async def rig(guest: MakeGuest) -> AsyncIterator[Rig]:
    async with Rig("unicorn", "-kernel", str(guest("real"))) as new_rig:
        yield new_rig


async def test_running_guest(accel: str, guest: MakeGuest) -> None:
    async with Rig(accel, "-kernel", str(guest("real"))) as rig:
        await rig.boot()
        await goes_on(rig.line)
        old = rig.vmm
        assert await query_migrate(old) == {}
        new = await rig.successor()
        status = await new.process.execute("query-status")
        assert status == {"status": "inmigrate", "running": False}

        assert await both_stories(rig, new) == (OLD_RUNNING, NEW_RUNNING)

        assert await old.execute("query-status") == {"status": "postmigrate", "running": False}
        status = await new.process.execute("query-status")
        assert status == {"status": "running", "running": True}
        info = await query_migrate(old)
        assert info.keys() == COMPLETED_KEYS
        assert info["status"] == "completed"
        ram = info["ram"]
        assert ram.pop("transferred") > 0
        assert ram.pop("mbps") > 0
        assert ram == RAM_COUNTERS
        assert await query_migrate(new.process) == {"status": "completed"}
        parameters = await new.process.execute("query-migrate-parameters")
        assert parameters["mode"] == "normal"
        await goes_on(rig.line)
        assert await old.quit() == 0
        await goes_on(rig.line)
        assert await new.process.quit() == 0


async def test_order_on_the_wire_of_events_and_replies(rig: Rig) -> None:
    await rig.boot()
    new = await rig.successor()
    wire = await Wire.connect(rig.run_dir / "gen0.qmp")
    wire.send("migrate-set-capabilities", EVENTS_ON)
    wire.send("migrate-set-parameters", {"mode": "cpr-transfer"})
    wire.send("migrate", new.migrate_arguments)
    assert await wire.line() == {"return": {}}
    assert await wire.line() == {"return": {}}
    assert await wire.line() == {"event": "MIGRATION", "data": {"status": "setup"}}
    assert await wire.line() == {"return": {}}
    assert await wire.line() == {"event": "STOP"}
    assert await wire.line() == {"event": "MIGRATION_PASS", "data": {"pass": 1}}
    for status in ("active", "device"):
        assert await wire.line() == {"event": "MIGRATION", "data": {"status": status}}
    assert await wire.line() == {"event": "MIGRATION_PASS", "data": {"pass": 2}}
    assert await wire.line() == {"event": "MIGRATION", "data": {"status": "completed"}}
    wire.send("quit")
    shutdown = {"guest": False, "reason": "host-qmp-quit"}
    assert await wire.line() == {"event": "SHUTDOWN", "data": shutdown}
    assert await wire.line() == {"return": {}}
    assert await wire.ended()
    await wire.close()


async def test_paused_guest_stays_paused(rig: Rig) -> None:
    await rig.boot()
    await rig.vmm.execute("stop")
    new = await rig.successor()
    assert await both_stories(rig, new) == (OLD_NOT_RUNNING, NEW_NOT_RUNNING)
    assert (await runstate(rig.vmm), await runstate(new.process)) == ("postmigrate", "paused")
    await new.process.execute("cont")
    await goes_on(rig.line)


async def test_guest_that_never_ran_stays_in_prelaunch(rig: Rig) -> None:
    await rig.boot("-S")
    new = await rig.successor()
    assert await both_stories(rig, new) == (OLD_NOT_RUNNING, NEW_NOT_RUNNING)
    assert (await runstate(rig.vmm), await runstate(new.process)) == ("postmigrate", "prelaunch")
    assert rig.line.received == b""
    await new.process.execute("cont")
    await goes_on(rig.line)


@pytest.mark.parametrize("how", ["-S", "stop", "stop-cont"])
async def test_running_guest_starts_in_the_successor_only_if_it_may(rig: Rig, how: str) -> None:
    await rig.boot()
    new = await rig.successor(*(("-S",) if how == "-S" else ()))
    for command in how.split("-") if how != "-S" else ():
        assert await new.process.execute(command) == {}
    expected = NEW_RUNNING if how == "stop-cont" else NEW_NOT_RUNNING
    assert await both_stories(rig, new) == (OLD_RUNNING, expected)
    assert await runstate(rig.vmm) == "postmigrate"
    assert await runstate(new.process) == ("running" if how == "stop-cont" else "paused")
    if how != "stop-cont":
        await new.process.execute("cont")
    await goes_on(rig.line)


async def test_deferred_successor_begins_when_it_is_told_where(rig: Rig) -> None:
    await rig.boot()
    new = await rig.successor(defer=True)
    await rig.migrate(new)
    assert await query_migrate(rig.vmm) == {"status": "setup"}
    assert await runstate(rig.vmm) == "running"
    with pytest.raises(ExecuteError) as refused:
        await new.process.execute("migrate-incoming", new.migrate_arguments)
    assert str(refused.value) == "Channel list must have only one entry, for type 'main'"
    await new.process.execute("migrate-incoming", {"uri": f"unix:{new.main_path}"})
    assert await story(rig.vmm) == OLD_RUNNING
    assert await story(new.process) == NEW_RUNNING
    await goes_on(rig.line)


async def test_second_migrate_incoming_is_refused(rig: Rig) -> None:
    await rig.boot()
    new = await rig.successor()
    with pytest.raises(ExecuteError) as refused:
        await new.process.execute("migrate-incoming", {"uri": f"unix:{new.main_path}"})
    assert str(refused.value) == "The incoming migration has already been started"
    with pytest.raises(ExecuteError) as refused:
        await rig.vmm.execute("migrate-incoming", {"uri": f"unix:{new.main_path}"})
    assert str(refused.value) == "'-incoming' was not specified on the command line"


async def test_pause_before_switchover_waits_for_the_user(rig: Rig) -> None:
    await rig.boot()
    new = await rig.successor()
    await rig.vmm.execute(
        "migrate-set-capabilities",
        {"capabilities": [{"capability": "pause-before-switchover", "state": True}]},
    )
    with pytest.raises(ExecuteError) as refused:
        await rig.vmm.execute("migrate-continue", {"state": "pre-switchover"})
    assert str(refused.value) == "Migration not in expected state: none"
    await rig.migrate(new)
    before = OLD_RUNNING[: OLD_RUNNING.index("MIGRATION device")]
    waiting = [*before, "MIGRATION pre-switchover"]
    assert await story(rig.vmm, "MIGRATION pre-switchover") == waiting
    assert await runstate(rig.vmm) == "finish-migrate"
    assert (await query_migrate(rig.vmm))["status"] == "pre-switchover"
    with pytest.raises(ExecuteError) as refused:
        await rig.vmm.execute("cont")
    assert str(refused.value) == "Migration is not finalized yet"
    await rig.vmm.execute("migrate-continue", {"state": "pre-switchover"})
    assert await story(rig.vmm) == OLD_RUNNING[OLD_RUNNING.index("MIGRATION device") :]
    assert await story(new.process) == NEW_RUNNING
    await goes_on(rig.line)


async def test_cancel_in_setup_leaves_the_guest_untouched_and_tells_the_successor(rig: Rig) -> None:
    await rig.boot()
    new = await rig.successor(defer=True)
    await rig.migrate(new)
    await rig.vmm.execute("migrate_cancel")
    assert await story(rig.vmm) == [
        "MIGRATION setup",
        "MIGRATION cancelling",
        "MIGRATION cancelled",
    ]
    assert await runstate(rig.vmm) == "running"
    # QEMU's successor would wait for ever; ours ends with the reason.
    assert await exit_status(new.process) == 1
    assert "cancel" in new.process.log_tail()
    await rig.update()
    await goes_on(rig.line)


async def test_cancel_without_a_migration_is_a_successful_no_op(rig: Rig) -> None:
    await rig.boot()
    assert await rig.vmm.execute("migrate_cancel") == {}
    assert await query_migrate(rig.vmm) == {}
    await rig.update()
    assert await rig.vmm.execute("migrate_cancel") == {}
    assert await query_migrate(rig.vmm) == {"status": "completed"}


async def test_three_updates_in_a_row_say_the_same(rig: Rig) -> None:
    await rig.boot()
    for _ in range(3):
        new = await rig.successor()
        assert await both_stories(rig, new) == (OLD_RUNNING, NEW_RUNNING)
        rig.vmm = new.process
        await goes_on(rig.line)


async def test_second_migrate_while_one_runs_and_after_it_completed(rig: Rig) -> None:
    await rig.boot()
    new = await rig.successor(defer=True)
    await rig.migrate(new)
    with pytest.raises(ExecuteError) as refused:
        await rig.vmm.execute("migrate", new.migrate_arguments)
    assert str(refused.value) == "There's a migration process in progress"
    with pytest.raises(ExecuteError) as refused:
        await new.process.execute("migrate", new.migrate_arguments)
    # QEMU checks the channel list and RAM first; a successor's mode is normal, as there.
    assert str(refused.value) == "Guest is waiting for an incoming migration"
    await new.process.execute("migrate-incoming", {"uri": f"unix:{new.main_path}"})
    await story(rig.vmm)
    with pytest.raises(ExecuteError) as refused:
        await rig.vmm.execute("migrate", new.migrate_arguments)
    assert str(refused.value) == "Can't migrate the vm that was paused due to previous migration"
    await goes_on(rig.line)
