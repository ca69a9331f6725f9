"""A document as a rich tree for people, and as plain JSON values for programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.tree import Tree

from tools.lab.inspect_model import Document, Item

HEX_ROW_BYTES = 16
# Enough to recognise a blob; --full shows the rest.
HEX_ROWS_SHOWN = 4
# Registers and addresses read better in hexadecimal, counts do not.
DECIMAL_BELOW = 10_000


def document_tree(document: Document, *, full: bool = False) -> Tree:
    """Build the tree that is printed."""
    root = Tree(f"[bold]{escape(document.name)}[/bold]: {escape(document.kind)}")
    for item in document.items:
        _add_item(root, item, full=full)
    return root


def to_plain(document: Document) -> dict[str, Any]:
    """Return JSON values; bytes become {"hex": …, "size_bytes": n}."""
    return {
        "name": document.name,
        "kind": document.kind,
        "problem": document.problem,
        "items": [_plain_item(item) for item in document.items],
    }


def _plain_item(item: Item) -> dict[str, Any]:
    plain: dict[str, Any] = {"title": item.title, "fields": _json_value(item.fields)}
    if item.items:
        plain["items"] = [_plain_item(child) for child in item.items]
    return plain


def _json_value(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"hex": value.hex(), "size_bytes": len(value)}
    if isinstance(value, Mapping):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return repr(value)  # a CBOR value that JSON has no word for


def _add_item(parent: Tree, item: Item, *, full: bool) -> None:
    branch = parent.add(f"[bold cyan]{escape(item.title)}[/bold cyan]")
    for name, value in item.fields.items():
        _add_value(branch, str(name), value, full=full)
    for child in item.items:
        _add_item(branch, child, full=full)


def _add_value(parent: Tree, name: str, value: Any, *, full: bool) -> None:
    label = f"[dim]{escape(name)}[/dim]"
    if isinstance(value, bytes):
        branch = parent.add(f"{label} {len(value)} bytes")
        for line in hex_dump(value, None if full else HEX_ROWS_SHOWN):
            branch.add(escape(line))
    elif isinstance(value, Mapping):
        if value and all(_is_leaf(item) for item in value.values()):
            text = ", ".join(f"{key}={_leaf(item)}" for key, item in value.items())
            parent.add(f"{label} {escape(text)}")
            return
        branch = parent.add(f"{label} {len(value)} entries")
        for key, item in value.items():
            _add_value(branch, str(key), item, full=full)
    elif isinstance(value, list | tuple):
        if all(_is_leaf(item) for item in value):
            parent.add(f"{label} {escape(', '.join(_leaf(item) for item in value) or '(none)')}")
            return
        branch = parent.add(f"{label} {len(value)} items")
        for index, item in enumerate(value):
            _add_value(branch, f"[{index}]", item, full=full)
    else:
        parent.add(f"{label} {escape(_leaf(value))}")


def _is_leaf(value: Any) -> bool:
    return not isinstance(value, bytes | Mapping | list | tuple)


def _leaf(value: Any) -> str:
    if type(value) is int and abs(value) >= DECIMAL_BELOW:
        return f"{value:#x}"
    return str(value)


def hex_dump(data: bytes, rows_max: int | None) -> list[str]:
    """Dump bytes in rows; equal rows in a run and rows beyond `rows_max` are only counted."""
    lines: list[str] = []
    previous: bytes | None = None
    skipped = 0
    for offset in range(0, len(data), HEX_ROW_BYTES):
        row = data[offset : offset + HEX_ROW_BYTES]
        if row == previous:
            skipped += 1
            continue
        if skipped:
            lines.append(f"  * {skipped} equal row(s)")
            skipped = 0
        if rows_max is not None and len(lines) >= rows_max:
            return [*lines, f"  ... {len(data) - offset} more bytes"]
        lines.append(f"{offset:06x}  {row.hex(' ')}")
        previous = row
    return [*lines, f"  * {skipped} equal row(s)"] if skipped else lines
