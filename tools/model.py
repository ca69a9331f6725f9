"""`cpr-model`: walk every course that an update can take, and check that the guest has one owner.

The table that is walked is the one that the code runs. Exit status 0: every property holds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tools.lab.model.explore import ALL_SETUPS, Space, check_everything
from tools.lab.model.mutants import EQUIVALENT, Hunter, all_mutants
from tools.lab.model.world import ModelError


def main(argv: Sequence[str] | None = None) -> int:
    """Check, and print what was looked at; 0 = everything held, 1 = something did not."""
    parser = argparse.ArgumentParser(prog="cpr-model", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--mutants", action="store_true", help="instead: leave out each guard, and find that out"
    )
    names = [setup.name for setup in ALL_SETUPS]
    parser.add_argument("--only", choices=names, help="one of the worlds instead of all")
    options = parser.parse_args(argv)
    try:
        return _kill_mutants() if options.mutants else _check(options.only)
    except ModelError as error:
        print(f"cpr-model: {error}", file=sys.stderr)
        return 1


def _check(only: str | None) -> int:
    spaces = []
    print(f"{'':32}{'states':>10}{'steps':>10}{'longest':>9}{'ends':>7}{'time':>9}")
    for setup in ALL_SETUPS:
        if only not in {None, setup.name}:
            continue
        space = check_everything(setup)
        print(line(space), flush=True)
        spaces.append(space)
    print(
        f"{sum(len(space.came_from) for space in spaces):,} states, longest trace "
        f"{max(space.depth for space in spaces)} steps, every property holds in each state"
    )
    return 0


def line(space: Space) -> str:
    """One explored space in a row of the table."""
    return (
        f"{space.setup.name:32}{len(space.came_from):>10,}{space.steps:>10,}{space.depth:>9}"
        f"{space.ends:>7,}{space.seconds:>7.1f} s"
    )


def _kill_mutants() -> int:
    hunter = Hunter()
    survivors = killed = 0
    for mutant in all_mutants():
        complaint = hunter.counterexample(mutant)
        if (complaint is None) is not (mutant.name in EQUIVALENT):
            survivors += 1
            print(f"wrong: {mutant.name}: {complaint or 'no counterexample'}", flush=True)
        killed += complaint is not None
    print(f"{killed} mutants found out, {len(EQUIVALENT)} that change nothing, {survivors} wrong")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
