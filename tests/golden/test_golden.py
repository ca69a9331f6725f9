"""Golden recordings load in the present code, and no released section changes unseen."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cpr.codec import FrameDecoder
from cpr.plaincbor import loads
from cpr.vmstate import NESTING_MAX, VmState
from tests.golden import store
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


def changes_without_a_step(then: dict[str, Any], now: dict[str, Any], version: str) -> list[str]:
    """What a released schema forbids to be otherwise now."""
    problems = []
    for name, old in then["sections"].items():
        new = now["sections"].get(name)
        if new is None:
            problems.append(f"section '{name}' is gone; READS_FROM promises that it can be read")
        elif new["version"] == old["version"]:
            problems += _different(f"section '{name}'", old, new, version, name)
        elif new["version"] < old["version"]:
            problems.append(f"section '{name}': version {old['version']} -> {new['version']}")
        else:
            problems += _not_readable(name, old, new)
    stepped = any(
        now["sections"].get(name, old)["version"] != old["version"]
        for name, old in then["sections"].items()
    )
    for name, old in then["records"].items():
        if not stepped:  # a record has the version of its sections
            problems += _different(f"record {name}", old, now["records"].get(name), version, name)
    for name, old in then["messages"].items():
        problems += _different(f"message {name}", old, now["messages"].get(name), version, name)
    numbers = {each["number"]: name for name, each in now["messages"].items()}
    for name, old in then["messages"].items():
        if numbers.get(old["number"], name) != name:
            problems.append(f"number {old['number']} of {name} means {numbers[old['number']]} now")
    return problems


def _different(what: str, old: Any, new: Any, version: str, name: str) -> list[str]:
    if new is None:
        return [f"{what} is gone"]
    problems = [
        f"{what}: {key} changed without a version step"
        for key in old
        if key not in ("meaning", "fields") and old[key] != new[key]
    ]
    if old["fields"] != new["fields"]:
        names = [f for f in old["fields"] | new["fields"]
                 if old["fields"].get(f) != new["fields"].get(f)]  # fmt: skip
        problems.append(f"{what}: field(s) {', '.join(names)} changed without a version step")
    if old["meaning"] != new["meaning"] and (version, name) not in store.REWORDED:
        problems.append(
            f"{what}: what its text says of the fields changed without a version step (if only the "
            "words changed, say so in tests/golden/store.py: REWORDED)"
        )
    return problems


def _not_readable(name: str, old: Any, new: Any) -> list[str]:
    if new["reads_from"] > old["version"]:
        return []  # given up on purpose: HELLO refuses it by name
    problems = [
        f"section '{name}': field '{field}' has another type than in version {old['version']}"
        for field, about in old["fields"].items()
        if field in new["fields"] and new["fields"][field]["type"] != about["type"]
    ]
    problems += [
        f"section '{name}': field '{field}' of version {old['version']} is gone"
        for field in old["fields"].keys() - new["fields"].keys()
    ]
    problems += [
        f"section '{name}': new field '{field}' is not declared with since()"
        for field in new["fields"].keys() - old["fields"].keys()
        if new["fields"][field]["since"] <= old["version"] or not new["fields"][field]["default"]
    ]
    return problems


@pytest.mark.parametrize("version", VERSIONS)
def test_no_released_section_or_message_changed_without_a_version_step(version: str) -> None:
    problems = changes_without_a_step(store.recorded_schema(version), schema(), version)
    assert not problems, "\n".join(problems)


def test_every_released_version_is_recorded() -> None:
    assert store.released_versions() <= set(VERSIONS)


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
        (_edit("records QueueState fields size type", "str"), "record QueueState: field(s) size"),
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


def test_checker_lets_a_proper_step_pass() -> None:
    now = schema()
    changed = copy.deepcopy(now)
    _step(extra=_NEW)(changed)
    assert changes_without_a_step(now, changed, VERSION) == []
