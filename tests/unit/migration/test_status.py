from __future__ import annotations

from itertools import pairwise

import pytest

from vmm.config import SocketUnix
from vmm.errors import RunstateError
from vmm.migration.status import FINAL, MIGRATION_INFO, MigrationRecord, MigrationStatus
from vmm.qapi import check

MS = 1_000_000
S = MigrationStatus


def record(*statuses: MigrationStatus, incoming: bool = False) -> MigrationRecord:
    """A record that went through `statuses`, one every 10 ms from t = 0."""
    made = MigrationRecord(incoming=incoming)
    for index, status in enumerate(statuses):
        made.move(status, "why" if status is S.FAILED else "", index * 10 * MS)
    return made


def keys(made: MigrationRecord) -> set[str]:
    info = made.describe(now_ns=100 * MS)
    check(MIGRATION_INFO, info)
    return set(info)


def test_before_the_first_migration_there_is_nothing_to_show() -> None:
    assert MigrationRecord().describe() == {}


def test_blocked_reasons_are_shown_even_before_the_first_migration() -> None:
    assert MigrationRecord().describe(blocked_reasons=["x", "y"]) == {"blocked-reasons": ["x", "y"]}


PROGRESS = {"status", "total-time", "setup-time", "ram"}


@pytest.mark.parametrize(
    ("statuses", "shown"),
    [
        ((S.SETUP,), {"status"}),
        ((S.SETUP, S.ACTIVE), PROGRESS | {"expected-downtime"}),
        ((S.SETUP, S.ACTIVE, S.PRE_SWITCHOVER), PROGRESS | {"expected-downtime"}),
        ((S.SETUP, S.ACTIVE, S.DEVICE), PROGRESS | {"expected-downtime"}),
        ((S.SETUP, S.ACTIVE, S.CANCELLING), PROGRESS | {"expected-downtime"}),
        ((S.SETUP, S.ACTIVE, S.DEVICE, S.COMPLETED), PROGRESS | {"downtime"}),
        ((S.SETUP, S.FAILED), {"status", "error-desc"}),
        ((S.SETUP, S.CANCELLED), {"status"}),
    ],
)
def test_an_outgoing_migration_shows_qemus_members_by_status(
    statuses: tuple[MigrationStatus, ...], shown: set[str]
) -> None:
    assert keys(record(*statuses)) == shown


def test_times_are_milliseconds_from_setup_and_stop_at_the_end() -> None:
    made = record(S.SETUP, S.ACTIVE, S.DEVICE, S.COMPLETED)
    made.set_downtime(2_900_000)
    made.transferred_bytes = 30_000
    made.passes = 2
    info = made.describe(now_ns=9_999 * MS)
    assert info["setup-time"] == 10
    assert info["total-time"] == 30
    assert info["downtime"] == 2
    assert info["ram"]["transferred"] == 30_000
    assert info["ram"]["dirty-sync-count"] == 2
    assert info["ram"]["total"] == info["ram"]["remaining"] == 0
    assert info["ram"]["mbps"] == pytest.approx(8.0)


def test_time_goes_on_while_the_migration_runs() -> None:
    made = record(S.SETUP, S.ACTIVE)
    assert made.describe(now_ns=500 * MS)["total-time"] == 500
    assert made.describe()["total-time"] >= 0


def test_an_incoming_migration_shows_status_and_where_it_listens_until_it_ends() -> None:
    made = record(S.SETUP, S.ACTIVE, incoming=True)
    made.socket_addresses = (SocketUnix("/m"),)
    assert made.describe() == {
        "status": "active",
        "socket-address": [{"type": "unix", "path": "/m"}],
    }
    made.move(S.COMPLETED, "", 30 * MS)
    assert made.describe() == {"status": "completed"}


def test_a_reason_may_come_with_any_final_status() -> None:
    made = record(S.SETUP)
    made.move(S.CANCELLED, "Switchover is interrupted", 0)
    assert made.describe() == {
        "status": "cancelled",
        "error-desc": "Switchover is interrupted",
    }


PATHS = [
    (S.SETUP, S.ACTIVE, S.DEVICE, S.COMPLETED),
    (S.SETUP, S.ACTIVE, S.PRE_SWITCHOVER, S.DEVICE, S.COMPLETED),
    (S.SETUP, S.ACTIVE, S.COMPLETED),
    (S.ACTIVE, S.COMPLETED),
    (S.SETUP, S.CANCELLING, S.CANCELLED),
    (S.SETUP, S.ACTIVE, S.DEVICE, S.CANCELLING, S.COMPLETED),
    (S.FAILED,),
]


@pytest.mark.parametrize("path", PATHS)
def test_the_ways_that_exist(path: tuple[MigrationStatus, ...]) -> None:
    assert record(*path).status is path[-1]


@pytest.mark.parametrize("final", [S.COMPLETED, S.FAILED, S.CANCELLED])
@pytest.mark.parametrize("status", list(MigrationStatus))
def test_a_final_status_is_final(final: MigrationStatus, status: MigrationStatus) -> None:
    assert final in FINAL
    before = next(path for path in (*PATHS, (S.SETUP, S.CANCELLED)) if path[-1] is final)
    made = record(*before)
    with pytest.raises(RunstateError, match="invalid migration status transition"):
        made.move(status, "", 0)
    assert made.status is final


def test_no_way_skips_setup_and_active_on_the_source() -> None:
    for path in PATHS[:3]:
        for earlier, later in pairwise(path):
            assert (earlier, later) != (S.SETUP, S.COMPLETED)
    with pytest.raises(RunstateError):
        record(S.SETUP, S.COMPLETED)
