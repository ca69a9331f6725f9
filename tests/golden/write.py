"""`python -m tests.golden.write`: record what the present, unreleased version puts on the wire."""

from __future__ import annotations

import sys

from tests.golden.store import write
from vmm.version import VERSION

if __name__ == "__main__":
    try:
        changed = write()
    except ValueError as error:
        sys.exit(str(error))
    sys.stdout.write("\n".join(changed or [f"{VERSION}: nothing changed"]) + "\n")
