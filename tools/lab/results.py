"""What a drill measured and proved, as frozen values; JSON is made from these and nothing else."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tools.lab.argv import GuestSpec
from tools.lab.gaps import UpdateGaps
from tools.lab.load import LoadSpec
from tools.lab.load_ledger import LoadResult
from tools.lab.procfs import ProcessCounters
from tools.lab.stats import Summary, linear_slope
from tools.lab.timeline import Mark, Phase, Side, blackout_phases

NS_PER_MS = 1_000_000
# A slope over fewer generations than this says more about the allocator than about a leak.
SLOPE_POINTS_MIN = 4


@dataclass(frozen=True, slots=True)
class UpdateRecord:
    """One live update of a chain. Times: CLOCK_MONOTONIC, ns."""

    number: int  # 1 = the first update of the chain
    old_accel: str
    new_accel: str
    started_ns: int
    completed_ns: int
    gaps: UpdateGaps
    downtime_ns: int
    sequence_before: int
    sequence_after: int
    old_marks: tuple[Mark, ...]
    new_marks: tuple[Mark, ...]
    counters: ProcessCounters  # of the successor, after the update

    @property
    def blackout_ns(self) -> int:
        """What the guest felt, anywhere in the update."""
        return self.gaps.blackout.length_ns

    @property
    def total_ns(self) -> int:
        """From the `migrate` command to the last event."""
        return self.completed_ns - self.started_ns

    @property
    def switchover_is_seen(self) -> bool:
        """Whether the gap reported for the stop is the stop's own, not a longer one beside it."""
        gap, phases = self.gaps.switchover, self.phases
        return bool(phases) and gap.start_ns < phases[-1].end_ns and gap.end_ns > phases[0].start_ns

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The blackout's phases as both processes marked them."""
        return blackout_phases({Side.OLD: self.old_marks, Side.NEW: self.new_marks})


@dataclass(frozen=True, slots=True)
class LeakSlopes:
    """Change per generation, by least squares over all successors of one accelerator."""

    accel: str
    generations: int
    fds: float
    threads: float
    mappings: float
    rss_kib: float


