"""The handshake's table and diagrams, printed from the table that runs.

`python -m tools.diagrams` prints them; `--write` puts them into cpr/README.md, between the marks.
A test fails when the README says something else than the code.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from cpr.handshake import DEADLINES, TRANSITIONS, Deadlines, Event, Phase, Role, Transition

README = Path(__file__).parents[1] / "cpr" / "README.md"
_MARKED = re.compile(r"(<!-- begin (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(role: Role) -> str:
    """Every phase and event of `role` as a Markdown table; events with one answer share a row."""
    lines = ["| phase | event | next | actions |", "|---|---|---|---|"]
    for phase, row in TRANSITIONS[role].items():
        label = f"**{phase.name}**{_deadline(role, phase)}"
        for transition, events in _by_answer(row).items():
            names = ", ".join(event.name for event in events)
            following = "stays" if transition.next is phase else transition.next.name
            actions = ", ".join(action.name for action in transition.actions)
            lines.append(f"| {label} | {names} | {following} | {actions} |")
            label = ""
    return "\n".join(lines) + "\n"


def diagram(role: Role) -> str:
    """The phases of `role` as a Mermaid state diagram, without the ways to ABORTED."""
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> IDLE"]
    for phase, row in TRANSITIONS[role].items():
        edges: dict[Phase, list[str]] = {}
        for event, transition in row.items():
            if transition.next not in {phase, Phase.ABORTED}:
                edges.setdefault(transition.next, []).append(event.name)
        lines += [f"    {phase.name} --> {to.name}: {', '.join(on)}" for to, on in edges.items()]
    lines += ["    DONE --> [*]", "```"]
    return "\n".join(lines) + "\n"


def sections() -> Mapping[str, str]:
    """What the README may hold, by the name in its mark."""
    return {
        f"{role.value}-{kind}": make(role)
        for role in Role
        for kind, make in (("table", table), ("diagram", diagram))
    }


def with_sections(text: str) -> str:
    """`text` with everything between marks made anew; KeyError for a mark that names nothing."""
    made = sections()
    return _MARKED.sub(lambda mark: f"{mark[1]}{made[mark['name']]}{mark[3]}", text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the sections, or write them into the README."""
    parser = argparse.ArgumentParser(prog="tools.diagrams", description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"update {README.name}")
    parser.add_argument("--readme", type=Path, default=README, help="another file to update")
    options = parser.parse_args(arguments)
    if options.write:
        options.readme.write_text(with_sections(options.readme.read_text("utf-8")), "utf-8")
    else:
        print("\n".join(sections().values()))


def _deadline(role: Role, phase: Phase) -> str:
    name = DEADLINES.get((role, phase))
    return f" ({name.value} {Deadlines().of(name) // 1000} s)" if name is not None else ""


def _by_answer(row: Mapping[Event, Transition]) -> dict[Transition, list[Event]]:
    grouped: dict[Transition, list[Event]] = {}
    for event, transition in sorted(row.items(), key=lambda item: item[0].value):
        grouped.setdefault(transition, []).append(event)
    return grouped


if __name__ == "__main__":
    main()
