"""Many cases, a few at a time; what failed comes with the command that does it again."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qemu.qmp import ExecuteError

from tools.lab.argv import Build, GuestSpec
from tools.lab.deadlines import within
from tools.lab.errors import LabError
from tools.lab.faults.cases import Case
from tools.lab.faults.oracle import Ending, Outcome
from tools.lab.faults.party import party
from tools.lab.load import LoadSpec
from vmm.errors import BootError

# Most of a case is waiting for another process to start or for a deadline to pass.
PARTIES_PER_CPU = 2
CASE_MS = 120_000
GUEST = GuestSpec(ram_bytes=32 << 20, pages=256, heartbeat_ms=5)


@dataclass(frozen=True, slots=True)
class Failure:
    """A case that did not end as it must."""

    case: Case
    accel: str
    why: str
    replay: str


@dataclass(frozen=True, slots=True)
class MatrixResult:
    """All cases of one run."""

    seed: int
    outcomes: tuple[Outcome, ...]
    failures: tuple[Failure, ...]

    @property
    def passed(self) -> bool:
        """Whether every case ended as it must."""
        return not self.failures and bool(self.outcomes)

    def by_fault(self) -> Mapping[str, Counter[str]]:
        """Fault -> how often it ended how."""
        counts: dict[str, Counter[str]] = {}
        for outcome in self.outcomes:
            counts.setdefault(outcome.case.fault, Counter())[outcome.ending.value] += 1
        for failure in self.failures:
            counts.setdefault(failure.case.fault, Counter())["FAILED"] += 1
        return counts

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "seed": self.seed,
            "passed": self.passed,
            "cases": [
                {"name": each.case.name, "ending": each.ending.value, "reason": each.reason}
                for each in self.outcomes
            ],
            "failures": [
                {
                    "name": each.case.name,
                    "accel": each.accel,
                    "why": each.why,
                    "replay": each.replay,
                }
                for each in self.failures
            ],
        }


Progress = Callable[[int, int], None]


async def run_matrix(
    cases: Sequence[Case],
    command: tuple[str, ...],
    accels: Sequence[str],
    seed: int,
    progress: Progress,
    load: LoadSpec | None = None,
) -> MatrixResult:
    """Every case once, in an order and on accelerators that `seed` decides.

    With `load` every guest has traffic over all its cases, and not a frame may be lost.
    """
    order = list(cases)
    random.Random(seed).shuffle(order)
    waiting = deque((case, accels[place % len(accels)]) for place, case in enumerate(order))
    outcomes: list[Outcome] = []
    failures: list[Failure] = []

    async def work(accel: str) -> None:
        while mine := _take(waiting, accel):
            await _at_one_party(mine, Build(command, accel))

    async def _at_one_party(first: Case, build: Build) -> None:
        """As many cases as the guest lives to see."""
        accel = build.accel or ""
        case = first
        try:
            async with party(build, GUEST, load) as guest:
                while True:
                    outcome = await within(CASE_MS, case.name, guest.suffer(case))
                    outcomes.append(outcome)
                    progress(len(outcomes) + len(failures), len(order))
                    if outcome.ending is Ending.EXCUSED:
                        return
                    following = _take(waiting, accel)
                    if following is None:
                        return
                    case = following
        except (LabError, ExecuteError, BootError) as error:
            failures.append(Failure(case, accel, str(error), _replay(case, accel, seed, load)))
            progress(len(outcomes) + len(failures), len(order))

    workers = min(len(order), PARTIES_PER_CPU * (os.cpu_count() or 1))
    names = [accels[number % len(accels)] for number in range(max(workers, len(accels)))]
    await asyncio.gather(*(work(accel) for accel in names))
    return MatrixResult(seed, tuple(outcomes), tuple(failures))


def _take(waiting: deque[tuple[Case, str]], accel: str) -> Case | None:
    """The next case for a party with `accel`."""
    for entry in waiting:
        if entry[1] == accel:
            waiting.remove(entry)
            return entry[0]
    return None


def _replay(case: Case, accel: str, seed: int, load: LoadSpec | None) -> str:
    words = f"cpr-drill --faults {case.name} --accel {accel} --seed {seed}"
    return words if load is None else f"{words} --load {load}"
