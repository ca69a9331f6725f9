"""The life of a live update, told by the two tables (all other rows: tests/protocol)."""

from __future__ import annotations

import pytest

from cpr.errors import LocalProtocolError
from cpr.handshake import Action, Event, Handshake, Phase, Role


def test_a_source_goes_from_hello_to_done() -> None:
    source = Handshake(Role.SOURCE)
    story = [
        (Event.START, [Action.SEND_HELLO]),
        (Event.ACCEPT, [Action.SEND_FDS]),
        (Event.LISTENING, [Action.CONNECT_MAIN]),
        (Event.MAIN_SENT, []),
        (Event.CONNECTED, [Action.REHEARSE]),
        (Event.PREPARED, [Action.REHEARSE]),
        (Event.PREPARED, [Action.STOP_GUEST]),
        (Event.SAVED, [Action.SEND_STATE]),
        (Event.LOADED, [Action.RELEASE_LEASE, Action.SEND_COMMIT]),
        (Event.RUNNING, [Action.COMPLETE]),
    ]
    assert [list(source.receive(event)) for event, _ in story] == [does for _, does in story]
    assert source.phase is Phase.DONE
    assert source.finished


def test_a_target_goes_from_hello_to_done() -> None:
    target = Handshake(Role.TARGET)
    story = [
        (Event.HELLO, [Action.CHECK_HELLO]),
        (Event.ACCEPTABLE, [Action.SEND_ACCEPT]),
        (Event.FDS, [Action.BUILD]),
        (Event.BUILT, [Action.SEND_LISTENING]),
        (Event.MAIN_CHECKED, [Action.SEND_CONNECTED]),
        (Event.REHEARSAL, [Action.LOAD_REHEARSAL]),
        (Event.REHEARSED, [Action.SEND_PREPARED]),
        (Event.REHEARSAL, [Action.LOAD_REHEARSAL]),
        (Event.REHEARSED, [Action.SEND_PREPARED]),
        (Event.STATE, [Action.LOAD_STATE]),
        (Event.STATE_LOADED, [Action.SEND_LOADED]),
        (Event.COMMIT, [Action.TAKE_LEASE]),
        (Event.LEASE_TAKEN, [Action.RUN_GUEST, Action.SEND_RUNNING, Action.COMPLETE]),
    ]
    assert [list(target.receive(event)) for event, _ in story] == [does for _, does in story]
    assert target.phase is Phase.DONE


def test_a_local_event_at_the_wrong_time_names_phase_and_choices_and_changes_nothing() -> None:
    source = Handshake(Role.SOURCE)
    with pytest.raises(LocalProtocolError, match=r"SAVED .* phase IDLE; it takes .*START"):
        source.receive(Event.SAVED)
    assert source.phase is Phase.IDLE


def test_a_message_at_the_wrong_time_is_a_violation() -> None:
    source = Handshake(Role.SOURCE)
    source.receive(Event.START)
    assert not source.expects(Event.LOADED)
    assert source.receive(Event.LOADED) == (Action.SEND_ABORT, Action.REPORT)
    assert source.phase is Phase.ABORTED
