from __future__ import annotations

from dataclasses import FrozenInstanceError, is_dataclass

import pytest

from cpr.messages import MESSAGE_TYPES, Commit, Fds, Message, MessageKind
from tests.unit.cpr.examples import MESSAGES


@pytest.mark.parametrize("kind", list(MessageKind))
def test_every_kind_is_a_frozen_value(kind: MessageKind) -> None:
    message_type = MESSAGE_TYPES[kind]
    assert is_dataclass(message_type)
    assert issubclass(message_type, Message)
    assert message_type.KIND is kind
    assert MESSAGES[kind] == MESSAGES[kind]


def test_a_message_cannot_be_changed() -> None:
    message = Fds(("ram:ram0:0",))
    with pytest.raises(FrozenInstanceError):
        message.more = True  # type: ignore[misc]


def test_kind_numbers_are_those_of_protocol_1() -> None:
    assert {kind.name: kind.value for kind in MessageKind} == {
        "HELLO": 1,
        "FDS": 2,
        "REHEARSAL": 3,
        "STATE": 4,
        "COMMIT": 5,
        "ABORT": 6,
        "ACCEPT": 16,
        "REFUSE": 17,
        "LISTENING": 18,
        "CONNECTED": 19,
        "PREPARED": 20,
        "LOADED": 21,
        "RUNNING": 22,
        "FAILED": 23,
        "MAIN_HEADER": 32,
    }


def test_messages_without_fields_are_equal() -> None:
    assert Commit() == Commit()
