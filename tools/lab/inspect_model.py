"""What is in a file: recognise it by content and take it apart; pure.

The result is a tree of `Item`s with plain values, which `inspect_view` shows. Sections of a state
are opened: their payload is decoded so that fields appear by name, and their digest is checked.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cbor2

from cpr.codec import MAGIC, FrameDecoder
from cpr.errors import RemoteProtocolError, StateError
from cpr.messages import Message
from cpr.vmstate import Section, section_digest
from tools.lab.timeline import Mark, parse_marks
from vmm.accel.x86_section import CpuSection

NS_PER_MS = 1_000_000
_PACKED = ("general", "segments", "gdt", "idt", "control", "debug", "msrs")


@dataclass(frozen=True, slots=True)
class Item:
    """One thing in a file: a title, and its fields in order."""

    title: str
    fields: Mapping[str, Any]
    items: tuple[Item, ...] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """A whole file. `problem` says what could not be understood; None for a clean file."""

    name: str
    kind: str
    items: tuple[Item, ...]
    problem: str | None = None


def read_document(data: bytes, name: str) -> Document:
    """Take a file apart; never raises for its content."""
    if not data:
        return Document(name, "empty file", (), "the file has no bytes")
    if data.startswith(MAGIC):
        return _read_frames(data, name)
    if data.lstrip()[:1] in (b"[", b"{"):
        return _read_timeline(data, name)
    return _read_cbor(data, name)


def _read_frames(data: bytes, name: str) -> Document:
    decoder = FrameDecoder()
    items: list[Item] = []
    problem: str | None = None
    try:
        decoder.push(data)
        while (frame := decoder.next_frame()) is not None:
            items.append(_message_item(frame.message, frame.fd_count))
    except RemoteProtocolError as error:
        problem = f"frame {len(items) + 1}: {error}"
    if problem is None and decoder.pending_bytes:
        problem = f"frame {len(items) + 1} is cut off after {decoder.pending_bytes} bytes"
    return Document(name, f"cpr stream, {len(items)} frame(s)", tuple(items), problem)


def _message_item(message: Message, fd_count: int) -> Item:
    values = {field.name: getattr(message, field.name) for field in dataclasses.fields(message)}
    sections = values.pop("sections", ())
    items = tuple(
        _section_item(section)
        if isinstance(section, Section)
        else Item(f"section {section.name}", dataclasses.asdict(section))
        for section in sections
    )
    plain = {name: _plain(value) for name, value in values.items()}
    if fd_count:
        plain["fds with this frame"] = fd_count
    return Item(message.KIND.name, plain, items)


def _section_item(section: Section) -> Item:
    intact = section_digest(section.payload) == section.digest
    about = {
        "kind": section.kind,
        "version": section.version,
        "optional": section.optional,
        "payload": f"{len(section.payload)} bytes, digest {'ok' if intact else 'DOES NOT MATCH'}",
    }
    try:
        fields = cbor2.loads(section.payload)
    except Exception as error:  # cbor2 raises many kinds on damaged input
        return Item(f"section {section.name}", about | {"not CBOR": str(error)})
    state = Item("state", fields if isinstance(fields, dict) else {"value": fields})
    return Item(f"section {section.name}", about, (state, *_registers(section)))


def _registers(section: Section) -> tuple[Item, ...]:
    """A CPU's packed registers, by name."""
    if section.kind != CpuSection.NAME:
        return ()
    try:
        registers = dataclasses.asdict(section.load(CpuSection).state())
    except StateError as error:
        return (Item("registers", {"cannot be read": str(error)}),)
    return (Item("registers", {name: registers[name] for name in _PACKED}),)


def _read_cbor(data: bytes, name: str) -> Document:
    try:
        value = cbor2.loads(data)
    except Exception as error:  # cbor2 raises many kinds on damaged input
        return Document(
            name, "unknown", (), f"neither cpr frames, nor CBOR ({error}), nor a timeline"
        )
    section_fields = {field.name for field in dataclasses.fields(Section)}
    if isinstance(value, dict) and set(value) == section_fields:
        section = Section(**value)
        return Document(name, "one section", (_section_item(section),))
    if isinstance(value, dict):
        return Document(name, f"one state, {len(value)} field(s)", (Item("state", value),))
    return Document(name, "a CBOR value", (Item("value", {"value": value}),))


def _read_timeline(data: bytes, name: str) -> Document:
    try:
        marks = parse_marks(json.loads(data))
    except ValueError as error:
        return Document(name, "JSON", (), f"not the reply of x-query-cpr-timeline: {error}")
    return Document(name, f"timeline, {len(marks)} mark(s)", (_timeline_item(marks),))


def _timeline_item(marks: Sequence[Mark]) -> Item:
    first = marks[0].t_ns if marks else 0
    rows = {
        f"{index:3}  {(mark.t_ns - first) / NS_PER_MS:10.3f} ms": mark.what
        for index, mark in enumerate(marks)
    }
    return Item("since the first mark", rows)


def _plain(value: Any) -> Any:
    """Turn dataclasses and tuples inside a message into maps and lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
