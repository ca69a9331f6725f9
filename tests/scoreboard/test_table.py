"""The scoreboard's table and its tests name each other."""

from __future__ import annotations

import re
from pathlib import Path

PLACE = Path(__file__).parent
_ROW = re.compile(r"^\| (?P<row>W\d+|CH\d+) \|.*\| (?:`(?P<test>\w+)`|-) \|$", re.MULTILINE)
_TEST = re.compile(r"^async def (test_(?:w\d\d|ch\d))_", re.MULTILINE)


def table() -> dict[str, str | None]:
    return {m["row"]: m["test"] for m in _ROW.finditer((PLACE / "README.md").read_text())}


def test_every_row_has_its_test_and_every_test_its_row() -> None:
    found = {
        name
        for path in (PLACE / "test_qemu.py", PLACE / "test_cloud_hypervisor.py")
        for name in _TEST.findall(path.read_text())
    }
    assert found == {test for test in table().values() if test}


def test_every_weakness_has_a_row_and_one_without_a_test_says_why() -> None:
    weaknesses, holes = range(1, 21), range(1, 9)
    assert list(table()) == [f"W{n}" for n in weaknesses] + [f"CH{n}" for n in holes]
    text = (PLACE / "README.md").read_text()
    for row, test in table().items():
        if test is None:
            assert re.search(rf"^\| {row} \|.*does not apply", text, re.MULTILINE), row
