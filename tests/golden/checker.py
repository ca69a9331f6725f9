"""What may be otherwise in the present code than in a released version's schema (see schema.py).

* A section changes only with a step of its VERSION. As long as READS_FROM says that the old one can
  be read, its fields stay, with their types, and new ones are declared with since().
* A record has no version of its own: it changes only when every section that holds it steps.
* A message, and a record in one, never changes; those that are read before a protocol is agreed on
  may gain fields. A new kind of message is a new protocol. A number means one kind for ever.
"""

from __future__ import annotations

from typing import Any

from tests.golden import store

Schema = dict[str, Any]


def changes_without_a_step(then: Schema, now: Schema, version: str) -> list[str]:
    """What the released schema `then`, of `version`, forbids to be as it is now."""
    return [
        *_section_changes(then, now, version),
        *_record_changes(then, now, version),
        *_message_changes(then, now, version),
    ]


def _section_changes(then: Schema, now: Schema, version: str) -> list[str]:
    problems = []
    for name, old in then["sections"].items():
        new, what = now["sections"].get(name), f"section '{name}'"
        if new is None:
            problems.append(f"{what} is gone; READS_FROM promises that it can be read")
        elif new["version"] == old["version"]:
            problems += _different(what, old, new, version, name)
        elif new["version"] < old["version"]:
            problems.append(f"{what}: version {old['version']} -> {new['version']}")
        elif new["reads_from"] <= old["version"]:  # else given up on purpose: HELLO refuses it
            problems += _not_readable(what, old, new, old["version"])
    return problems


def _record_changes(then: Schema, now: Schema, version: str) -> list[str]:
    problems = []
    for name, old in then["records"].items():
        new, what = now["records"].get(name), f"record {name}"
        holders = {section: then["sections"][section] for section in old["sections"]}
        same = [
            section
            for section, about in holders.items()
            if now["sections"].get(section, about)["version"] == about["version"]
        ]
        still_read = [
            about["version"]
            for section, about in holders.items()
            if now["sections"].get(section, about)["reads_from"] <= about["version"]
        ]
        if same:
            held = f"{what}, held by section '{same[0]}'"
            problems += _different(held, _own(old), _own(new), version, name)
        elif still_read and new is None:
            problems.append(f"{what} is gone; sections that hold it can still be read")
        elif still_read:
            problems += _not_readable(what, old, new, max(still_read))
    return problems


def _own(record: Any) -> Any:
    """A record without the list of its sections, which a new section may join."""
    return record and {key: value for key, value in record.items() if key != "sections"}


def _message_changes(then: Schema, now: Schema, version: str) -> list[str]:
    problems = []
    for group, word in (("messages", "message"), ("parts", "part of messages")):
        for name, old in then[group].items():
            what, new = f"{word} {name}", now[group].get(name)
            if new is not None and old["may_grow"]:
                new = new | {"fields": {key: new["fields"].get(key) for key in old["fields"]}}
            problems += _different(what, old, new, version, name)
    numbers = {each["number"]: name for name, each in now["messages"].items()}
    for name, old in then["messages"].items():
        if numbers.get(old["number"], name) != name:
            problems.append(f"number {old['number']} of {name} means {numbers[old['number']]} now")
    if now["protocol"]["max"] == then["protocol"]["max"]:
        problems += [
            f"message {name} is new, and the protocol is not"
            for name in now["messages"].keys() - then["messages"].keys()
        ]
    if now["protocol"]["max"] < then["protocol"]["max"]:
        problems.append(f"protocol {then['protocol']['max']} -> {now['protocol']['max']}")
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


def _not_readable(what: str, old: Any, new: Any, old_version: int) -> list[str]:
    problems = [
        f"{what}: field '{field}' has another type than in version {old_version}"
        for field, about in old["fields"].items()
        if field in new["fields"] and new["fields"][field]["type"] != about["type"]
    ]
    problems += [
        f"{what}: field '{field}' of version {old_version} is gone"
        for field in old["fields"].keys() - new["fields"].keys()
    ]
    problems += [
        f"{what}: new field '{field}' is not declared with since()"
        for field in new["fields"].keys() - old["fields"].keys()
        if new["fields"][field]["since"] <= old_version or not new["fields"][field]["default"]
    ]
    return problems
