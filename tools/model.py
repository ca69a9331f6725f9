"""`cpr-model`: walk every course that an update can take, and check that the guest has one owner.

The table that is walked is the one that the code runs. Without options the whole state space is
checked and its size printed. Exit status 0: everything holds.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence

from tools.lab.model.explore import ALL_SETUPS, Space, check_everything, explore
from tools.lab.model.mutants import EQUIVALENT, Hunter, all_mutants
from tools.lab.model.replay import ConformanceError, conform, conform_to_one_owner
from tools.lab.model.traces import covering, last_word
from tools.lab.model.world import ModelError

REPLAYED = ALL_SETUPS[0]  # by --schedules


def main(argv: Sequence[str] | None = None) -> int:
    """Check, and print what was looked at; 0 = everything held, 1 = something did not."""
    options = _parser().parse_args(argv)
    try:
        if options.mutants:
            return _kill_mutants()
        if options.conform:
            return _conform(options.only, options.seed)
        if options.schedules:
            return _schedules(options.schedules, options.seed)
        return _check(options.only)
    except ModelError as error:
        print(f"cpr-model: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cpr-model", description=(__doc__ or "").splitlines()[0])
    names = [setup.name for setup in ALL_SETUPS]
    parser.add_argument("--only", choices=names, help="one of the worlds instead of all")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--mutants", action="store_true", help="instead: leave out each guard, and find that out"
    )
    instead.add_argument(
        "--conform",
        action="store_true",
        help="instead: replay traces that use every row of the table with real processes",
    )
    instead.add_argument(
        "--schedules",
        type=int,
        metavar="N",
        help="instead: N random courses of the last acknowledgement with two real processes",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first schedule (default 0)")
    return parser


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
    wrong = killed = 0
    for mutant in all_mutants():
        complaint = hunter.counterexample(mutant)
        if (complaint is None) is not (mutant.name in EQUIVALENT):
            wrong += 1
            print(f"wrong: {mutant.name}: {complaint or 'no counterexample'}", flush=True)
        killed += complaint is not None
    print(f"{killed} mutants found out, {len(EQUIVALENT)} that change nothing, {wrong} wrong")
    return 1 if wrong else 0


def _conform(only: str | None, seed: int) -> int:
    failed = 0
    for setup in ALL_SETUPS:
        if setup.lies or only not in {None, setup.name}:  # no process of ours can be made to lie
            continue
        space = explore(setup)
        traces = covering(space)
        unlike = 0
        for number, trace in enumerate(traces):
            try:
                conform(setup, trace, random.Random(seed + number))
            except ConformanceError as error:
                unlike += 1
                print(f"{setup.name}, trace {number}: {error}", flush=True)
        steps = sum(len(trace) for trace in traces)
        print(
            f"{setup.name}: {len(traces)} traces that use {len(space.used)} rows of the table, "
            f"{steps} steps with real processes, {unlike} unlike the model",
            flush=True,
        )
        failed += unlike
    return 1 if failed else 0


def _schedules(count: int, seed: int) -> int:
    began, failed = time.perf_counter(), 0
    for one in range(seed, seed + count):
        try:
            conform_to_one_owner(REPLAYED, last_word(REPLAYED, one), random.Random(one))
        except ConformanceError as error:
            failed += 1
            print(f"{error}\nagain: cpr-model --schedules 1 --seed {one}", flush=True)
    print(
        f"{count} schedules (seeds {seed} to {seed + count - 1}) in "
        f"{time.perf_counter() - began:.0f} s: {count - failed} ended with one owner"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
