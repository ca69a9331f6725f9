"""The README says what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpr.handshake import TRANSITIONS, Role
from tools.diagrams import README, diagram, main, sections, table, with_sections


def test_tables_and_diagrams_in_the_readme_are_those_of_the_code() -> None:
    text = README.read_text("utf-8")
    assert with_sections(text) == text, "run: python -m tools.diagrams --write"
    assert all(content in text for content in sections().values())


@pytest.mark.parametrize("role", list(Role))
def test_table_names_every_phase_and_event_of_a_role(role: Role) -> None:
    text = table(role)
    for phase, row in TRANSITIONS[role].items():
        assert f"**{phase.name}**" in text
        assert all(event.name in text for event in row)


def test_diagram_shows_the_way_to_done() -> None:
    assert "    STATE_SENT --> COMMITTED: LOADED\n" in diagram(Role.SOURCE)
    assert "ABORTED" not in diagram(Role.TARGET)


def test_write_replaces_what_is_between_marks_and_nothing_else(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- begin target-table -->\nold\n<!-- end -->\nb\n", "utf-8")
    main(["--write", "--readme", str(readme)])
    content = table(Role.TARGET)
    assert readme.read_text("utf-8") == (
        f"a\n<!-- begin target-table -->\n{content}<!-- end -->\nb\n"
    )


def test_an_unknown_mark_is_an_error() -> None:
    with pytest.raises(KeyError, match="poem"):
        with_sections("<!-- begin poem -->\n<!-- end -->\n")


def test_without_write_the_sections_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    assert table(Role.SOURCE) in capsys.readouterr().out
