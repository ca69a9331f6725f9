"""What a version says of its sections and messages, as plain values that can be compared.

A field is its type, the first version that has it, and whether an older sender may leave it out.
What a field *means* is in the docstring of its class and in the comments beside it; their text is
digested, so that a meaning cannot change unseen either.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import inspect
import io
import pkgutil
import tokenize
import typing
from collections.abc import Iterator
from typing import Any

import vmm
from cpr.messages import (
    BEFORE_AGREEMENT,
    MESSAGE_TYPES,
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    FdOffer,
)
from cpr.vmstate import Section, SectionHeader, VmState

_DIGEST_CHARS = 16


def schema() -> dict[str, Any]:
    """Sections by NAME, records in them by class, messages by kind, and their parts."""
    sections, records = {}, {}
    users = sections_of_records()
    for cls in state_types():
        described = _described(cls)
        if name := getattr(cls, "NAME", None):
            versions = {"version": cls.VERSION, "reads_from": cls.READS_FROM}
            sections[name] = versions | {"optional": cls.OPTIONAL} | described
        else:
            records[cls.__name__] = {"sections": users[cls.__name__]} | described
    messages = {
        kind.name: {"number": int(kind), "may_grow": kind in BEFORE_AGREEMENT} | _described(cls)
        for kind, cls in MESSAGE_TYPES.items()
    }
    parts = {
        cls.__name__: {"may_grow": may_grow} | _described(cls)
        for cls, may_grow in ((FdOffer, True), (SectionHeader, True), (Section, False))
    }
    return {
        "sections": sections,
        "records": records,
        "messages": messages,
        "parts": parts,
        "protocol": {"min": PROTOCOL_MIN, "max": PROTOCOL_MAX},
    }


def sections_of_records() -> dict[str, list[str]]:
    """Record class -> NAMEs of the sections that hold it, directly or in another record."""
    kinds = list(state_types())
    held = {cls: _held_by(cls) for cls in kinds}
    users: dict[str, set[str]] = {cls.__name__: set() for cls in kinds}
    for cls in kinds:
        if not (name := getattr(cls, "NAME", None)):
            continue
        reached, new = set[type[VmState]](), {cls}
        while new:
            reached |= new
            new = {other for each in new for other in held[each]} - reached
        for record in reached:
            users[record.__name__].add(name)
    return {record: sorted(names) for record, names in users.items()}


def _held_by(cls: type[VmState]) -> set[type[VmState]]:
    """The state classes in the annotations of a class."""
    found: set[type[VmState]] = set()
    waiting: list[Any] = list(typing.get_type_hints(cls).values())
    while waiting:
        hint = waiting.pop()
        waiting += typing.get_args(hint)
        if isinstance(hint, type) and issubclass(hint, VmState):
            found.add(hint)
    return found


def state_types() -> Iterator[type[VmState]]:
    """Every state class of the product, sections and the records in them."""
    for module in pkgutil.walk_packages(vmm.__path__, "vmm."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    known = {
        f"{cls.__module__}.{cls.__qualname__}": cls
        for cls in VmState.__subclasses__()
        if cls.__module__.startswith("vmm.")
    }
    yield from (known[name] for name in sorted(known))


def _described(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    fields = {
        field.name: {
            "type": _type_text(hints[field.name]),
            "since": field.metadata.get("cpr.since", 0),
            "default": field.default is not dataclasses.MISSING,
        }
        for field in dataclasses.fields(cls)
    }
    return {"fields": fields, "meaning": meaning(cls)}


def _type_text(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def meaning(cls: Any) -> str:
    """Digest of what is written about the fields, without its layout."""
    source = inspect.getsource(cls)
    comments = [
        token.string
        for token in tokenize.generate_tokens(io.StringIO(inspect.cleandoc(source)).readline)
        if token.type == tokenize.COMMENT
    ]
    words = " ".join([inspect.getdoc(cls) or "", *comments]).split()
    return hashlib.sha256(" ".join(words).encode()).hexdigest()[:_DIGEST_CHARS]
