from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.qmp.jsonstream import MAX_MESSAGE_BYTES, JsonStream
from vmm.qmp.jsonvalue import MAX_NESTING, JsonSyntaxError


def drain(stream: JsonStream) -> list[Any]:
    """Every item that is ready: values, and mistakes as their text."""
    items: list[Any] = []
    while (item := stream.take()) is not None:
        items.append(str(item) if isinstance(item, JsonSyntaxError) else item[0])
    return items


def cut(data: bytes, *, at: int | None = None) -> list[Any]:
    """The items of `data`, fed whole or in pieces of `at` bytes."""
    stream = JsonStream()
    items: list[Any] = []
    step = at or max(1, len(data))
    for start in range(0, len(data), step):
        stream.feed(data[start : start + step])
        items += drain(stream)
    return items


SAMPLES: list[tuple[bytes, list[Any]]] = [
    (b'{"a":1}', [{"a": 1}]),
    (b'{"a":1}{"b":2}\r\n [3]', [{"a": 1}, {"b": 2}, [3]]),
    (b'{"a":"}{\\"]["}', [{"a": '}{"]['}]),
    (b"{'a':'\"}'}", [{"a": '"}'}]),
    (b'{"a":\n  [1,\n 2]}\n', [{"a": [1, 2]}]),
    (b'"x" 1 \n', ["x", 1]),
    (b"true\nnull\n", [True, None]),
    (b'{"a":"\xc3\xa9"}', [{"a": "é"}]),
    (b'{"a":"\\\\"}{"b":1}', [{"a": "\\"}, {"b": 1}]),
    (b'foo {"a":1}', ["JSON parse error, invalid keyword 'foo'", {"a": 1}]),
    (b'}{"a":1}', ["JSON parse error, expecting value", {"a": 1}]),
    (b']]]]]]\n{"a":1}', ["JSON parse error, expecting value", {"a": 1}]),
    (b'{"a"}{"b":1}', ["JSON parse error, missing : in object pair", {"b": 1}]),
    (b'{]{"b":1}', ["JSON parse error, expecting value", {"b": 1}]),
    (b'{"a":"b\n{"c":1}', ["JSON parse error, stray '\\u000A'", {"c": 1}]),
    (b'{"a":\xff{"c":1}', ["JSON parse error, stray '\\uFFFD'", {"c": 1}]),
    (b'\xff{"c":1}', ["JSON parse error, stray '\\uFFFD'", {"c": 1}]),
    (b'\x01{"c":1}', ["JSON parse error, stray '\\u0001'", {"c": 1}]),
    (b'{"a":"\xe9"}{"c":1}', ["JSON parse error, invalid UTF-8 sequence in string", {"c": 1}]),
    (
        b'abc\xfe{"c":1}',
        ["JSON parse error, invalid keyword 'abc'", "JSON parse error, stray '\\uFFFD'", {"c": 1}],
    ),
]


@pytest.mark.parametrize(("data", "items"), SAMPLES)
@pytest.mark.parametrize("at", [None, 1, 3])
def test_texts_are_cut_the_same_however_they_arrive(
    data: bytes, items: list[Any], at: int | None
) -> None:
    assert cut(data, at=at) == items


@given(
    st.lists(st.sampled_from([data for data, _items in SAMPLES]), max_size=6),
    st.integers(1, 7),
)
def test_any_mixture_is_cut_the_same_however_it_arrives(parts: list[bytes], at: int) -> None:
    data = b"\n".join(parts) + b"\n"
    assert cut(data, at=at) == cut(data)


@given(st.binary(max_size=80), st.integers(1, 9))
def test_random_bytes_are_cut_the_same_however_they_arrive(data: bytes, at: int) -> None:
    assert cut(data, at=at) == cut(data)


@given(st.binary(max_size=60))
def test_after_any_garbage_a_client_can_force_the_parser_back_in_step(data: bytes) -> None:
    assert cut(data + b'\xff\n{"execute":"x"}')[-1] == {"execute": "x"}


def test_an_oversized_text_is_reported_once_and_memory_stays_bounded() -> None:
    stream = JsonStream()
    chunk = b"a" * 65536
    items: list[Any] = []
    peak = 0
    for _ in range(100 * 16):  # 100 MiB without a newline
        stream.feed(chunk)
        items += drain(stream)
        peak = max(peak, stream.buffered_bytes)
    assert items == ["JSON parse error, JSON token size limit exceeded"]
    assert peak <= MAX_MESSAGE_BYTES + len(chunk)
    stream.feed(b'}\n{"a":1}')
    assert drain(stream) == [{"a": 1}]


@pytest.mark.parametrize("start", [b'{"a":"', b'{"a":[', b"["])
def test_every_kind_of_text_has_the_limit(start: bytes) -> None:
    stream = JsonStream(max_message_bytes=100)
    stream.feed(start + b" " * 200)
    assert drain(stream) == ["JSON parse error, JSON token size limit exceeded"]
    assert stream.buffered_bytes == 0


def test_the_largest_text_that_is_allowed_is_taken() -> None:
    text = b'{"a":"' + b"x" * (MAX_MESSAGE_BYTES - 8) + b'"}'
    assert len(text) == MAX_MESSAGE_BYTES
    assert cut(text, at=65536) == [{"a": "x" * (MAX_MESSAGE_BYTES - 8)}]


def test_deep_nesting_is_reported_and_the_next_line_is_read() -> None:
    data = b"[" * (MAX_NESTING + 1) + b'\n{"a":1}'
    items = cut(data)
    assert items == ["JSON parse error, JSON nesting depth limit exceeded", {"a": 1}]
