"""One client's conversation; each text was printed by QEMU 10.0.2 for the same bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.qmp.fakes import FakeVmm
from vmm.qapi import to_wire
from vmm.qmp.commands import REGISTRY
from vmm.qmp.results import version_info
from vmm.qmp.session import Call, QmpError, Session

EXPECTING = "Expecting capabilities negotiation with 'qmp_capabilities'"
ALREADY = "Capabilities negotiation is already complete, command ignored"


def answers(session: Session, data: bytes) -> list[Any]:
    """The replies to `data`, with calls performed on a fake VMM."""
    session.receive(data)
    replies: list[Any] = []
    while (message := session.next_message()) is not None:
        admitted = session.admit(message)
        if isinstance(admitted, Call):
            result = admitted.command.handler(FakeVmm(), *admitted.arguments)
            admitted = session.reply({} if result is None else to_wire(result), admitted.ident)
        replies.append(json.loads(admitted))
    return replies


def negotiated(*, oob: bool = False) -> Session:
    session = Session(REGISTRY.commands)
    enable = '{"enable":["oob"]}' if oob else "{}"
    replies = answers(session, f'{{"execute":"qmp_capabilities","arguments":{enable}}}'.encode())
    assert replies == [{"return": {}}]
    return session


def desc(reply: Any) -> str:
    return str(reply["error"]["desc"])


def test_the_greeting_names_the_qemu_version_we_follow_and_oob() -> None:
    line = Session(REGISTRY.commands).greeting(to_wire(version_info()))
    assert line.endswith(b"\r\n")
    assert json.loads(line) == {
        "QMP": {
            "version": {
                "qemu": {"major": 10, "minor": 0, "micro": 2},
                "package": "cpr-vmm 0.1.0",
            },
            "capabilities": ["oob"],
        }
    }


@pytest.mark.parametrize("name", ["query-status", "no-such-command"])
def test_before_negotiation_every_command_is_unknown(name: str) -> None:
    (reply,) = answers(Session(REGISTRY.commands), f'{{"execute":"{name}","id":1}}'.encode())
    assert reply == {"id": 1, "error": {"class": "CommandNotFound", "desc": EXPECTING}}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"enable":["foo"]}', "Parameter 'null' does not accept value 'foo'"),
        ('{"enable":"foo"}', "Invalid parameter type for 'enable', expected: array"),
        ('{"x":1}', "Parameter 'x' is unexpected"),
    ],
)
def test_bad_negotiation_does_not_negotiate(arguments: str, text: str) -> None:
    session = Session(REGISTRY.commands)
    line = f'{{"execute":"qmp_capabilities","arguments":{arguments}}}'
    (reply,) = answers(session, line.encode())
    assert reply == {"error": {"class": "GenericError", "desc": text}}
    assert not session.negotiated


def test_negotiating_twice_is_refused() -> None:
    (reply,) = answers(negotiated(), b'{"execute":"qmp_capabilities"}')
    assert reply["error"] == {"class": "CommandNotFound", "desc": ALREADY}


def test_a_client_may_send_everything_at_once() -> None:
    session = Session(REGISTRY.commands)
    replies = answers(session, b'{"execute":"qmp_capabilities"}{"execute":"query-name","id":"n"}')
    assert replies == [{"return": {}}, {"return": {"name": "guest1"}, "id": "n"}]


@pytest.mark.parametrize("ident", [1, "a", None, [1, None], {"x": [1]}, 1.5, True])
def test_an_id_of_any_json_type_comes_back_in_success_and_failure(ident: Any) -> None:
    session = negotiated()
    good = json.dumps({"execute": "query-uuid", "id": ident}).encode()
    bad = json.dumps({"execute": "foo", "id": ident}).encode()
    assert [reply["id"] for reply in answers(session, good + bad)] == [ident, ident]


@pytest.mark.parametrize(
    ("data", "error_class", "text"),
    [
        (
            b'{"execute":"foo"}',
            "CommandNotFound",
            "The command foo has not been found",
        ),
        (b'{"execute":1}', "GenericError", "QMP input member 'execute' must be a string"),
        (b'{"exec":1}', "GenericError", "QMP input member 'exec' is unexpected"),
        (
            b'{"execute":"query-status","foo":1}',
            "GenericError",
            "QMP input member 'foo' is unexpected",
        ),
        (
            b'{"execute":"query-status","control":{}}',
            "GenericError",
            "QMP input member 'control' is unexpected",
        ),
        (
            b'{"execute":"query-status","arguments":1}',
            "GenericError",
            "QMP input member 'arguments' must be an object",
        ),
        (
            b'{"execute":"query-status","arguments":{"a":1}}',
            "GenericError",
            "Parameter 'a' is unexpected",
        ),
        (b'{"arguments":{}}', "GenericError", "QMP input lacks member 'execute'"),
        (b"{}", "GenericError", "QMP input lacks member 'execute'"),
        (b"[]", "GenericError", "QMP input must be a JSON object"),
        (b'"x"', "GenericError", "QMP input must be a JSON object"),
        (b"1\n", "GenericError", "QMP input must be a JSON object"),
        (b"foo\n", "GenericError", "JSON parse error, invalid keyword 'foo'"),
        (
            b'{"exec-oob":"migrate-pause"}',
            "GenericError",
            "QMP input member 'exec-oob' is unexpected",
        ),
        (
            b'{"execute":"migrate-continue"}',
            "GenericError",
            "Parameter 'state' is missing",
        ),
        (
            b'{"execute":"migrate-continue","arguments":{"state":"zz"}}',
            "GenericError",
            "Parameter 'state' does not accept value 'zz'",
        ),
        (
            b'{"execute":"migrate","arguments":{"uri":1}}',
            "GenericError",
            "Invalid parameter type for 'uri', expected: string",
        ),
        (
            b'{"execute":"migrate","arguments":{"uri":"x","blk":true}}',
            "GenericError",
            "Parameter 'blk' is unexpected",
        ),
        (
            b'{"execute":"migrate","arguments":{"channels":[1]}}',
            "GenericError",
            "Invalid parameter type for 'channels[0]', expected: object",
        ),
        (
            b'{"execute":"migrate","arguments":{"channels":[{"channel-type":"main"}]}}',
            "GenericError",
            "Parameter 'channels[0].addr' is missing",
        ),
        (
            b'{"execute":"migrate","arguments":{"channels":[{"channel-type":"x","addr":{}}]}}',
            "GenericError",
            "Parameter 'channel-type' does not accept value 'x'",
        ),
        (
            b'{"execute":"migrate","arguments":{"channels":[{"channel-type":"main","addr":'
            b'{"transport":"bogus"}}]}}',
            "GenericError",
            "Parameter 'transport' does not accept value 'bogus'",
        ),
        (
            b'{"execute":"migrate","arguments":{"channels":[{"channel-type":"main","addr":'
            b'{"transport":"file","filename":"x"}}]}}',
            "GenericError",
            "Parameter 'channels[0].addr.offset' is missing",
        ),
        (
            b'{"execute":"migrate","arguments":{"channels":[{"channel-type":"main","addr":'
            b'{"transport":"file","filename":"x","offset":"1"}}]}}',
            "GenericError",
            "Parameter 'channels[0].addr.offset' expects uint64",
        ),
        (
            b'{"execute":"migrate","arguments":{"channels":[{"channel-type":"main","addr":'
            b'{"transport":"socket","type":"unix","path":"x","zz":1}}]}}',
            "GenericError",
            "Parameter 'channels[0].addr.zz' is unexpected",
        ),
        (
            b'{"execute":"migrate","arguments":{"channels":[{"channel-type":"main","addr":'
            b'{"transport":"exec","args":[1]}}]}}',
            "GenericError",
            "Invalid parameter type for 'channels[0].addr.args[0]', expected: string",
        ),
        (
            b'{"execute":"migrate","arguments":{"channels":[{"channel-type":"main","addr":'
            b'{"transport":"socket","type":"inet","host":"a","port":"1","to":70000}}]}}',
            "GenericError",
            "Parameter 'to' expects uint16_t",
        ),
    ],
)
def test_bad_requests_get_qemus_class_and_text(data: bytes, error_class: str, text: str) -> None:
    (reply,) = answers(negotiated(), data)
    assert reply == {"error": {"class": error_class, "desc": text}}


def test_single_quotes_work_as_in_qemu() -> None:
    (reply,) = answers(negotiated(), b"{'execute':'query-status','id':'a'}")
    assert reply == {"return": {"status": "running", "running": True}, "id": "a"}


def test_oob_overtakes_only_after_it_was_negotiated() -> None:
    line = b'{"exec-oob":"query-status"}'
    for session, oob in ((negotiated(), False), (negotiated(oob=True), True)):
        session.receive(line)
        message = session.next_message()
        assert message is not None
        assert message.oob is oob


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (
            b'{"exec-oob":"query-status"}',
            "The command query-status does not support OOB",
        ),
        (b'{"exec-oob":"foo"}', "The command foo has not been found"),
        (
            b'{"exec-oob":"migrate-pause","execute":"migrate-pause"}',
            "QMP input member 'execute' clashes with 'exec-oob'",
        ),
        (b'{"exec-oob":1}', "QMP input member 'exec-oob' must be a string"),
    ],
)
def test_bad_oob_requests_get_qemus_text(data: bytes, text: str) -> None:
    (reply,) = answers(negotiated(oob=True), data)
    assert desc(reply) == text


def test_events_carry_the_time_they_are_given() -> None:
    session = negotiated()
    line = session.event("STOP", None, 1_700_000_000_123_456_789)
    assert json.loads(line) == {
        "timestamp": {"seconds": 1_700_000_000, "microseconds": 123_456},
        "event": "STOP",
    }
    with_data = json.loads(session.event("MIGRATION", {"status": "setup"}, 0))
    assert with_data["data"] == {"status": "setup"}


def test_pretty_sessions_indent() -> None:
    session = Session(REGISTRY.commands, pretty=True)
    assert session.reply({"a": 1}, {}) == b'{\n    "return": {\n        "a": 1\n    }\n}\r\n'


def test_errors_name_their_class_and_echo_the_id() -> None:
    line = Session(REGISTRY.commands).error(QmpError("x", "CommandNotFound"), {"id": 1})
    assert json.loads(line) == {"id": 1, "error": {"class": "CommandNotFound", "desc": "x"}}
