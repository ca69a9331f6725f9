"""From CBOR's loose values to declared types, and back.

A reader and a writer are made once from an annotation, so that reading a value in the blackout is a
few calls and no reflection. The check is exact: CBOR has no subclasses, and a bool must not pass
for an int. Annotations: int (64 bits), str, bytes, bool, float, `X | None`, `tuple[X, ...]`,
`tuple[X, Y]`, `Mapping[K, V]`, Any (plain data), and dataclasses through the caller's functions.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any, get_args, get_origin

from cpr.errors import CprError

# Sections, fds, MSRs, RAM blocks, reasons: hundreds on the largest machines.
ITEMS_MAX = 4096
# The widest integers of a machine are 64 bits: registers unsigned, clock offsets signed.
INT_MIN = -(1 << 63)
INT_MAX = (1 << 64) - 1

Reader = Callable[[Any, str], Any]
Writer = Callable[[Any], Any]

_LEAVES = (str, bytes, bool, float)
_KEYS = (str, int)
_UNIONS = (typing.Union, types.UnionType)


@dataclass(frozen=True)
class Readers:
    """Makes readers: functions (CBOR value, where) -> value of the declared type.

    A reader raises `error` for a wrong type and `limit` for a value beyond a limit; the text begins
    with `where`. `nested` makes the reader of a dataclass.
    """

    error: type[CprError]
    limit: type[CprError]
    nested: Callable[[type], Reader]

    def of(self, annotation: Any) -> Reader:
        """The reader of `annotation`; TypeError when it is not one of those above."""
        if annotation is Any:
            return self._any
        if isinstance(annotation, type) and not get_args(annotation):
            return self._type(annotation)
        origin, parts = get_origin(annotation), get_args(annotation)
        if origin in _UNIONS and len(parts) == 2 and parts[1] is types.NoneType:
            return self._optional(self.of(parts[0]))
        if origin is tuple:
            return self._tuple(parts)
        if origin is Mapping:
            if parts[1] is int and parts[0] in _KEYS:
                return self._ints(parts[0])
            return self._mapping(self.of(parts[0]), self.of(parts[1]))
        raise _cannot_travel(annotation)

    def wrong(self, where: str, expected: str, value: Any) -> CprError:
        """The error for a value of another type."""
        return self.error(f"{where}: expected {expected}, got {type(value).__name__}")

    def _type(self, annotation: type) -> Reader:
        if annotation is int:
            return self._int
        if annotation in _LEAVES:
            return self._leaf(annotation)
        if is_dataclass(annotation):
            return self.nested(annotation)
        raise _cannot_travel(annotation)

    def _leaf(self, leaf: type) -> Reader:
        def read(value: Any, where: str) -> Any:
            if type(value) is not leaf:
                raise self.wrong(where, leaf.__name__, value)
            return value

        return read

    def _int(self, value: Any, where: str) -> Any:
        if type(value) is not int:
            raise self.wrong(where, "int", value)
        if not INT_MIN <= value <= INT_MAX:
            raise self.limit(f"{where}: integer does not fit in 64 bits")
        return value

    def _any(self, value: Any, where: str) -> Any:
        if type(value) is list:
            return self._list(self._any, value, where)
        if type(value) is dict:
            return self._map(self._leaf(str), self._any, value, where)
        if type(value) is int:
            return self._int(value, where)
        if value is None or type(value) in _LEAVES:
            return value
        raise self.wrong(where, "plain data", value)

    def _optional(self, inner: Reader) -> Reader:
        return lambda value, where: None if value is None else inner(value, where)

    def _tuple(self, parts: tuple[Any, ...]) -> Reader:
        if len(parts) == 2 and parts[1] is Ellipsis:
            item = self.of(parts[0])
            return lambda value, where: tuple(self._list(item, value, where))
        readers = tuple(self.of(part) for part in parts)

        def read(value: Any, where: str) -> Any:
            if type(value) is not list:
                raise self.wrong(where, "list", value)
            if len(value) != len(readers):
                raise self.error(f"{where}: expected {len(readers)} items, got {len(value)}")
            return tuple([one(item, where) for one, item in zip(readers, value, strict=True)])

        return read

    def _list(self, item: Reader, value: Any, where: str) -> Any:
        if type(value) is not list:
            raise self.wrong(where, "list", value)
        self._limit_items(value, where)
        inside = f"{where}[]"
        return [item(one, inside) for one in value]

    def _mapping(self, key: Reader, item: Reader) -> Reader:
        return lambda value, where: self._map(key, item, value, where)

    def _ints(self, key: type) -> Reader:
        """Registers by name or number: the largest maps of a machine, so checked all at once."""
        keys, ints = {key}, {int}
        one_by_one = self._mapping(self.of(key), self._int)

        def read(value: Any, where: str) -> Any:
            if (
                type(value) is dict
                and 0 < len(value) <= ITEMS_MAX
                and set(map(type, value)) == keys
                and set(map(type, value.values())) == ints
                and max(value.values()) <= INT_MAX
                and min(value.values()) >= INT_MIN
            ):
                return value
            return one_by_one(value, where)

        return read

    def _map(self, key: Reader, item: Reader, value: Any, where: str) -> Any:
        if type(value) is not dict:
            raise self.wrong(where, "map", value)
        self._limit_items(value, where)
        inside = f"{where}[]"
        return {key(name, inside): item(one, inside) for name, one in value.items()}

    def _limit_items(self, value: Any, where: str) -> None:
        if len(value) > ITEMS_MAX:
            raise self.limit(f"{where}: {len(value)} items; the limit is {ITEMS_MAX}")


def writer_of(annotation: Any, nested: Callable[[type], Writer]) -> Writer:
    """A function value of `annotation` -> what CBOR carries; the inverse of a reader.

    It trusts the dataclass to hold what it declares; the reader on the other side does not.
    """
    if isinstance(annotation, type):
        return nested(annotation) if is_dataclass(annotation) else as_it_is
    origin = get_origin(annotation)
    inner = tuple(writer_of(part, nested) for part in get_args(annotation))
    if origin in _UNIONS:
        return lambda value: None if value is None else inner[0](value)
    if origin is tuple:
        return _tuple_writer(inner, repeated=get_args(annotation)[-1] is Ellipsis)
    if origin is Mapping:
        return _mapping_writer(inner[1])
    return as_it_is


def _tuple_writer(inner: tuple[Writer, ...], *, repeated: bool) -> Writer:
    if all(writer is as_it_is for writer in inner):
        return list
    if repeated:
        return lambda value: [inner[0](item) for item in value]
    return lambda value: [write(item) for write, item in zip(inner, value, strict=True)]


def _mapping_writer(item: Writer) -> Writer:
    if item is as_it_is:
        return dict
    return lambda value: {name: item(one) for name, one in value.items()}


def as_it_is(value: Any) -> Any:
    """The writer of what CBOR carries by itself."""
    return value


def _cannot_travel(annotation: Any) -> TypeError:
    return TypeError(f"{annotation} cannot travel: see cpr.typed for what can")
