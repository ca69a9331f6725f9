"""Saved device state: frozen dataclasses, and sections made of them.

A state class declares NAME (its kind on the wire), VERSION (what we write) and READS_FROM (the
oldest we accept). Its fields travel as one CBOR map keyed by field name. A field added in version v
is declared with `since(v, default=...)`: a sender older than v may leave it out, a sender of v or
newer must not. Sections match by instance name; each payload is length-prefixed and digested, so an
optional section that we do not know is skipped and a mandatory one is refused by name.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar, get_args, get_origin

import cbor2

from cpr.errors import (
    FieldTypeError,
    MissingFieldError,
    SectionDigestError,
    SectionVersionError,
    StateError,
)

DIGEST_SIZE_BYTES = 16
_SINCE = "cpr.since"
S = TypeVar("S", bound="VmState")


def since(version: int, *, default: Any) -> Any:
    """Declare a field that exists from `version` on; older senders get `default`."""
    return dataclasses.field(default=default, metadata={_SINCE: version})


@dataclass(frozen=True, kw_only=True, slots=True)
class VmState:
    """Base of every saved state; subclasses are frozen, keyword-only dataclasses."""

    NAME: ClassVar[str]
    VERSION: ClassVar[int]
    READS_FROM: ClassVar[int]
    OPTIONAL: ClassVar[bool] = False

    def to_map(self) -> dict[str, Any]:
        """Field name to plain CBOR value."""
        return {name: _plain(getattr(self, name)) for name in _plan(type(self))}

    @classmethod
    def from_map(cls, fields: Mapping[str, Any], *, version: int, section: str) -> Self:
        """Build the state that a sender of `version` described; errors name `section`.

        Raises MissingFieldError, FieldTypeError.
        """
        plan = _plan(cls)
        unknown = sorted(str(name) for name in fields if name not in plan)
        if unknown:
            raise FieldTypeError(
                f"section '{section}': field(s) {', '.join(unknown)} are not part of "
                f"{cls.NAME} version {version}"
            )
        values: dict[str, Any] = {}
        for name, (annotation, first_version) in plan.items():
            if name in fields:
                values[name] = _typed(annotation, fields[name], f"{section}.{name}")
            elif version >= first_version:
                raise MissingFieldError(
                    f"section '{section}': field '{name}' is missing; {cls.NAME} version "
                    f"{version} must have it"
                )
        try:
            return cls(**values)
        except ValueError as error:
            raise FieldTypeError(f"section '{section}': {error}") from error


@dataclass(frozen=True, slots=True)
class SectionHeader:
    """What HELLO says of one section: who it is and which versions its sender can write and read."""

    name: str
    kind: str
    version: int
    reads_from: int
    optional: bool

    @classmethod
    def of(cls, name: str, state_type: type[VmState]) -> SectionHeader:
        """The header of a section `name` that holds `state_type`."""
        return cls(
            name, state_type.NAME, state_type.VERSION, state_type.READS_FROM, state_type.OPTIONAL
        )


@dataclass(frozen=True, slots=True)
class Section:
    """One saved device: payload is the CBOR map of the state's fields."""

    name: str
    kind: str
    version: int
    optional: bool
    payload: bytes
    digest: bytes

    @classmethod
    def save(cls, name: str, state: VmState) -> Section:
        """Encode `state` as the section `name`."""
        payload = cbor2.dumps(state.to_map())
        return cls(
            name, state.NAME, state.VERSION, state.OPTIONAL, payload, section_digest(payload)
        )

    def load(self, state_type: type[S]) -> S:
        """Decode and check; raises a StateError that names the section."""
        check_version(self.name, self.kind, self.version, state_type)
        if section_digest(self.payload) != self.digest:
            raise SectionDigestError(
                f"section '{self.name}': digest of {len(self.payload)} bytes does not match; "
                "the state was damaged on its way"
            )
        try:
            fields = cbor2.loads(self.payload)
        except Exception as error:  # cbor2 raises many kinds on damaged input
            raise StateError(f"section '{self.name}': payload is not CBOR: {error}") from error
        if not isinstance(fields, dict):
            raise FieldTypeError(f"section '{self.name}': expected a map, got {type(fields)}")
        return state_type.from_map(fields, version=self.version, section=self.name)


def section_digest(payload: bytes) -> bytes:
    """BLAKE2b of a section's payload."""
    return hashlib.blake2b(payload, digest_size=DIGEST_SIZE_BYTES).digest()


def check_version(name: str, kind: str, version: int, state_type: type[VmState]) -> None:
    """Raise SectionVersionError unless `state_type` reads this kind and version."""
    if kind != state_type.NAME:
        raise SectionVersionError(
            f"section '{name}' holds '{kind}', this build expects '{state_type.NAME}' there"
        )
    if version > state_type.VERSION:
        raise SectionVersionError(
            f"{name}: incoming version_id {version} is too new for local version_id "
            f"{state_type.VERSION}"
        )
    if version < state_type.READS_FROM:
        raise SectionVersionError(
            f"{name}: incoming version_id {version} is too old for local minimum version_id "
            f"{state_type.READS_FROM}"
        )


@functools.cache
def _plan(cls: type[VmState]) -> dict[str, tuple[Any, int]]:
    """Field name -> (resolved annotation, first version that has it)."""
    hints = typing.get_type_hints(cls)
    return {
        field.name: (hints[field.name], field.metadata.get(_SINCE, 0))
        for field in dataclasses.fields(cls)
    }


_PLAIN_LEAVES = (int, bytes, str, bool, float, types.NoneType)


def _plain(value: Any) -> Any:
    """Turn a field value into what CBOR carries: leaves, lists and maps."""
    if isinstance(value, _PLAIN_LEAVES) or type(value) is dict:
        return value
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, VmState):
        return value.to_map()
    raise StateError(f"a saved state cannot hold a {type(value).__name__}")


def _typed(annotation: Any, value: Any, where: str) -> Any:
    """Check `value` against a field's annotation and return it in the declared shape."""
    origin = get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        for option in get_args(annotation):
            if option is types.NoneType:
                if value is None:
                    return None
                continue
            return _typed(option, value, where)
    if origin is tuple:
        return _typed_tuple(get_args(annotation), value, where)
    if origin is not None and issubclass(origin, Mapping):
        key_type, value_type = get_args(annotation)
        _expect(where, value, dict)
        return {
            _typed(key_type, key, where): _typed(value_type, item, f"{where}[{key!r}]")
            for key, item in value.items()
        }
    if isinstance(annotation, type) and issubclass(annotation, VmState):
        _expect(where, value, dict)
        return annotation.from_map(value, version=annotation.VERSION, section=where)
    _expect(where, value, annotation)
    return value


def _typed_tuple(options: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    _expect(where, value, list, tuple)
    if len(options) == 2 and options[1] is Ellipsis:  # noqa: PLR2004 - tuple[X, ...]
        return tuple(_typed(options[0], item, f"{where}[]") for item in value)
    if len(options) != len(value):
        raise FieldTypeError(f"'{where}': expected {len(options)} items, got {len(value)}")
    return tuple(_typed(option, item, where) for option, item in zip(options, value, strict=True))


def _expect(where: str, value: Any, *expected: type) -> None:
    """Exact type check: CBOR has no subclasses, and a bool must not pass for an int."""
    if type(value) not in expected:
        names = " or ".join(kind.__name__ for kind in expected)
        raise FieldTypeError(f"'{where}': expected {names}, got {type(value).__name__}")
