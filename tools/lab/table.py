"""What the terminal shows: live progress, then one table. Plain text when it is not a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tools.lab.chain import ChainPlan
from tools.lab.results import NS_PER_MS, ChainResult, DrillResult, UpdateRecord, conditions
from tools.lab.stats import Summary

# A pipe or a log has no width; a table folded to 80 columns could not be read.
PLAIN_WIDTH = 140
HEADINGS = (
    "chain",
    "n",
    "blackout p50 / p99 / max",
    "at stop",
    "no update",
    "downtime",
    "RAM",
    "sequence",
    "leaks fd/proc",
    "result",
)


class Screen:
    """Shows a drill; everything goes to standard output."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        if not self._console.is_terminal:
            self._console = console or Console(width=PLAIN_WIDTH, highlight=False)

    @contextlib.contextmanager
    def chain(self, plan: ChainPlan) -> Iterator[Callable[[UpdateRecord], None]]:
        """Show the progress of one chain; yields what to call after each update."""
        if not self._console.is_terminal:
            self._console.print(f"{plan.name}: {plan.count} live updates ...")
            yield _say_nothing
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("[dim]{task.fields[latest]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task(f"[bold]{plan.name}", total=plan.count, latest="starting")

            def after_update(record: UpdateRecord) -> None:
                latest = f"blackout {record.blackout_ns / NS_PER_MS:.2f} ms"
                progress.update(task, completed=record.number, latest=latest)

            yield after_update

    def show(self, result: DrillResult) -> None:
        """Show the final tables, and for each failure its reason and its replay command."""
        console = self._console
        console.print(_summary_table(result))
        for chain in result.chains:
            if chain.records and (phases := _phase_line(chain)):
                console.print(f"[dim]{chain.name} phases p50 (ms):[/dim] {phases}")
        for chain in result.chains:
            for what, ledger in (("without updates", chain.baseline), ("updates", chain.ledger)):
                if ledger is not None:
                    console.print(f"{chain.name} load, {what}: {ledger.summary()}", soft_wrap=True)
        if result.chains:
            named = conditions(result.chains[0])
            named.pop("n")
            text = "; ".join(f"{key}: {value}" for key, value in named.items())
            console.print(f"[dim]conditions: {escape(text)}[/dim]")
        self._show_verdict(result)

    def _show_verdict(self, result: DrillResult) -> None:
        for chain in result.chains:
            if chain.passed:
                continue
            console = self._console
            console.print(f"[bold red]FAIL[/bold red] {chain.name}: {escape(str(chain.failure))}")
            console.print(f"  replay: {escape(chain.replay)}", soft_wrap=True)
        if result.leftover_children:
            self._console.print(
                f"[bold red]FAIL[/bold red] {result.leftover_children} process(es) left behind"
            )
        if result.passed:
            updates = sum(len(chain.records) for chain in result.chains)
            self._console.print(
                f"[bold green]PASS[/bold green] {updates} live updates: sequence without gap or "
                "repeat, RAM consistent and in place, clock monotone, nothing leaked"
            )


def _say_nothing(_record: UpdateRecord) -> None:
    """Plain output shows a chain when it is over."""


def _summary_table(result: DrillResult) -> Table:
    table = Table(
        title="cpr-drill: what the guest felt, in ms (the last three of them p50)",
        title_justify="left",
    )
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "chain" else "right")
    for chain in result.chains:
        table.add_row(*_summary_row(chain, result.leftover_children))
    return table


def _summary_row(chain: ChainResult, leftover_children: int) -> tuple[str, ...]:
    held = "ok" if chain.passed else "see below"
    fds = sum(max(0.0, slopes.fds) for slopes in chain.leak_slopes())
    return (
        chain.name,
        f"{len(chain.records)}/{chain.planned}",
        _three(chain.blackout_ms()),
        _p50(chain.switchover_ms()),
        _p50(chain.background_ms()),
        _p50(chain.downtime_ms()),
        f"{held} ({chain.ram_verifications}x)" if chain.passed else held,
        held,
        f"{fds:g} / {leftover_children}" if chain.passed else held,
        "[green]pass[/green]" if chain.passed else "[red]FAIL[/red]",
    )


def _phase_line(chain: ChainResult) -> str:
    return "  ".join(f"{name} {summary.p50:.3f}" for name, summary in chain.phase_ms().items())


def _three(summary: Summary | None) -> str:
    if summary is None:
        return "-"
    return f"{summary.p50:.2f} / {summary.p99:.2f} / {summary.max:.2f}"


def _p50(summary: Summary | None) -> str:
    return "-" if summary is None else f"{summary.p50:.2f}"
