from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Optional

import pytest

from cpr.errors import LimitError, RemoteProtocolError
from cpr.typed import INT_MAX, INT_MIN, ITEMS_MAX, Reader, Readers, Writer, as_it_is, writer_of


@dataclass(frozen=True)
class Point:
    x: int


def _read_point(_cls: type) -> Reader:
    return lambda value, _where: Point(value["x"])


def _write_point(_cls: type) -> Writer:
    return lambda value: {"x": value.x}


READERS = Readers(RemoteProtocolError, LimitError, _read_point)

# annotation, the value, what CBOR carries
CASES: list[tuple[Any, Any, Any]] = [
    (int, 7, 7),
    (str, "a", "a"),
    (bytes, b"a", b"a"),
    (bool, True, True),
    (float, 1.5, 1.5),
    (Any, {"a": [1, "b", b"c", None, 1.5, False]}, {"a": [1, "b", b"c", None, 1.5, False]}),
    (Point, Point(1), {"x": 1}),
    (int | None, None, None),
    (int | None, 5, 5),
    (Optional[bytes], b"x", b"x"),  # noqa: UP045 - both spellings must work
    (tuple[int, ...], (1, 2), [1, 2]),
    (tuple[Point, ...], (Point(1), Point(2)), [{"x": 1}, {"x": 2}]),
    (tuple[str, int], ("a", 1), ["a", 1]),
    (tuple[Point, int], (Point(1), 1), [{"x": 1}, 1]),
    (Mapping[str, int], {"a": 1}, {"a": 1}),
    (Mapping[str, int], {}, {}),
    (Mapping[int, int], {0x10: 1}, {0x10: 1}),
    (Mapping[str, str], {"a": "b"}, {"a": "b"}),
    (Mapping[str, tuple[int, int]], {"a": (1, 2)}, {"a": [1, 2]}),
]


@pytest.mark.parametrize(("annotation", "value", "carried"), CASES)
def test_values_are_written_and_read_back(annotation: Any, value: Any, carried: Any) -> None:
    written = writer_of(annotation, _write_point)(value)
    assert written == carried
    assert type(written) is type(carried)
    assert READERS.of(annotation)(carried, "field") == value


@pytest.mark.parametrize(
    ("annotation", "carried", "problem"),
    [
        (int, True, "field: expected int, got bool"),
        (int, "1", "field: expected int, got str"),
        (str, b"a", "field: expected str, got bytes"),
        (bytes, "a", "field: expected bytes, got str"),
        (bool, 1, "field: expected bool, got int"),
        (int | None, "a", "field: expected int, got str"),
        (tuple[int, ...], {}, "field: expected list, got dict"),
        (tuple[int, ...], [1, "a"], r"field\[\]: expected int, got str"),
        (tuple[int, int], {}, "field: expected list, got dict"),
        (tuple[int, int], [1], "field: expected 2 items, got 1"),
        (tuple[int, int], [1, None], "field: expected int, got NoneType"),
        (Mapping[str, int], [], "field: expected map, got list"),
        (Mapping[str, int], {1: 1}, r"field\[\]: expected str, got int"),
        (Mapping[str, int], {"a": True}, r"field\[\]: expected int, got bool"),
        (Mapping[int, int], {"a": 1}, r"field\[\]: expected int, got str"),
        (Any, {"a": [object()]}, r"field\[\]\[\]: expected plain data, got object"),
        (Any, {1: 1}, r"field\[\]: expected str, got int"),
    ],
)
def test_a_wrong_type_is_named(annotation: Any, carried: Any, problem: str) -> None:
    with pytest.raises(RemoteProtocolError, match=f"^{problem}$"):
        READERS.of(annotation)(carried, "field")


@pytest.mark.parametrize("value", [INT_MIN, INT_MAX])
def test_64_bits_fit(value: int) -> None:
    assert READERS.of(int)(value, "field") == value
    assert READERS.of(Mapping[str, int])({"a": value}, "field") == {"a": value}


@pytest.mark.parametrize("value", [INT_MIN - 1, INT_MAX + 1])
@pytest.mark.parametrize(
    ("annotation", "wrap"),
    [
        (int, lambda value: value),
        (Any, lambda value: [value]),
        (Mapping[str, int], lambda value: {"a": value}),
    ],
)
def test_more_than_64_bits_is_a_limit(
    annotation: Any, wrap: Callable[[int], Any], value: int
) -> None:
    with pytest.raises(LimitError, match="64 bits"):
        READERS.of(annotation)(wrap(value), "field")


@pytest.mark.parametrize(
    ("annotation", "carried"),
    [
        (tuple[int, ...], [1] * (ITEMS_MAX + 1)),
        (Any, [1] * (ITEMS_MAX + 1)),
        (Mapping[str, str], {str(n): "" for n in range(ITEMS_MAX + 1)}),
        (Mapping[int, int], dict.fromkeys(range(ITEMS_MAX + 1), 1)),
    ],
)
def test_too_many_items_is_a_limit(annotation: Any, carried: Any) -> None:
    with pytest.raises(LimitError, match=f"{ITEMS_MAX + 1} items; the limit is {ITEMS_MAX}"):
        READERS.of(annotation)(carried, "field")


@pytest.mark.parametrize("annotation", [list, set[int], int | str, complex, dict[str, int]])
def test_what_cannot_travel_is_said_when_the_reader_is_made(annotation: Any) -> None:
    with pytest.raises(TypeError, match="cannot travel"):
        READERS.of(annotation)


def test_the_writer_of_what_cbor_knows_does_nothing() -> None:
    value = object()
    assert as_it_is(value) is value
