"""Record what the present version puts on the wire: `python -m tests.golden.write [--release]`.

Without an option for an unreleased version; with --release once the changelog has its date.
"""

from __future__ import annotations

import sys

from tests.golden.store import released_versions, seal, write
from vmm.version import VERSION


def main() -> None:
    """See the module's text."""
    try:
        if "--release" not in sys.argv:
            changed = write()
        elif VERSION in released_versions():
            seal(VERSION)
            changed = [f"{VERSION}: sealed"]
        else:
            raise ValueError(f"version {VERSION} has no dated heading in CHANGELOG.md")
    except ValueError as error:
        sys.exit(str(error))
    sys.stdout.write("\n".join(changed or [f"{VERSION}: nothing changed"]) + "\n")


if __name__ == "__main__":
    main()
