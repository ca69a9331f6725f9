"""QAPI types as values: what an argument may be, and QEMU's text if it is not.

`check` walks a type and a value that came from JSON and returns a clean copy; `check_keyval` does
the same for `a.b=c` option strings, where every scalar is text. Both visit members in the order of
the type and report unexpected members last, as QEMU's visitors do, so that the first of several
mistakes gets the same text as there. `of_annotation` derives a type from a Python annotation, so
that a frozen dataclass is at once the arguments of a command, their checks and their schema.
"""

from __future__ import annotations

import enum
import functools
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from vmm.optstr import parse_bool, parse_size


class QapiError(Exception):
    """A value does not fit its type; the message is QEMU's."""


@dataclass(frozen=True, slots=True)
class Builtin:
    """A scalar. `json_type` is how `query-qmp-schema` describes it."""

    name: str
    json_type: str


@dataclass(frozen=True, slots=True)
class Integer:
    """An integer of limited range; `name` is the C type that QEMU's texts mention."""

    name: str
    minimum: int
    maximum: int


@dataclass(frozen=True, slots=True)
class Enum:
    """One of several words."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Array:
    """A list of one type."""

    element: QapiType


@dataclass(frozen=True, slots=True)
class Member:
    """One member of an object."""

    name: str
    type: QapiType
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Variant:
    """The further members of a flat union when its tag is `case`."""

    case: str
    type: Object


@dataclass(frozen=True, slots=True)
class Object:
    """A struct, or a flat union when it has a tag."""

    name: str
    members: tuple[Member, ...] = ()
    tag: str | None = None
    variants: tuple[Variant, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Alternate:
    """A value whose type is told by its JSON type."""

    name: str
    types: tuple[QapiType, ...]


QapiType = Builtin | Integer | Enum | Array | Object | Alternate

STR = Builtin("str", "string")
NUMBER = Builtin("number", "number")
BOOL = Builtin("bool", "boolean")
NULL = Builtin("null", "null")
ANY = Builtin("any", "value")
INT = Integer("int", -(1 << 63), (1 << 63) - 1)
UINT8 = Integer("uint8_t", 0, (1 << 8) - 1)
UINT16 = Integer("uint16_t", 0, (1 << 16) - 1)
UINT32 = Integer("uint32_t", 0, (1 << 32) - 1)
UINT64 = Integer("uint64", 0, (1 << 64) - 1)
SIZE = Integer("size", 0, (1 << 64) - 1)  # as UINT64, and with suffixes in option strings
STR_OR_NULL = Alternate("StrOrNull", (STR, NULL))
EMPTY = Object("q_empty")

_EXPECTED = {"string": "string", "number": "number", "boolean": "boolean", "null": "null"}


_UNEXPECTED = "Parameter '{}' is unexpected"


def check(kind: QapiType, value: Any, path: str = "", *, unexpected: str = _UNEXPECTED) -> Any:
    """`value` (from JSON) as `kind`, with absent optional members left out.

    Raises QapiError with QEMU's text; `path` is the name in it ("channels[0].addr"), `unexpected`
    the text about a member that the type does not have.
    """
    return _Checker(False, unexpected).check(kind, value, path)


def check_keyval(
    kind: QapiType, value: Any, path: str = "", *, unexpected: str = _UNEXPECTED
) -> Any:
    """Like `check` for option strings: every scalar is a string."""
    return _Checker(True, unexpected).check(kind, value, path)


@dataclass(frozen=True, slots=True)
class _Checker:
    keyval: bool
    unexpected: str

    def check(self, kind: QapiType, value: Any, path: str) -> Any:
        match kind:
            case Builtin():
                return self._builtin(kind, value, path)
            case Integer():
                return self._integer(kind, value, path)
            case Enum():
                return self._enum(kind, value, path)
            case Array():
                items = value
                if not isinstance(items, list):
                    raise _wrong_type(path, "array")
                return [
                    self.check(kind.element, item, f"{path}[{index}]")
                    for index, item in enumerate(items)
                ]
            case Object():
                return self._object(kind, value, path)
            case Alternate():
                return self._alternate(kind, value, path)

    def _builtin(self, kind: Builtin, value: Any, path: str) -> Any:
        if kind is ANY:
            return value
        if kind is BOOL and self.keyval and isinstance(value, str):
            parsed = parse_bool(value)
            if parsed is None:
                raise QapiError(f"Parameter '{path}' expects 'on' or 'off'")
            return parsed
        if not _fits_json_type(kind.json_type, value):
            raise _wrong_type(path, _EXPECTED[kind.json_type])
        return value

    def _integer(self, kind: Integer, value: Any, path: str) -> int:
        if self.keyval and isinstance(value, str):
            value = _keyval_integer(kind, value, path)
        if isinstance(value, bool) or not isinstance(value, int):
            if kind is INT:
                raise _wrong_type(path, "integer")
            raise QapiError(f"Parameter '{path}' expects uint64")
        if not kind.minimum <= value <= kind.maximum:
            wanted = "uint64" if kind is SIZE else kind.name
            raise QapiError(f"Parameter '{_leaf(path)}' expects {wanted}")
        return int(value)

    def _enum(self, kind: Enum, value: Any, path: str) -> str:
        if not isinstance(value, str):
            raise _wrong_type(path, "string")
        if value not in kind.values:
            raise QapiError(f"Parameter '{_leaf(path)}' does not accept value '{value}'")
        return value

    def _object(self, kind: Object, value: Any, path: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _wrong_type(path, "object")
        clean: dict[str, Any] = {}
        self._members(kind, value, path, clean)
        for name in value:
            if name not in clean:
                raise QapiError(self.unexpected.format(_join(path, name)))
        return clean

    def _members(
        self, kind: Object, value: Mapping[str, Any], path: str, clean: dict[str, Any]
    ) -> None:
        for member in kind.members:
            name = _join(path, member.name)
            if member.name in value:
                clean[member.name] = self.check(member.type, value[member.name], name)
            elif not member.optional:
                raise QapiError(f"Parameter '{name}' is missing")
        if kind.tag is not None:
            for variant in kind.variants:
                if variant.case == clean[kind.tag]:
                    self._members(variant.type, value, path, clean)

    def _alternate(self, kind: Alternate, value: Any, path: str) -> Any:
        for choice in kind.types:
            if isinstance(choice, Builtin) and _fits_json_type(choice.json_type, value):
                return value
        raise _wrong_type(path, kind.name)


def _fits_json_type(json_type: str, value: Any) -> bool:
    match json_type:
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case _:
            return value is None


def _keyval_integer(kind: Integer, text: str, path: str) -> int:
    if kind is SIZE:
        size = parse_size(text)
        if size is None:
            raise QapiError(f"Parameter '{path}' expects a size value")
        return size
    try:
        return int(text, 0)
    except ValueError:  # thousands of digits, too
        raise QapiError(f"Parameter '{path}' expects integer") from None


def _wrong_type(path: str, expected: str) -> QapiError:
    return QapiError(f"Invalid parameter type for '{path}', expected: {expected}")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _leaf(path: str) -> str:
    """The last name of a path; list elements have none, which QEMU prints as 'null'."""
    leaf = path.rpartition(".")[2]
    return "null" if leaf.endswith("]") else leaf


# ---- from Python annotations ---------------------------------------------------------------------


def wire_name(name: str) -> str:
    """The QAPI spelling of a Python name: dashes for underscores."""
    return name.strip("_").replace("_", "-")


@functools.cache
def of_dataclass(cls: type) -> Object:
    """The object type of a dataclass. A field with a default is optional.

    The QAPI name of a field is its own with dashes, or `metadata={"qapi": NAME}`.
    """
    hints = get_type_hints(cls, include_extras=True)
    return Object(
        cls.__name__,
        tuple(
            Member(
                item.metadata.get("qapi", wire_name(item.name)),
                of_annotation(hints[item.name]),
                optional=item.default is not MISSING or item.default_factory is not MISSING,
            )
            for item in fields(cls)
        ),
    )


_SCALARS: Mapping[Any, QapiType] = {str: STR, int: INT, float: NUMBER, bool: BOOL, Any: ANY}


def of_annotation(hint: Any) -> QapiType:
    """The QAPI type of a Python annotation; `Annotated[T, QapiType]` says it outright."""
    if hint in _SCALARS:
        return _SCALARS[hint]
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return next(extra for extra in args[1:] if isinstance(extra, QapiType))
    if origin in (Union, types.UnionType):
        (inner,) = (arg for arg in args if arg is not type(None))
        return of_annotation(inner)
    if origin in (tuple, list):
        return Array(of_annotation(args[0]))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return Enum(hint.__name__, tuple(item.value for item in hint))
    if isinstance(hint, type) and is_dataclass(hint):
        return of_dataclass(hint)
    raise TypeError(f"{hint!r} has no QAPI type; use Annotated[…, TYPE]")


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def prepare(cls: type) -> None:
    """Read the annotations of `cls` and of what it is made of, as `build` will."""
    for hint in _hints(cls).values():
        for inner in (hint, *get_args(hint)):
            if is_dataclass(inner) and isinstance(inner, type):
                prepare(inner)


def build(cls: type, values: Mapping[str, Any]) -> Any:
    """An instance of dataclass `cls` from checked `values`."""
    hints = _hints(cls)
    return cls(
        **{
            item.name: _from_wire(hints[item.name], values[name])
            for item in fields(cls)
            if (name := item.metadata.get("qapi", wire_name(item.name))) in values
        }
    )


def _from_wire(hint: Any, value: Any) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        (hint,) = (arg for arg in args if arg is not type(None))
        return _from_wire(hint, value)
    if origin is tuple:
        return tuple(_from_wire(args[0], item) for item in value)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint(value)
    if isinstance(hint, type) and is_dataclass(hint):
        return build(hint, value)
    return value


def to_wire(value: Any) -> Any:
    """JSON of a returned dataclass, enum, list or scalar; members that are None are left out."""
    if isinstance(value, enum.Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        return {
            item.metadata.get("qapi", wire_name(item.name)): to_wire(content)
            for item in fields(value)
            if (content := getattr(value, item.name)) is not None
        }
    if isinstance(value, Mapping):
        return {name: to_wire(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_wire(item) for item in value]
    return value
