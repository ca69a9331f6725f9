from __future__ import annotations

import datetime

import cbor2
import pytest

from cpr.plaincbor import dumps, loads

PLAIN = {"a": [1, -1, 1 << 63, "text", b"bytes", True, None, 1.5], "b": {"c": {}}}


def test_plain_values_come_back() -> None:
    assert loads(dumps(PLAIN), nesting_max=4, int_keys=False) == PLAIN


def test_integer_keys_only_where_they_are_allowed() -> None:
    data = dumps({0x10: 1})
    assert loads(data, nesting_max=1, int_keys=True) == {0x10: 1}
    with pytest.raises(ValueError, match="map key"):
        loads(data, nesting_max=1, int_keys=False)


def _cycle() -> bytes:
    looped: list[object] = []
    looped.append(looped)
    return cbor2.dumps(looped, value_sharing=True)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "premature end"),
        (b"\x81", "premature end"),
        (b"\x61\xff", "text"),
        (b"\x9b\x00\x00\x00\xff\xff\xff\xff\xff", "premature end"),
        (b"\x5b\x00\x00\x00\x00\x3f\xff\xff\xff", "premature end"),
        (b"\x9f\x01\xff", "indefinite"),
        (b"\xa2\x61a\x01\x61a\x02", "[Dd]uplicate"),
        (b"\x81" * 5 + b"\x01", "nesting"),
        (b"\x01\x01", "1 bytes after"),
        (_cycle(), "tag"),
        (cbor2.dumps(1 << 70), "tag"),
        (cbor2.dumps(datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)), "tag"),
        (cbor2.dumps(cbor2.CBORTag(55799, 1)), "tag"),
        (cbor2.dumps(cbor2.CBORTag(4711, 1)), "tag"),
    ],
)
def test_anything_else_is_refused(data: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        loads(data, nesting_max=4, int_keys=False)


@pytest.mark.parametrize(
    "longer",
    [b"\x18\x05", b"\xa1\x61a\x19\x00\x07", b"\x58\x01a", b"\x98\x01\x00", b"\xfa\x40\x40\x00\x00"],
    ids=["int", "int in a map", "bytes", "list", "float"],
)
def test_a_value_in_more_bytes_than_it_needs_is_refused(longer: bytes) -> None:
    with pytest.raises(ValueError, match="shortest form"):
        loads(longer, nesting_max=4, int_keys=False)
