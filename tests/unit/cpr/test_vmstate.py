from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import cbor2
import pytest

from cpr.errors import (
    FieldTypeError,
    MissingFieldError,
    SectionDigestError,
    SectionVersionError,
    StateError,
)
from cpr.vmstate import Section, SectionHeader, VmState, check_version, section_digest, since


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueState(VmState):
    """Part of another state; its versions are those of the section."""

    index: int
    wrapped: bool = since(3, default=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class NetState(VmState):
    NAME: ClassVar[str] = "net"
    VERSION: ClassVar[int] = 3
    READS_FROM: ClassVar[int] = 2
    OPTIONAL: ClassVar[bool] = True

    mac: bytes
    mtu: int = 1500
    registers: Mapping[str, int]
    queues: tuple[QueueState, ...] = ()
    limits: tuple[int, int] | None = since(3, default=None)

    def __post_init__(self) -> None:
        if not 0 <= self.mtu <= 65535:
            raise ValueError(f"mtu {self.mtu} is not a size of a frame")


NET = NetState(
    mac=b"\x52\x54\0\0\0\1",
    registers={"status": 1 << 63},
    queues=(QueueState(index=7, wrapped=True), QueueState(index=8)),
    limits=(1, 2),
)


def section_with(version: int = 3, **changes: Any) -> Section:
    """NET as a sender of `version` wrote it; a change to None leaves the field out."""
    fields = {**NET.to_map(), **changes}
    payload = cbor2.dumps({name: value for name, value in fields.items() if value is not None})
    return Section("net0", "net", version, True, payload, section_digest(payload))


def test_a_state_comes_back() -> None:
    section = Section.save("net0", NET)
    assert section.load(NetState) == NET
    assert (section.name, section.kind, section.version, section.optional) == (
        "net0",
        "net",
        3,
        True,
    )


def test_a_state_is_a_map_of_plain_values_by_field_name() -> None:
    assert NET.to_map() == {
        "mac": b"\x52\x54\0\0\0\1",
        "mtu": 1500,
        "registers": {"status": 1 << 63},
        "queues": [{"index": 7, "wrapped": True}, {"index": 8, "wrapped": False}],
        "limits": [1, 2],
    }


def test_a_header_says_what_can_be_written_and_read() -> None:
    assert SectionHeader.of("net0", NetState) == SectionHeader("net0", "net", 3, 2, True)


def test_an_older_sender_may_leave_new_fields_out_also_in_nested_states() -> None:
    old = section_with(2, limits=None, queues=[{"index": 7}])
    state = old.load(NetState)
    assert state.limits is None
    assert state.queues == (QueueState(index=7, wrapped=False),)


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        (section_with(3, limits=None), "'net0': field 'limits' is missing; net version 3 must"),
        (section_with(2, mac=None), "'net0': field 'mac' is missing; net version 2 must"),
        # A default in the class is for those who build one, not for senders.
        (section_with(3, mtu=None), "field 'mtu' is missing"),
        (section_with(3, queues=[{"index": 1}]), r"'net0.queues\[\]': field 'wrapped' is missing"),
    ],
)
def test_a_field_that_the_version_has_must_come(section: Section, problem: str) -> None:
    with pytest.raises(MissingFieldError, match=problem):
        section.load(NetState)


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        (section_with(mac="text"), "net0.mac: expected bytes, got str"),
        (section_with(mtu=True), "net0.mtu: expected int, got bool"),
        (section_with(registers={"status": "1"}), r"net0.registers\[\]: expected int, got str"),
        (section_with(queues=[1]), r"net0.queues\[\]: expected map, got int"),
        (section_with(limits=[1]), "net0.limits: expected 2 items, got 1"),
        (section_with(colour="red"), "'net0': field 'colour' is not part of net version 3"),
        (section_with(mtu=70000), "'net0': mtu 70000 is not a size"),
    ],
)
def test_a_field_that_cannot_be_used_is_named(section: Section, problem: str) -> None:
    with pytest.raises(FieldTypeError, match=problem):
        section.load(NetState)


@pytest.mark.parametrize(
    ("kind", "version", "problem"),
    [
        ("net", 4, "net0: incoming version_id 4 is too new for local version_id 3"),
        ("net", 1, "net0: incoming version_id 1 is too old for local minimum version_id 2"),
        ("disk", 3, "section 'net0' holds 'disk', this build expects 'net' there"),
    ],
)
def test_a_version_that_we_do_not_read_is_refused(kind: str, version: int, problem: str) -> None:
    with pytest.raises(SectionVersionError, match=problem):
        check_version("net0", kind, version, NetState)
    with pytest.raises(SectionVersionError, match=problem):
        Section("net0", kind, version, True, b"", b"").load(NetState)


@pytest.mark.parametrize("version", [2, 3])
def test_versions_in_the_range_are_read(version: int) -> None:
    check_version("net0", "net", version, NetState)


def test_a_damaged_payload_is_noticed() -> None:
    section = Section.save("net0", NET)
    damaged = section.payload[:-1] + b"\0"
    with pytest.raises(SectionDigestError, match=f"'net0': digest of {len(damaged)} bytes"):
        Section("net0", "net", 3, True, damaged, section.digest).load(NetState)


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        (b"", "'net0': payload is not plain CBOR"),
        (b"\xa0\0", "'net0': payload is plain CBOR with 1 bytes after"),
        (b"\x80", "'net0': expected a map, got list"),
    ],
)
def test_a_payload_that_is_no_map_is_refused(payload: bytes, problem: str) -> None:
    with pytest.raises(StateError, match=problem):
        Section("net0", "net", 3, True, payload, section_digest(payload)).load(NetState)


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"index": 7, "wrapped": True, "speed": 1}, "'speed' is not part of QueueState version 3"),
        ({"wrapped": True}, "field 'index' is missing; QueueState version 3 must have it"),
    ],
)
def test_a_record_that_does_not_fit_is_named_by_its_class(
    record: dict[str, Any], problem: str
) -> None:
    with pytest.raises(StateError, match=problem):
        section_with(queues=[record]).load(NetState)


def test_what_is_prepared_reads_no_annotation_later(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True, kw_only=True, slots=True)
    class FreshState(VmState):
        NAME: ClassVar[str] = "fresh"
        VERSION: ClassVar[int] = 1
        READS_FROM: ClassVar[int] = 1

        value: int

    FreshState.prepare()

    def late(_cls: type) -> dict[str, Any]:
        raise AssertionError("annotations are read again")

    monkeypatch.setattr(typing, "get_type_hints", late)
    section = Section.save("fresh0", FreshState(value=7))
    assert section.load(FreshState) == FreshState(value=7)
