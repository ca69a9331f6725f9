"""Golden recordings load in the present code, and no released section changes unseen."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cpr.codec import FrameDecoder
from cpr.plaincbor import loads
from cpr.vmstate import NESTING_MAX, VmState
from tests.golden import store
from tests.golden.checker import changes_without_a_step
from tests.golden.examples import STATES
from tests.golden.schema import schema, state_types
from tests.unit.cpr.examples import MESSAGES
from tools.lab.inspect_model import read_document
from vmm.version import VERSION

KINDS = {cls.NAME: cls for cls in state_types() if getattr(cls, "NAME", None)}
VERSIONS = store.recorded_versions()
AGAIN = "run `python -m tests.golden.write`"


def test_present_version_is_recorded() -> None:
    assert VERSION in VERSIONS, AGAIN


def test_every_kind_of_section_and_every_message_has_an_example() -> None:
    assert STATES.keys() == KINDS.keys()
    assert {message.KIND for message in MESSAGES.values()} == MESSAGES.keys()


def test_recording_of_the_present_version_is_what_the_code_writes() -> None:
    """Of a released version the files stay, and the code must still write them."""
    now = store.files_now()
    place = store.PLACE / VERSION
    recorded = {
        str(path.relative_to(place)): path.read_bytes()
        for path in place.rglob("*")
        if path.is_file()
    }
    assert recorded.keys() == now.keys(), AGAIN
    different = [name for name in now if now[name] != recorded[name]]
    assert not different, f"{different}: {AGAIN} (an unreleased version), or give it a new version"


def golden_sections() -> Iterator[Any]:
    for version in VERSIONS:
        for path in sorted((store.PLACE / version / store.SECTIONS).iterdir()):
            yield pytest.param(version, path.stem, path, id=f"{version}/{path.stem}")


@pytest.mark.parametrize(("version", "name", "path"), list(golden_sections()))
def test_golden_section_loads(version: str, name: str, path: Any) -> None:
    fields = loads(path.read_bytes(), nesting_max=NESTING_MAX, int_keys=True)
    wrote = store.recorded_schema(version)["sections"][name]["version"]

    state: VmState = KINDS[name].from_map(fields, version=wrote, section=name)

    if version == VERSION:
        assert state == STATES[name]
    assert read_document(path.read_bytes(), path.name).problem is None  # cpr-inspect shows it


def golden_messages() -> Iterator[Any]:
    for version in VERSIONS:
        for path in sorted((store.PLACE / version / store.MESSAGES_DIR).iterdir()):
            yield pytest.param(path, id=f"{version}/{path.stem}")


@pytest.mark.parametrize("path", list(golden_messages()))
def test_golden_message_is_understood(path: Any) -> None:
    decoder = FrameDecoder()
    decoder.push(path.read_bytes())
    frame = decoder.next_frame()
    assert frame is not None
    assert frame.message == next(m for kind, m in MESSAGES.items() if kind.name == path.stem)


# ---- the checker ---------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_no_released_section_or_message_changed_without_a_version_step(version: str) -> None:
    problems = changes_without_a_step(store.recorded_schema(version), schema(), version)
    assert not problems, "\n".join(problems)


def test_every_released_version_is_recorded() -> None:
    assert store.released_versions() <= set(VERSIONS)


def test_no_file_of_a_released_version_was_edited() -> None:
    assert store.edited_versions() == []


def test_edit_of_a_released_version_is_noticed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(store.PLACE / VERSION, tmp_path / VERSION)
    monkeypatch.setattr(store, "PLACE", tmp_path)
    monkeypatch.setattr(store, "released_versions", lambda: frozenset({VERSION}))
    assert store.edited_versions() == [VERSION]  # nobody sealed it
    store.seal(VERSION)
    assert store.edited_versions() == []
    with pytest.raises(ValueError, match="sealed already"):
        store.seal(VERSION)
    path = next((tmp_path / VERSION / store.SECTIONS).iterdir())
    path.write_bytes(path.read_bytes() + b"\0")
    assert store.edited_versions() == [VERSION]


def test_released_version_is_never_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "released_versions", lambda: frozenset({VERSION}))
    with pytest.raises(ValueError, match="never rewritten"):
        store.write()


Change = Callable[[dict[str, Any]], None]


def _edit(path: str, value: Any) -> Change:
    def change(now: dict[str, Any]) -> None:
        *parents, last = path.split(" ")
        for parent in parents:
            now = now[parent]
        if value is None:
            del now[last]
        else:
            now[last] = value

    return change


_NEW = {"type": "int", "since": 2, "default": True}


def _step(**fields: Any) -> Change:
    def change(now: dict[str, Any]) -> None:
        section = now["sections"]["serial-16550"]
        section["version"] = 2
        section["fields"] |= fields

    return change


def _both(*changes: Change) -> Change:
    def change(now: dict[str, Any]) -> None:
        for each in changes:
            each(now)

    return change


def _step_all(path: str, value: Any) -> Change:
    """Every section steps, and still reads the old version."""

    def change(now: dict[str, Any]) -> None:
        for section in now["sections"].values():
            section["version"] += 1
        _edit(path, value)(now)

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_edit("sections serial-16550 fields scr type", "str"), "field(s) scr changed"),
        (_edit("sections serial-16550 fields scr", None), "field(s) scr changed"),
        (_edit("sections serial-16550 fields extra", _NEW), "field(s) extra changed"),
        (_edit("sections serial-16550 meaning", "x"), "what its text says"),
        (_edit("sections serial-16550 optional", True), "optional changed"),
        (_edit("sections serial-16550", None), "'serial-16550' is gone"),
        (_edit("sections serial-16550 version", 0), "version 1 -> 0"),
        (_edit("records QueueState fields size type", "str"), "field(s) size changed"),
        (_edit("records QueueState", None), "is gone"),
        (_both(_step(extra=_NEW), _edit("records QueueState fields size type", "str")), "size"),
        (_step_all("records QueueState fields size type", "str"), "'size' has another type"),
        (_step_all("records QueueState fields size", None), "'size' of version 1 is gone"),
        (_step_all("records QueueState fields extra", _NEW | {"since": 1}), "with since()"),
        (_edit("messages HELLO fields product", None), "message HELLO: field(s) product"),
        (_edit("messages COMMIT fields extra", _NEW), "message COMMIT: field(s) extra"),
        (_edit("messages STATE", None), "message STATE is gone"),
        (_edit("messages ABORT may_grow", False), "may_grow changed"),
        (_edit("messages DANCE", {"number": 40}), "DANCE is new, and the protocol is not"),
        (_edit("parts Section fields digest type", "str"), "part of messages Section: field(s)"),
        (_edit("parts FdOffer fields kind", None), "part of messages FdOffer: field(s) kind"),
        (_edit("protocol max", 0), "protocol 1 -> 0"),
        (_edit("messages HELLO fields nonce type", "str"), "message HELLO: field(s) nonce"),
        (_edit("messages COMMIT number", 6), "number changed"),
        (_step(extra=_NEW | {"since": 0}), "'extra' is not declared with since()"),
        (_step(extra=_NEW | {"default": False}), "'extra' is not declared with since()"),
        (_step(scr=_NEW | {"type": "str", "since": 0}), "'scr' has another type"),
    ],
)
def test_checker_finds_a_change_without_a_step(change: Change, problem: str) -> None:
    now = schema()
    changed = copy.deepcopy(now)
    change(changed)
    found = "\n".join(changes_without_a_step(now, changed, VERSION))
    assert problem in found


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(_step(extra=_NEW), id="a section steps"),
        pytest.param(_step_all("records QueueState fields extra", _NEW), id="so does a record"),
        pytest.param(_edit("messages HELLO fields extra", _NEW), id="HELLO grows"),
        pytest.param(_edit("parts FdOffer fields extra", _NEW), id="so does a part of it"),
        pytest.param(
            _both(_edit("protocol max", 2), _edit("messages DANCE", {"number": 40})),
            id="a message of a new protocol",
        ),
    ],
)
def test_checker_lets_a_proper_step_pass(change: Change) -> None:
    now = schema()
    changed = copy.deepcopy(now)
    change(changed)
    assert changes_without_a_step(now, changed, VERSION) == []