@dataclass(frozen=True, slots=True)
class ChainResult:
    """A chain of updates: what happened, and why it stopped if it did not finish."""

    name: str
    planned: int
    records: tuple[UpdateRecord, ...]
    guest: GuestSpec
    seed: int
    ram_verifications: int  # whole-RAM stamp checks of the stopped guest, all passed
    heartbeats: int
    replay: str  # the one command that does this chain again
    failure: str | None = None
    load: LoadSpec | None = None
    baseline: LoadResult | None = None  # the same load without updates, before the chain
    ledger: LoadResult | None = None  # over the whole chain

    @property
    def passed(self) -> bool:
        """Every planned update happened and every check held."""
        return self.failure is None and len(self.records) == self.planned

    def blackout_ms(self) -> Summary | None:
        """Summary of the blackouts; None without an update."""
        return _summary([record.blackout_ns for record in self.records])

    def switchover_ms(self) -> Summary | None:
        """Summary of the gaps over the stop itself."""
        return _summary([record.gaps.switchover.length_ns for record in self.records])

    def background_ms(self) -> Summary | None:
        """Summary of the longest gaps in as long a time without an update."""
        return _summary([record.gaps.background_ns for record in self.records])

    def downtime_ms(self) -> Summary | None:
        """Summary of RESUME minus STOP."""
        return _summary([record.downtime_ns for record in self.records])

    def total_ms(self) -> Summary | None:
        """Summary of command to completion."""
        return _summary([record.total_ns for record in self.records])

    def phase_ms(self) -> dict[str, Summary]:
        """Summary by phase name, in the order of the update."""
        lengths: dict[str, list[float]] = {}
        for record in self.records:
            for phase in record.phases:
                lengths.setdefault(phase.name, []).append(phase.length_ns / NS_PER_MS)
        return {name: Summary.of(values) for name, values in lengths.items()}

    def leak_slopes(self) -> tuple[LeakSlopes, ...]:
        """One entry for each accelerator with enough generations."""
        by_accel: dict[str, list[UpdateRecord]] = {}
        for record in self.records:
            by_accel.setdefault(record.new_accel, []).append(record)
        return tuple(
            _slopes(accel, records)
            for accel, records in by_accel.items()
            if len(records) >= SLOPE_POINTS_MIN
        )

    def median_record(self) -> UpdateRecord | None:
        """The update whose switchover is the median, of those where no other gap hides it."""
        seen = [record for record in self.records if record.switchover_is_seen]
        ordered = sorted(seen or self.records, key=lambda record: record.gaps.switchover.length_ns)
        return ordered[(len(ordered) - 1) // 2] if ordered else None


@dataclass(frozen=True, slots=True)
class DrillResult:
    """Everything that one run of cpr-drill did."""

    chains: tuple[ChainResult, ...]
    leftover_children: int

    @property
    def passed(self) -> bool:
        """All chains passed and nothing was left behind."""
        return (
            bool(self.chains)
            and not self.leftover_children
            and all(chain.passed for chain in self.chains)
        )


def conditions(chain: ChainResult) -> dict[str, str]:
    """What every report must name beside its figures (DESIGN 9)."""
    return {
        "guest": f"built-in, stamping {chain.guest.pages or 'all'} pages",
        "RAM": f"{chain.guest.ram_bytes >> 20} MiB memfd, shared, sealed",
        "vCPUs": str(chain.guest.vcpu_count),
        "devices": _devices_text(chain),
        "load": _load_text(chain),
        "n": str(len(chain.records)),
        "clock": "CLOCK_MONOTONIC of this host, read by the guest",
        "host": f"{platform.system()} {platform.release()}, {os.cpu_count()} CPUs",
        "seed": str(chain.seed),
    }


def _devices_text(chain: ChainResult) -> str:
    text = "16550 serial on a unix socket (handed over), clock"
    return f"{text}, virtio-net on a tap (handed over)" if chain.load else text


def _load_text(chain: ChainResult) -> str:
    text = "the guest's own, and the lab's processes"
    return text if chain.load is None else f"{text}, {chain.load} over the tap"


def to_json(result: DrillResult) -> dict[str, Any]:
    """The drill as plain JSON values; summaries are included so that nobody has to recompute."""
    return {
        "passed": result.passed,
        "leftover_children": result.leftover_children,
        "chains": [_chain_json(chain) for chain in result.chains],
    }


def _chain_json(chain: ChainResult) -> dict[str, Any]:
    plain: dict[str, Any] = dataclasses.asdict(chain)
    plain["passed"] = chain.passed
    plain["conditions"] = conditions(chain)
    plain["blackout_ms"] = _maybe(chain.blackout_ms())
    plain["switchover_ms"] = _maybe(chain.switchover_ms())
    plain["background_ms"] = _maybe(chain.background_ms())
    plain["downtime_ms"] = _maybe(chain.downtime_ms())
    plain["total_ms"] = _maybe(chain.total_ms())
    plain["phase_ms"] = {name: dataclasses.asdict(s) for name, s in chain.phase_ms().items()}
    plain["leak_slopes"] = [dataclasses.asdict(slopes) for slopes in chain.leak_slopes()]
    for record, source in zip(plain["records"], chain.records, strict=True):
        record["blackout_ns"] = source.blackout_ns
    return plain


def _maybe(summary: Summary | None) -> Mapping[str, Any] | None:
    return None if summary is None else dataclasses.asdict(summary)


def _summary(samples_ns: Sequence[float]) -> Summary | None:
    if not samples_ns:
        return None
    return Summary.of([sample / NS_PER_MS for sample in samples_ns])


def _slopes(accel: str, records: Sequence[UpdateRecord]) -> LeakSlopes:
    numbers = [float(record.number) for record in records]
    counters = [record.counters for record in records]
    return LeakSlopes(
        accel=accel,
        generations=len(records),
        fds=linear_slope(numbers, [float(c.fd_count) for c in counters]),
        threads=linear_slope(numbers, [float(c.threads) for c in counters]),
        mappings=linear_slope(numbers, [float(c.mappings) for c in counters]),
        rss_kib=linear_slope(numbers, [c.rss_bytes / 1024 for c in counters]),
    )
