"""The registry says only what is true: names, arguments, returns, examples, introspection."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import pytest

from tests.unit.qmp.fakes import FakeVmm
from vmm.qapi import (
    Array,
    Builtin,
    Enum,
    Member,
    Object,
    QapiError,
    QapiType,
    build,
    check,
    check_keyval,
    of_annotation,
    of_dataclass,
    to_wire,
)
from vmm.qmp.commands import COMMANDS, REGISTRY
from vmm.qmp.results import EVENTS
from vmm.qmp.schema import Command, Registry, command

# Issue 2, point 6.
REQUIRED = {
    *("qmp_capabilities", "query-version", "query-commands", "query-qmp-schema", "query-status"),
    *("query-name", "query-uuid", "query-kvm", "query-cpus-fast", "query-memory-size-summary"),
    *("query-memdev", "query-events", "query-migrate", "query-migrate-parameters"),
    *("query-migrate-capabilities", "migrate-set-parameters", "migrate-set-capabilities"),
    *("migrate", "migrate-incoming", "migrate_cancel", "migrate-continue", "stop", "cont"),
    *("system_reset", "quit", "human-monitor-command"),
}


def test_every_required_command_and_event_is_there() -> None:
    assert set(REGISTRY.commands) >= REQUIRED
    names = {event.name for event in EVENTS}
    assert names == {"STOP", "RESUME", "RESET", "SHUTDOWN", "MIGRATION", "MIGRATION_PASS"}


def example(item: Command) -> tuple[dict[str, Any], dict[str, Any]]:
    """Request and reply of a docstring: `-> {…}` and `<- {…}`, possibly over several lines."""
    found = re.search(r"-> (?P<request>\{.*\})\s+<- (?P<reply>\{.*\})", item.doc, re.DOTALL)
    assert found is not None, f"{item.name} has no example"
    return json.loads(found["request"]), json.loads(found["reply"])


@pytest.mark.parametrize("item", COMMANDS, ids=lambda item: item.name)
def test_every_command_has_a_docstring_and_an_example_that_is_true(item: Command) -> None:
    assert item.doc.strip().splitlines()[0].rstrip().endswith((".", ").")) or len(item.doc) > 40
    request, reply = example(item)
    verb = "exec-oob" if "exec-oob" in request else "execute"
    assert request[verb] == item.name
    assert verb == "execute" or item.allow_oob
    check(item.arguments, request.get("arguments", {}))
    check(item.returns, reply["return"])


QUERIES = [item for item in COMMANDS if item.name.startswith(("query-", "x-query-"))]


@pytest.mark.parametrize("item", QUERIES, ids=lambda item: item.name)
def test_what_a_query_returns_fits_its_schema(item: Command) -> None:
    value = to_wire(item.handler(FakeVmm()))
    assert check(item.returns, json.loads(json.dumps(value))) == value


def schema_entries() -> dict[str, dict[str, Any]]:
    entries = {entry["name"]: entry for entry in REGISTRY.schema}
    assert len(entries) == len(REGISTRY.schema), "a name is described twice"
    return entries


def test_the_schema_describes_every_type_that_it_mentions() -> None:
    entries = schema_entries()
    mentioned: set[str] = set()
    for entry in entries.values():
        mentioned |= {
            entry[key] for key in ("arg-type", "ret-type", "element-type") if key in entry
        }
        if entry["meta-type"] in ("object", "alternate"):
            mentioned |= {member["type"] for member in entry["members"]}
            mentioned |= {variant["type"] for variant in entry.get("variants", ())}
    assert mentioned <= set(entries)
    described = {
        name for name, entry in entries.items() if entry["meta-type"] not in ("command", "event")
    }
    assert described == mentioned, "a type is described and never used"


def test_the_schema_has_exactly_the_commands_and_events_that_there_are() -> None:
    entries = schema_entries().values()
    commands = {entry["name"] for entry in entries if entry["meta-type"] == "command"}
    events = {entry["name"] for entry in entries if entry["meta-type"] == "event"}
    assert commands == set(REGISTRY.commands)
    assert events == {event.name for event in EVENTS}


def test_a_client_finds_the_cpr_channel_by_walking_the_schema() -> None:
    """What management software does to decide whether cpr-transfer can be used."""
    entries = schema_entries()

    def member(owner: str, name: str) -> str:
        members = {item["name"]: item["type"] for item in entries[owner]["members"]}
        return str(members[name])

    channels = member(entries["migrate"]["arg-type"], "channels")
    channel = entries[channels]["element-type"]
    assert entries[member(channel, "channel-type")]["values"] == ["main", "cpr"]
    address = entries[member(channel, "addr")]
    assert address["tag"] == "transport"
    assert [variant["case"] for variant in address["variants"]] == ["socket", "exec", "file"]
    mode = member(entries["migrate-set-parameters"]["arg-type"], "mode")
    assert "cpr-transfer" in entries[mode]["values"]
    assert entries["migrate-pause"]["allow-oob"] is True
    assert "allow-oob" not in entries["migrate"]


def test_optional_members_are_marked_as_qemu_marks_them() -> None:
    entries = schema_entries()
    members = {item["name"]: item for item in entries[entries["migrate"]["arg-type"]]["members"]}
    assert set(members) == {"uri", "channels", "detach", "resume"}
    assert all(item["default"] is None for item in members.values())
    (state,) = entries[entries["migrate-continue"]["arg-type"]]["members"]
    assert "default" not in state


def test_a_command_name_is_registered_once() -> None:
    @command("x")
    def handler(_control: object) -> None:
        """Nothing."""

    with pytest.raises(ValueError, match="registered twice"):
        Registry((handler, handler), ())


@dataclass(frozen=True)
class Inner:
    """A nested struct."""

    a_b: int
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    """Every kind of member."""

    inner: Inner
    maybe: Inner | None = None
    inners: tuple[Inner, ...] = ()
    flag: bool = False
    share: float = 0.0


def test_a_dataclass_is_its_own_schema_and_comes_back_from_the_wire() -> None:
    kind = of_dataclass(Outer)
    assert [member.name for member in kind.members] == [
        "inner",
        "maybe",
        "inners",
        "flag",
        "share",
    ]
    wire = {"inner": {"a-b": 1}, "inners": [{"a-b": 2, "words": ["x"]}], "maybe": {"a-b": 3}}
    value = build(Outer, check(kind, wire))
    assert value == Outer(Inner(1), Inner(3), (Inner(2, ("x",)),))
    assert check(kind, to_wire(value))["inners"] == [{"a-b": 2, "words": ["x"]}]


def test_an_annotation_without_a_qapi_type_is_a_programming_error() -> None:
    with pytest.raises(TypeError, match="has no QAPI type"):
        of_annotation(bytes)


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (of_annotation(str), 1, "Invalid parameter type for 'x', expected: string"),
        (of_annotation(bool), 1, "Invalid parameter type for 'x', expected: boolean"),
        (of_annotation(int), "1", "Invalid parameter type for 'x', expected: integer"),
        (of_annotation(int), True, "Invalid parameter type for 'x', expected: integer"),
        (of_annotation(int), 1 << 63, "Parameter 'x' expects int"),
        (of_annotation(float), "1", "Invalid parameter type for 'x', expected: number"),
        (Array(of_annotation(str)), {}, "Invalid parameter type for 'x', expected: array"),
        (Object("O"), [], "Invalid parameter type for 'x', expected: object"),
        (Enum("E", ("a",)), 1, "Invalid parameter type for 'x', expected: string"),
        (Builtin("null", "null"), 1, "Invalid parameter type for 'x', expected: null"),
        (Object("O", (Member("m", of_annotation(str)),)), {}, "Parameter 'x.m' is missing"),
    ],
)
def test_checks_name_the_parameter_as_qemu_does(kind: QapiType, value: Any, text: str) -> None:
    with pytest.raises(QapiError) as caught:
        check(kind, value, "x")
    assert str(caught.value) == text


def test_option_strings_become_typed_values() -> None:
    kind = of_dataclass(Outer)
    wire = {"inner": {"a-b": "0x10"}, "flag": "yes"}
    assert check_keyval(kind, wire) == {"inner": {"a-b": 16}, "flag": True}
