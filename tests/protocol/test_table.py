"""The table is total: every phase says what every event does, and nothing in it is dead."""

from __future__ import annotations

import pytest

from cpr.errors import LocalProtocolError
from cpr.handshake import DEADLINES, TRANSITIONS, Action, Deadlines, Event, Handshake, Phase, Role
from cpr.messages import MessageKind
from cpr.phases import LATE_EVENTS, MESSAGE_EVENTS, TERMINAL_PHASES

EVERYWHERE = [(role, phase) for role in Role for phase in TRANSITIONS[role]]
LIVING = [(role, phase) for role, phase in EVERYWHERE if phase not in TERMINAL_PHASES]
_FROM_OUTSIDE = {Event.CANCEL, Event.LOST, Event.PEER_DIED}


def _at(role: Role, phase: Phase) -> Handshake:
    handshake = Handshake(role)
    handshake.phase = phase
    return handshake


def test_message_events_have_the_names_of_the_message_kinds() -> None:
    assert {event.name for event in MESSAGE_EVENTS} == {kind.name for kind in MessageKind}


@pytest.mark.parametrize(("role", "phase"), EVERYWHERE)
def test_every_event_in_every_phase_is_answered(role: Role, phase: Phase) -> None:
    for event in Event:
        _check_answer(role, phase, event)


def _check_answer(role: Role, phase: Phase, event: Event) -> None:
    row = TRANSITIONS[role][phase]
    handshake = _at(role, phase)
    if event in row:
        assert handshake.expects(event)
        assert handshake.receive(event) == row[event].actions
        assert handshake.phase is row[event].next
    elif event in MESSAGE_EVENTS:
        assert not handshake.expects(event)
        assert handshake.receive(event) == row[Event.VIOLATION].actions
        assert handshake.phase is row[Event.VIOLATION].next
    else:
        with pytest.raises(LocalProtocolError, match=f"{event.name} .* {phase.name}"):
            handshake.receive(event)
        assert handshake.phase is phase


@pytest.mark.parametrize(("role", "phase"), EVERYWHERE)
def test_what_comes_from_outside_is_listed_in_every_phase(role: Role, phase: Phase) -> None:
    assert set(TRANSITIONS[role][phase]) >= _FROM_OUTSIDE | {Event.VIOLATION}


@pytest.mark.parametrize(("role", "phase"), EVERYWHERE)
def test_deadline_is_listed_exactly_where_one_is_armed(role: Role, phase: Phase) -> None:
    assert (Event.DEADLINE in TRANSITIONS[role][phase]) == ((role, phase) in DEADLINES)


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("phase", [Phase.DONE, Phase.ABORTED])
def test_terminal_phases_ignore_whatever_comes_late(role: Role, phase: Phase) -> None:
    row = TRANSITIONS[role][phase]
    assert set(row) == LATE_EVENTS
    assert all(step.next is phase and not step.actions for step in row.values())
    assert _at(role, phase).finished


@pytest.mark.parametrize(("role", "phase"), LIVING)
def test_a_phase_that_is_not_the_end_is_not_finished(role: Role, phase: Phase) -> None:
    assert not _at(role, phase).finished


@pytest.mark.parametrize(("role", "phase"), LIVING)
def test_every_phase_can_be_reached_and_every_way_out_ends(role: Role, phase: Phase) -> None:
    assert phase in _reachable(role, Phase.IDLE)
    assert _reachable(role, phase) & TERMINAL_PHASES


@pytest.mark.parametrize(("role", "phase"), LIVING)
def test_the_end_of_an_update_is_always_told(role: Role, phase: Phase) -> None:
    for event, step in TRANSITIONS[role][phase].items():
        last = step.actions[-1:]
        if step.next is Phase.ABORTED:
            assert last == (Action.REPORT,), event
        elif step.next is Phase.DONE:
            assert last == (Action.COMPLETE,), event
        else:
            assert not {Action.REPORT, Action.COMPLETE} & set(step.actions), event


@pytest.mark.parametrize(("role", "phase"), LIVING)
def test_nobody_talks_to_a_peer_that_is_gone(role: Role, phase: Phase) -> None:
    for event in (Event.LOST, Event.PEER_DIED):
        step = TRANSITIONS[role][phase][event]
        assert not [action for action in step.actions if action.name.startswith("SEND_")]


def test_a_source_that_comes_back_runs_the_guest_before_it_says_so() -> None:
    for phase, row in TRANSITIONS[Role.SOURCE].items():
        for event, step in row.items():
            if {Action.RESUME_GUEST, Action.SEND_ABORT} <= set(step.actions):
                order = [
                    step.actions.index(action)
                    for action in (Action.RESUME_GUEST, Action.SEND_ABORT)
                ]
                assert order == sorted(order), (phase, event)


def test_the_guest_runs_in_the_target_only_with_the_lease() -> None:
    for phase, row in TRANSITIONS[Role.TARGET].items():
        for event, step in row.items():
            if Action.RUN_GUEST in step.actions:
                assert event is Event.LEASE_TAKEN, phase


def test_every_action_is_used_and_none_by_accident_on_both_sides() -> None:
    used = {
        role: {action for row in rows.values() for step in row.values() for action in step.actions}
        for role, rows in TRANSITIONS.items()
    }
    assert used[Role.SOURCE] | used[Role.TARGET] == set(Action)
    assert used[Role.SOURCE] & used[Role.TARGET] == {Action.REPORT, Action.COMPLETE}


def test_every_deadline_of_a_phase_has_a_value() -> None:
    deadlines = Deadlines()
    assert all(deadlines.of(name) > 0 for name in DEADLINES.values())
    assert set(DEADLINES) <= set(LIVING)


def _reachable(role: Role, start: Phase) -> set[Phase]:
    found: set[Phase] = set()
    waiting = [start]
    while waiting:
        phase = waiting.pop()
        if phase not in found:
            found.add(phase)
            waiting += [step.next for step in TRANSITIONS[role][phase].values()]
    return found
