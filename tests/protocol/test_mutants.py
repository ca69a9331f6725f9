"""Each guard left out or turned round, one at a time: the checker finds every one of them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from cpr.handshake import TRANSITIONS, Action, Event, Phase, Role, Transition
from tools.lab.model.explore import explore
from tools.lab.model.mutants import EQUIVALENT, Hunter, Mutant, all_mutants, table_mutants
from tools.lab.model.world import ALL_GUARDS, Fault, Guard, ModelError, Setup, Subject

MUTANTS = {mutant.name: mutant for mutant in all_mutants()}
# Every so many; .ci/run looks at all of them (cpr-model --mutants).
STRIDE = 83


@cache
def hunter() -> Hunter:
    return Hunter()


def wrongly_judged(mutants: list[Mutant]) -> dict[str, str | None]:
    """Mutants that survive, and those of which we say that they change nothing but that do."""
    found = {mutant.name: hunter().counterexample(mutant) for mutant in mutants}
    return {
        name: complaint
        for name, complaint in found.items()
        if (complaint is None) is not (name in EQUIVALENT)
    }


def test_a_sample_of_mutants_is_found() -> None:
    sample = [one for name, one in list(MUTANTS.items())[::STRIDE] if name not in EQUIVALENT]
    assert wrongly_judged(sample) == {}


def test_every_row_has_its_mutants() -> None:
    rows = {mutant.row for mutant in table_mutants()}
    assert rows == {
        (role, phase, event)
        for role, table in TRANSITIONS.items()
        for phase, row in table.items()
        for event in row
    }


def test_what_is_said_to_change_nothing_is_a_mutant() -> None:
    assert set(EQUIVALENT) <= set(MUTANTS)


def test_the_second_lock_on_the_door_matters_once_the_first_is_open() -> None:
    """ENTER_NEEDS_LEASE alone changes nothing, because no row enters without asking."""
    unasked = Transition(Phase.ABORTED, (Action.RESUME_GUEST, Action.REPORT))
    rows = {
        role: {at: dict(row) for at, row in table.items()} for role, table in TRANSITIONS.items()
    }
    rows[Role.SOURCE][Phase.COMMITTED][Event.LOST] = unasked
    setup = Setup("unasked", faults=frozenset({Fault.CUT}), subject=Subject(table=rows))
    with pytest.raises(ModelError, match="without the lease"):
        explore(setup)
    guards = ALL_GUARDS - {Guard.ENTER_NEEDS_LEASE}
    careless = replace(setup, subject=replace(setup.subject, guards=guards))
    with pytest.raises(ModelError, match="has the guest without the lease"):
        explore(careless)
