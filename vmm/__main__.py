"""`vmm`: the entry point. A successor steps into the background before its heavy imports."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vmm.update.priority import Background

_INCOMING = frozenset({"-incoming", "--incoming"})


def main(argv: Sequence[str] | None = None) -> int:
    """Run one VMM with `argv` (default: the process's); returns its exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    background = Background()
    if not _INCOMING.isdisjoint(arguments):
        background.enter()
    from vmm.command import run  # noqa: PLC0415 - imports take time, and a guest may be running

    return run(arguments, background)


if __name__ == "__main__":
    sys.exit(main())
