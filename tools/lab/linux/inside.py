"""What runs in the rig's L1, and where /dev/kvm runs Linux by itself: cases in, reports out.

    python -m tools.lab.linux.inside [GUESTS] <cases.json

Each case is one JSON object, each report one line `RIG {…}` on standard output. The values of a
case are the fields of `Case`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.lab.argv import Build
from tools.lab.faults.cases import chosen_cases
from tools.lab.faults.oracle import Outcome
from tools.lab.linux.chain import LinuxPlan, LinuxResult, LinuxUpdate, run_linux_chain
from tools.lab.linux.guest_spec import LinuxGuest
from tools.lab.load import parse_load
from tools.lab.options import own_vmm

GUESTS = Path("/guests")  # in L1
REPORT_PREFIX, NEWS_PREFIX = "RIG ", "NEWS "


@dataclass(frozen=True, slots=True)
class Case:
    """One chain: which guest, and what is done to it."""

    name: str
    kernel: str  # its version
    image: str  # "bzImage" or "vmlinux"
    ram_mib: int
    vcpu_count: int
    count: int  # of updates
    load: str  # as for --load
    tick_ms: int
    faults: tuple[str, ...] = ()  # as for `cpr-drill --faults`
    reboots: bool = False

    def plan(self, guests: Path) -> LinuxPlan:
        """As the chain takes it; kernels are under `guests`/VERSION."""
        folder = guests / self.kernel
        return LinuxPlan(
            name=self.name,
            build=Build(own_vmm(), "kvm"),
            guest=LinuxGuest(
                kernel=folder / self.image,
                initrd=folder / "initrd",
                ram_bytes=self.ram_mib << 20,
                vcpu_count=self.vcpu_count,
                tick_ms=self.tick_ms,
            ),
            count=self.count,
            load=parse_load(self.load),
            faults=tuple(case for name in self.faults for case in chosen_cases(name)),
            reboots=self.reboots,
        )


def report_of(result: LinuxResult) -> dict[str, Any]:
    """As JSON values."""
    baseline, ledger = result.baseline, result.ledger
    return {
        **{name: getattr(result, name) for name in ("name", "planned", "passed", "failure")},
        "boot_warnings": result.boot_warnings,
        "blocks_written": result.blocks_written,
        "faults": {each.case.name: each.ending.value for each in result.outcomes},
        "updates": [dataclasses.asdict(update) for update in result.updates],
        "baseline": None if baseline is None else baseline.summary(),
        "ledger": None if ledger is None else ledger.summary(),
        "streams": 0 if ledger is None else sum(stream.clean for stream in ledger.streams),
    }


def main() -> None:
    """See the module's text."""
    guests = Path(sys.argv[1]) if len(sys.argv) > 1 else GUESTS
    for values in json.load(sys.stdin):
        case = Case(**values)
        print(f"case {case.name}", flush=True)
        result = asyncio.run(run_linux_chain(case.plan(guests), _tell))
        print(f"{REPORT_PREFIX}{json.dumps(report_of(result))}", flush=True)


def _tell(news: LinuxUpdate | Outcome) -> None:
    if isinstance(news, Outcome):
        text = f"{news.case.name}: {news.ending.value}"
    else:
        text = (
            f"update {news.number}: longest gap {news.longest_gap_ms:.1f} ms, downtime "
            f"{news.downtime_ms:.1f} ms"
        )
    print(f"{NEWS_PREFIX}{text}", flush=True)


if __name__ == "__main__":
    main()
