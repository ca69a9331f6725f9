from __future__ import annotations

import pytest

from vmm.errors import RunstateError
from vmm.runstate import TRANSITIONS, RunState, RunstateMachine

R = RunState

# The moves that facts, qemu-cpr 4.2 names for an update.
USED = [
    (R.PRELAUNCH, R.INMIGRATE),
    *((source, R.FINISH_MIGRATE) for source in (R.RUNNING, R.PAUSED, R.PRELAUNCH, R.SUSPENDED)),
    *(
        (R.FINISH_MIGRATE, target)
        for target in (R.POSTMIGRATE, R.RUNNING, R.PAUSED, R.PRELAUNCH, R.SUSPENDED)
    ),
    *(
        (R.INMIGRATE, target)
        for target in (R.RUNNING, R.PAUSED, R.PRELAUNCH, R.SUSPENDED, R.POSTMIGRATE)
    ),
    (R.POSTMIGRATE, R.RUNNING),
]


@pytest.mark.parametrize(("old", "new"), USED)
def test_every_move_of_an_update_exists(old: RunState, new: RunState) -> None:
    machine = RunstateMachine(old)
    machine.set(new)
    assert machine.state is new


@pytest.mark.parametrize("old", list(RunState))
@pytest.mark.parametrize("new", list(RunState))
def test_every_pair_of_states_is_allowed_or_refused_as_the_table_says(
    old: RunState, new: RunState
) -> None:
    moves: list[tuple[RunState, RunState]] = []
    machine = RunstateMachine(old, lambda *move: moves.append(move))
    if new is old:
        machine.set(new)
        assert moves == []
    elif new in TRANSITIONS[old]:
        machine.set(new)
        assert moves == [(old, new)]
        assert machine.state is new
    else:
        with pytest.raises(RunstateError, match=f"'{old.value}' -> '{new.value}'"):
            machine.set(new)
        assert machine.state is old
        assert moves == []


def test_the_table_has_a_row_for_every_state() -> None:
    assert set(TRANSITIONS) == set(RunState)


def test_a_source_that_gave_the_guest_away_never_goes_back_to_waiting() -> None:
    assert R.INMIGRATE not in TRANSITIONS[R.POSTMIGRATE]
    assert R.PAUSED not in TRANSITIONS[R.POSTMIGRATE]
