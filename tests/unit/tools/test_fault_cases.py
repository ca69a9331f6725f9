"""The fault matrix is derived from the table: nothing is missing, and every name is understood."""

from __future__ import annotations

from collections import Counter

import pytest

from cpr.handshake import TRANSITIONS, Action, Role
from tools.lab.errors import OptionError
from tools.lab.faults.cases import Case, all_cases, chosen_cases, successful_actions
from tools.lab.faults.matrix import Failure, MatrixResult
from tools.lab.faults.oracle import Ending, Outcome, may_lose_guest
from vmm.update.faults import Fault, FaultPlan, When


def test_matrix_has_at_least_200_cases_and_no_name_twice() -> None:
    names = [case.name for case in all_cases()]
    assert len(names) == len(set(names)) >= 200


@pytest.mark.parametrize("role", Role, ids=lambda role: role.value)
def test_every_step_of_a_successful_update_fails_in_every_way_before_and_after_it(
    role: Role,
) -> None:
    ways = {"kill", "hang", "pause", "eof", "half-close", "reset"}
    for action in successful_actions(role):
        for when in When:
            found = {
                case.fault
                for case in all_cases()
                if (case.plan.role, case.plan.action, case.plan.when) == (role, action, when)
            }
            assert found >= ways, (action, when)


@pytest.mark.parametrize("role", Role, ids=lambda role: role.value)
def test_steps_are_the_actions_of_the_table_without_those_of_failures(role: Role) -> None:
    of_the_table = {
        action
        for row in TRANSITIONS[role].values()
        for transition in row.values()
        for action in transition.actions
    }
    of_failures = {
        Action.SEND_ABORT, Action.SEND_FAILED, Action.SEND_REFUSE, Action.REPORT,
        Action.RESUME_GUEST, Action.RECLAIM_LEASE,
    }  # fmt: skip
    assert set(successful_actions(role)) == of_the_table - of_failures


def test_every_kind_of_fault_is_in_the_matrix() -> None:
    assert {case.plan.fault for case in all_cases()} == set(Fault)


def test_every_name_asks_for_its_case() -> None:
    for case in all_cases():
        assert chosen_cases(case.name) == (case,)
        if not case.wakes:
            assert FaultPlan.parse(case.name) == case.plan


def test_patterns_choose_each_case_once() -> None:
    chosen = chosen_cases("target/*/LOAD_STATE/*,*/kill")
    assert len(chosen) == len(set(chosen))
    assert all(c.fault == "kill" or c.plan.action is Action.LOAD_STATE for c in chosen)
    assert chosen_cases("all") == all_cases()


def test_pattern_that_fits_nothing_is_refused() -> None:
    with pytest.raises(OptionError, match=r"target/during/\*: no such case"):
        chosen_cases("*/kill,target/during/*")


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("source/before/SEND_STATE/kill", True),
        ("source/after/SEND_STATE/kill", False),
        ("source/before/SEND_COMMIT/kill", False),
        ("source/before/SEND_HELLO/hang", False),
        ("target/before/RUN_GUEST/kill", False),
        ("target/after/RUN_GUEST/kill", True),
        ("target/after/SEND_RUNNING/eof", False),
    ],
)
def test_guest_may_be_lost_only_with_the_only_process_that_can_have_it(
    name: str, lost: bool
) -> None:
    (case,) = chosen_cases(name)
    assert may_lose_guest(case) is lost


def outcome(name: str, ending: Ending) -> Outcome:
    (case,) = chosen_cases(name)
    return Outcome(case, ending, "because", None)


def test_result_counts_endings_and_failures_by_fault() -> None:
    (broken,) = chosen_cases("target/before/BUILD/kill")
    result = MatrixResult(
        7,
        (
            outcome("source/before/SEND_STATE/pause", Ending.WENT_ON),
            outcome("source/before/SEND_STATE/kill", Ending.EXCUSED),
        ),
        (Failure(broken, "kvm", "two owners", "cpr-drill --faults …"),),
    )
    assert not result.passed
    assert result.by_fault() == {
        "pause": Counter({Ending.WENT_ON.value: 1}),
        "kill": Counter({Ending.EXCUSED.value: 1, "FAILED": 1}),
    }
    assert result.to_json()["failures"][0]["replay"] == "cpr-drill --faults …"
    assert not MatrixResult(1, (), ()).passed  # nothing was tried


def test_case_knows_a_pause_from_a_hang() -> None:
    plan = FaultPlan(Role.TARGET, When.BEFORE, Action.BUILD, Fault.HANG)
    assert Case(plan).name == "target/before/BUILD/hang"
    assert Case(plan, wakes=True).name == "target/before/BUILD/pause"
