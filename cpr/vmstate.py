"""Saved device state: frozen dataclasses, and sections made of them.

A state class declares NAME (its kind on the wire), VERSION (what we write) and READS_FROM (the
oldest we accept). Its fields travel as one CBOR map keyed by field name. A field added in version v
is declared with `since(v, default=...)`: a sender older than v may leave it out, a sender of v or
newer must not. Sections match by instance name; each payload is length-prefixed and digested, so an
optional section that we do not know is skipped and a mandatory one is refused by name.

A state may hold other states. They have no version of their own: they belong to their section, and
`since(v)` in them means the section's version v.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

from cpr.errors import (
    FieldTypeError,
    MissingFieldError,
    SectionDigestError,
    SectionVersionError,
    StateError,
)
from cpr.plaincbor import dumps, loads
from cpr.typed import Reader, Readers, Writer, writer_of

DIGEST_SIZE_BYTES = 16
# A section is a map of fields, a field a map of records, a record a list; twice that.
NESTING_MAX = 8
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

    @classmethod
    def prepare(cls) -> None:
        """Make now what reads and writes such states, and not when the first one comes."""
        this: Any = cls
        _writer(this)
        _reader(this, cls.VERSION)

    def to_map(self) -> dict[str, Any]:
        """Field name to plain CBOR value."""
        cls: Any = type(self)
        return {name: write(getattr(self, name)) for name, write in _writer(cls)}

    @classmethod
    def from_map(cls, fields: Mapping[str, Any], *, version: int, section: str) -> Self:
        """Build the state that a sender of `version` described; errors name `section`.

        Raises MissingFieldError, FieldTypeError.
        """
        this: Any = cls
        readers = _reader(this, version)
        values = {}
        for name, value in fields.items():
            reader = readers.get(name)
            if reader is None:
                raise FieldTypeError(
                    f"section '{section}': field {name!r} is not part of {_kind_of(cls)} "
                    f"version {version}"
                )
            values[name] = reader(value, f"{section}.{name}")
        if len(values) != len(readers):
            _require(this, fields, version, section)
        try:
            return cls(**values)
        except ValueError as error:
            raise FieldTypeError(f"section '{section}': {error}") from error


@dataclass(frozen=True, slots=True)
class SectionHeader:
    """What HELLO says of one section: its name, and what its sender can write and read."""

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
        payload = dumps(state.to_map())
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
            fields = loads(self.payload, nesting_max=NESTING_MAX, int_keys=True)
        except ValueError as error:
            raise StateError(f"section '{self.name}': payload is {error}") from error
        if not isinstance(fields, dict):
            raise FieldTypeError(
                f"section '{self.name}': expected a map, got {type(fields).__name__}"
            )
        return state_type.from_map(fields, version=self.version, section=self.name)


def _kind_of(cls: Any) -> str:
    """A section has a NAME, a record inside one only its class."""
    return getattr(cls, "NAME", None) or str(cls.__name__)


def _require(cls: Any, fields: Mapping[str, Any], version: int, section: str) -> None:
    """Raise MissingFieldError if a field is absent that a sender of `version` must send."""
    for name, first_version in _plan(cls).items():
        if name not in fields and version >= first_version:
            raise MissingFieldError(
                f"section '{section}': field '{name}' is missing; {_kind_of(cls)} version "
                f"{version} must have it"
            )


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
def _plan(cls: Any) -> Mapping[str, int]:
    """Field name -> first version that has it."""
    return {field.name: field.metadata.get(_SINCE, 0) for field in dataclasses.fields(cls)}


@functools.cache
def _reader(cls: Any, version: int) -> Mapping[str, Reader]:
    """Field name -> reader, for what a sender of `version` wrote."""
    hints = typing.get_type_hints(cls)
    types = Readers(FieldTypeError, FieldTypeError, lambda inner: _nested_reader(inner, version))
    return {name: types.of(hints[name]) for name in _plan(cls)}


def _nested_reader(cls: Any, version: int) -> Reader:
    def read(value: Any, where: str) -> Any:
        if type(value) is not dict:
            raise FieldTypeError(f"{where}: expected map, got {type(value).__name__}")
        return cls.from_map(value, version=version, section=where)

    return read


@functools.cache
def _writer(cls: Any) -> tuple[tuple[str, Writer], ...]:
    """Field name and writer, in the order of declaration."""
    hints = typing.get_type_hints(cls)
    return tuple(
        (name, writer_of(hints[name], lambda _inner: VmState.to_map)) for name in _plan(cls)
    )
