"""`cpr-inspect FILE`: show a saved stream, section or recording to a person, or as JSON.

Understands, by content: frames of the cpr channel one after the other (what a process sent), a CBOR
map (one section's fields, as in the golden files), a CBOR-encoded section, and the JSON of
`x-query-cpr-timeline`. Damaged input is shown up to the damage, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tools.lab.inspect_model import Document, read_document
from tools.lab.inspect_view import document_tree, to_plain

EXIT_OK, EXIT_DAMAGED, EXIT_USAGE = 0, 1, 2
PLAIN_WIDTH = 120


def main(argv: Sequence[str] | None = None) -> int:
    """Show one file; 0 = all of it understood, 1 = damaged or unknown, 2 = cannot be read."""
    options = _parser().parse_args(argv)
    try:
        data = sys.stdin.buffer.read() if options.file == "-" else Path(options.file).read_bytes()
    except OSError as error:
        print(f"cpr-inspect: {options.file}: {error.strerror}", file=sys.stderr)
        return EXIT_USAGE
    document = read_document(data, options.file)
    if options.json:
        print(json.dumps(to_plain(document), indent=1))
    else:
        _show(document, full=options.full)
    return EXIT_OK if document.problem is None else EXIT_DAMAGED


def _show(document: Document, *, full: bool) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=PLAIN_WIDTH, highlight=False)
    console.print(document_tree(document, full=full))
    if document.problem is not None:
        console.print(f"[bold red]damaged:[/bold red] {document.problem}", markup=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cpr-inspect", description="Show a cpr stream, a saved section or a timeline."
    )
    parser.add_argument("file", metavar="FILE", help="what to show; - for standard input")
    parser.add_argument("--json", action="store_true", help="print JSON; bytes as hexadecimal")
    parser.add_argument("--full", action="store_true", help="do not abridge byte strings")
    return parser


if __name__ == "__main__":
    sys.exit(main())
