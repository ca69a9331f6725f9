"""One self-contained page for a drill: no script, no font, no image from anywhere; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape

from tools.lab.charts import histogram_svg, scatter_svg, timeline_svg
from tools.lab.load_ledger import LoadResult
from tools.lab.page_style import STYLE
from tools.lab.results import ChainResult, DrillResult, conditions
from tools.lab.stats import Summary


def render_html(result: DrillResult) -> str:
    """Return the whole page as text."""
    chains = "".join(_chain(chain) for chain in result.chains)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>cpr-drill</title><style>{STYLE}</style></head><body>"
        f"<h1>cpr-drill {_verdict(result.passed)}</h1>"
        "<p>A running guest was handed from process to process; its RAM stayed in place. "
        "<b>Blackout</b> is the longest gap in the guest's own progress during an update, read "
        "from its RAM; beside it stand the gap over the stop alone, and the longest gap in as long "
        "a time without an update: the machine's own noise. p50, p99, max: nearest rank.</p>"
        f'<div class="card">{_summary(result)}</div>{chains}</body></html>\n'
    )


def _chain(chain: ChainResult) -> str:
    parts = [f"<h2>{escape(chain.name)} {_verdict(chain.passed)}</h2>"]
    if chain.failure is not None:
        parts.append(f'<p class="why">{escape(chain.failure)}</p>')
        parts.append(f"<p>Replay: <code>{escape(chain.replay)}</code></p>")
    if (blackout := chain.blackout_ms()) is not None:
        parts += [_figures(chain, blackout), _pictures(chain)]
    parts.append(_phases(chain.phase_ms()))
    parts += [
        _ledger(what, ledger)
        for what, ledger in (
            ("Load over all updates", chain.ledger),
            ("The same load without updates", chain.baseline),
        )
        if ledger is not None
    ]
    named = "; ".join(f"{key}: {value}" for key, value in conditions(chain).items())
    parts.append(f'<p class="conditions">{escape(named)}</p>')
    return "".join(parts)


def _figures(chain: ChainResult, blackout: Summary) -> str:
    figures = {
        "blackout p50": f"{blackout.p50:.2f} ms",
        "blackout p99": f"{blackout.p99:.2f} ms",
        "blackout max": f"{blackout.max:.2f} ms",
        "gap at the stop, p50": _p50(chain.switchover_ms()),
        "gap without update, p50": _p50(chain.background_ms()),
        "live updates": f"{len(chain.records)} / {chain.planned}",
        "whole-RAM checks": str(chain.ram_verifications),
        "serial heartbeats": str(chain.heartbeats),
    }
    cards = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
        for name, value in figures.items()
    )
    return f'<div class="figures">{cards}</div>'


def _pictures(chain: ChainResult) -> str:
    median = chain.median_record()
    if median is None:
        return ""
    pictures = {
        f"The median update (number {median.number}): both processes around the stop": (
            timeline_svg(median)
        ),
        "Blackout of every update": scatter_svg(chain.records),
        "Distribution of blackouts": histogram_svg(chain.records),
    }
    cards = [
        f'<div class="card"><h3>{escape(title)}</h3>{picture}</div>'
        for title, picture in pictures.items()
    ]
    return f'<div class="below">{cards[0]}</div><div class="grid2">{"".join(cards[1:])}</div>'


def _phases(phases: Mapping[str, Summary]) -> str:
    if not phases:
        return ""
    rows = ([name, *_three(summary)] for name, summary in phases.items())
    table = _table(("phase", "p50 ms", "p99 ms", "max ms"), rows)
    return f'<div class="card below">{table}</div>'


def _ledger(what: str, ledger: LoadResult) -> str:
    """Every frame of every flow, the TCP streams, and what the kernel dropped."""
    numbers = ("sent", "received", "lost", "duplicated", "reordered")
    rows = [
        [each.name, *(str(getattr(each, number)) for number in numbers)]
        for each in ledger.directions
    ]
    rows.append(["all", *(str(ledger.totals()[number]) for number in numbers)])
    return (
        f'<div class="card below"><h3>{escape(what)}</h3>{_table(("flow", *numbers), rows)}'
        f"<p>{escape(ledger.summary())}</p></div>"
    )


def _summary(result: DrillResult) -> str:
    rows = []
    for chain in result.chains:
        blackout, downtime, total = chain.blackout_ms(), chain.downtime_ms(), chain.total_ms()
        if blackout is None or downtime is None or total is None:
            rows.append([chain.name, "0", *["-"] * 6, "FAIL"])
            continue
        slopes = ", ".join(f"{s.accel} {s.fds:+.2g}" for s in chain.leak_slopes()) or "-"
        rows.append(
            [
                chain.name,
                str(len(chain.records)),
                *_three(blackout),
                f"{downtime.p50:.2f}",
                f"{total.p50:.1f}",
                slopes,
                "pass" if chain.passed else "FAIL",
            ]
        )
    headings = (
        "chain",
        "n",
        "blackout p50 ms",
        "p99 ms",
        "max ms",
        "STOP→RESUME p50 ms",
        "command→done p50 ms",
        "fds per generation",
        "result",
    )
    return _table(headings, rows)


def _p50(summary: Summary | None) -> str:
    return "-" if summary is None else f"{summary.p50:.2f} ms"


def _three(summary: Summary) -> list[str]:
    return [f"{summary.p50:.3f}", f"{summary.p99:.3f}", f"{summary.max:.3f}"]


def _table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _verdict(passed: bool) -> str:
    css, text = ("pass", "pass") if passed else ("fail", "FAIL")
    return f'<span class="verdict {css}">{text}</span>'
