"""What the terminal shows of a fault matrix."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tools.lab.faults.matrix import MatrixResult
from tools.lab.faults.oracle import Ending
from tools.lab.table import PLAIN_WIDTH

_COLUMNS = (*(ending.value for ending in Ending), "FAILED")


PROGRESS_STEP = 25


def tell_progress(done: int, total: int) -> None:
    """A line now and then."""
    if done % PROGRESS_STEP == 0 or done == total:
        print(f"faults: {done} of {total} cases", flush=True)


def show_matrix(result: MatrixResult, elapsed_s: float) -> None:
    """A row for each fault, then every failure with the command that does it again."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=PLAIN_WIDTH, highlight=False)
    table = Table(title="faults: how the cases ended", title_justify="left")
    table.add_column("fault")
    for column in _COLUMNS:
        table.add_column(column, justify="right")
    for fault, counts in sorted(result.by_fault().items()):
        table.add_row(fault, *(str(counts[column] or "-") for column in _COLUMNS))
    console.print(table)
    for failure in result.failures:
        console.print(
            f"[bold red]FAIL[/bold red] {escape(failure.case.name)}: {escape(failure.why)}"
        )
        console.print(f"     replay: {escape(failure.replay)}", soft_wrap=True)
    word = "[bold green]PASS[/bold green]" if result.passed else "[bold red]FAIL[/bold red]"
    total = len(result.outcomes) + len(result.failures)
    console.print(
        f"{word} {total} cases in {elapsed_s:.0f} s, {len(result.failures)} failed: one owner, "
        "sequence and RAM right, reason reported, next update succeeded, nothing leaked"
    )
