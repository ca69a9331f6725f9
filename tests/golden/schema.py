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
from cpr.messages import MESSAGE_TYPES
from cpr.vmstate import VmState

_DIGEST_CHARS = 16


def schema() -> dict[str, Any]:
    """Sections by NAME, the records in them by class, and messages by kind."""
    sections, records = {}, {}
    for cls in state_types():
        described = _described(cls)
        if name := getattr(cls, "NAME", None):
            versions = {"version": cls.VERSION, "reads_from": cls.READS_FROM}
            sections[name] = versions | {"optional": cls.OPTIONAL} | described
        else:
            records[cls.__name__] = described
    messages = {
        kind.name: {"number": int(kind)} | _described(cls) for kind, cls in MESSAGE_TYPES.items()
    }
    return {"sections": sections, "records": records, "messages": messages}


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
