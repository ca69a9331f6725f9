"""What the terminal shows of a benchmark: what is being done, then tables and verdicts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from tools.lab.bench.results import BenchResult, GroupResult, Row
from tools.lab.bench.rounds import Progress
from tools.lab.stats import Summary
from tools.lab.table import PLAIN_WIDTH

TITLES: Mapping[str, str] = {
    "headline": "blackout beside the floor",
    "ram": "blackout against RAM",
    "vcpus": "blackout against vCPUs",
    "devices": "blackout against devices",
    "nics": "blackout against network cards",
    "path": "the path of a frame, without an update",
    "accel": "accelerators alone",
    "process": "one VMM process (without guest RAM)",
    "peer": "guest-felt gap beside a real QEMU",
}


class BenchView:
    """Writes to standard output; plain text when that is not a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        if not self._console.is_terminal:
            self._console = console or Console(width=PLAIN_WIDTH, highlight=False)

    @contextlib.contextmanager
    def group(self, name: str) -> Iterator[Progress]:
        """Show what a group is doing; yields the function to tell it."""
        title = TITLES[name]
        if not self._console.is_terminal:
            self._console.print(f"{title} ...")
            yield _say_nothing
            return
        with Status(title, console=self._console) as status:
            yield lambda what: status.update(f"[bold]{title}[/bold]: {escape(what)}")

    def show_group(self, group: GroupResult) -> None:
        """Show a group's rows as one table."""
        if group.rows:
            self._console.print(group_table(group.rows))
            for row in group.rows:
                if row.phases_ms:
                    phases = "  ".join(f"{name} {ms:.3f}" for name, ms in row.phases_ms.items())
                    self._console.print(f"[dim]{row.name} phases p50 (ms):[/dim] {phases}")
        for text in group.left_out:
            self._console.print(f"[yellow]left out:[/yellow] {escape(text)}")

    def show_end(self, result: BenchResult) -> None:
        """Show the conditions of the run and one line for each target."""
        text = "; ".join(f"{name}: {value}" for name, value in result.conditions.items())
        self._console.print(f"[dim]conditions: {escape(text)}[/dim]")
        for verdict in result.verdicts:
            word = "[bold green]met[/bold green]" if verdict.met else "[bold red]NOT met[/bold red]"
            self._console.print(
                f"{word}  {escape(verdict.name)}: {escape(verdict.measured)}; "
                f"target: {escape(verdict.target)}"
            )


def group_table(rows: tuple[Row, ...]) -> Table:
    """Build one table; conditions that all rows share stand in its caption."""
    shared = {
        name: value
        for name, value in rows[0].conditions.items()
        if all(row.conditions.get(name) == value for row in rows)
    }
    differing = [name for name in rows[0].conditions if name not in shared]
    figures = list(dict.fromkeys(name for row in rows for name in row.figures))
    table = Table(
        title=TITLES[rows[0].group],
        caption="; ".join(f"{name}: {value}" for name, value in shared.items()),
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("what")
    for name in differing:
        table.add_column(name, overflow="fold")
    for name in figures:
        table.add_column(f"{name} n: p50 / p99 / max", justify="right")
    for row in rows:
        cells = [row.conditions.get(name, "-") for name in differing]
        cells += [figure_text(row.figures.get(name)) for name in figures]
        table.add_row(row.name, *cells)
    return table


def figure_text(summary: Summary | None) -> str:
    """Write `n: p50 / p99 / max`, with as many decimals as the size of the figure asks for."""
    if summary is None:
        return "-"
    decimals = 0 if summary.p50 >= 1000 else 1 if summary.p50 >= 100 else 2
    values = " / ".join(f"{v:.{decimals}f}" for v in (summary.p50, summary.p99, summary.max))
    return f"{summary.n}: {values}"


def _say_nothing(_what: str) -> None:
    """Plain output shows a group when it is over."""
