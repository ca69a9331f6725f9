"""What a QMP command is, and the schema that `query-qmp-schema` derives from the registry.

A command is a function with a docstring, an example, and a frozen dataclass (or an explicit QAPI
object) for its arguments. Nothing registers itself: the server is given a tuple of commands.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any, get_type_hints

from vmm.qapi import (
    EMPTY,
    Alternate,
    Array,
    Builtin,
    Enum,
    Integer,
    Object,
    QapiType,
    build,
    check,
    of_annotation,
    of_dataclass,
    prepare,
)

Handler = Callable[..., Any]


@dataclass(frozen=True)
class Command:
    """One command. `handler(control)` or `handler(control, arguments)`, plain or async."""

    name: str
    handler: Handler
    explicit_arguments: Object | None = None
    explicit_returns: QapiType | None = None
    allow_oob: bool = False

    @property
    def doc(self) -> str:
        """The docstring."""
        return self.handler.__doc__ or ""

    @functools.cached_property
    def _argument_class(self) -> type | None:
        hint = get_type_hints(self.handler).get("args")
        return hint if isinstance(hint, type) and is_dataclass(hint) else None

    @functools.cached_property
    def arguments(self) -> Object:
        """The type of `arguments`."""
        if self.explicit_arguments is not None:
            return self.explicit_arguments
        return of_dataclass(self._argument_class) if self._argument_class else EMPTY

    @functools.cached_property
    def returns(self) -> QapiType:
        """The type of `return`; an empty object when the handler returns nothing."""
        if self.explicit_returns is not None:
            return self.explicit_returns
        hint = get_type_hints(self.handler, include_extras=True).get("return")
        return EMPTY if hint is None or hint is type(None) else of_annotation(hint)

    def prepare(self) -> None:
        """Read the annotations now that `bind` needs; it takes a millisecond the first time."""
        if self.arguments is not EMPTY and self._argument_class is not None:
            prepare(self._argument_class)

    def bind(self, arguments: Mapping[str, Any]) -> tuple[Any, ...]:
        """The handler's further arguments. Raises QapiError with QEMU's text."""
        clean = check(self.arguments, dict(arguments))
        if self._argument_class is not None and self.explicit_arguments is None:
            return (build(self._argument_class, clean),)
        return (clean,) if self.explicit_arguments is not None else ()


def command(
    name: str,
    *,
    arguments: Object | None = None,
    returns: QapiType | None = None,
    allow_oob: bool = False,
) -> Callable[[Handler], Command]:
    """Make a Command of a function; its parameter `args` and its return type give the schema."""

    def wrap(handler: Handler) -> Command:
        return Command(name, handler, arguments, returns, allow_oob)

    return wrap


@dataclass(frozen=True, slots=True)
class Event:
    """One event and the type of its data."""

    name: str
    data: Object = EMPTY


class Registry:
    """The commands and events of one server."""

    def __init__(self, commands: Iterable[Command], events: Iterable[Event]) -> None:
        self.commands: dict[str, Command] = {}
        for item in commands:
            if item.name in self.commands:
                raise ValueError(f"command {item.name} is registered twice")
            self.commands[item.name] = item
        self.events = tuple(events)

    def prepare(self) -> None:
        """Work out the arguments of every command now, and not while a guest waits for one."""
        for item in self.commands.values():
            item.prepare()

    @functools.cached_property
    def schema(self) -> list[dict[str, Any]]:
        """The value of query-qmp-schema: commands, events and every type they use."""
        writer = _SchemaWriter()
        for item in self.commands.values():
            entry: dict[str, Any] = {
                "name": item.name,
                "meta-type": "command",
                "arg-type": writer.name_of(item.arguments),
                "ret-type": writer.name_of(item.returns),
            }
            if item.allow_oob:
                entry["allow-oob"] = True
            writer.entries.append(entry)
        for event in self.events:
            writer.entries.append(
                {
                    "name": event.name,
                    "meta-type": "event",
                    "arg-type": writer.name_of(event.data),
                }
            )
        return writer.entries


class _SchemaWriter:
    """Collects SchemaInfo entries. As in QEMU, types other than builtins have meaningless names."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self._names: dict[QapiType, str] = {}
        self._builtins: set[str] = set()
        self._numbers = 0

    def name_of(self, kind: QapiType) -> str:
        """The schema name of a type, describing it first if it is new."""
        if isinstance(kind, Builtin | Integer):
            return self._builtin(kind)
        if isinstance(kind, Array):
            return self._array(kind)
        if kind not in self._names:
            self._names[kind] = str(self._numbers)
            self._numbers += 1
            self.entries.append(self._describe(kind, self._names[kind]))
        return self._names[kind]

    def _builtin(self, kind: Builtin | Integer) -> str:
        # QEMU shows every integer type as plain int.
        name = kind.name if isinstance(kind, Builtin) else "int"
        json_type = kind.json_type if isinstance(kind, Builtin) else "int"
        if name not in self._builtins:
            self._builtins.add(name)
            self.entries.append({"name": name, "meta-type": "builtin", "json-type": json_type})
        return name

    def _array(self, kind: Array) -> str:
        element = self.name_of(kind.element)
        name = f"[{element}]"
        if name not in self._builtins:
            self._builtins.add(name)
            self.entries.append({"name": name, "meta-type": "array", "element-type": element})
        return name

    def _describe(self, kind: Enum | Object | Alternate, name: str) -> dict[str, Any]:
        match kind:
            case Enum(values=values):
                return {
                    "name": name,
                    "meta-type": "enum",
                    "members": [{"name": value} for value in values],
                    "values": list(values),
                }
            case Alternate(types=types):
                return {
                    "name": name,
                    "meta-type": "alternate",
                    "members": [{"type": self.name_of(choice)} for choice in types],
                }
            case Object():
                return self._object(kind, name)

    def _object(self, kind: Object, name: str) -> dict[str, Any]:
        members: list[dict[str, Any]] = []
        for member in kind.members:
            entry: dict[str, Any] = {"name": member.name, "type": self.name_of(member.type)}
            if member.optional:
                entry["default"] = None
            members.append(entry)
        described: dict[str, Any] = {"name": name, "meta-type": "object", "members": members}
        if kind.tag is not None:
            described["tag"] = kind.tag
            described["variants"] = [
                {"case": variant.case, "type": self.name_of(variant.type)}
                for variant in kind.variants
            ]
        return described
