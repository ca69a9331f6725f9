"""The groups of measurements: each makes its subjects, samples them in turn, and judges."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.lab.argv import Build, GuestSpec
from tools.lab.bench.plan import (
    HEADLINE_RAM_BYTES,
    PEER_RAM_BYTES,
    SPARSE_PAGES,
    Group,
    Scale,
    device_options,
    fitting,
    size_text,
)
from tools.lab.bench.results import (
    JUDGED_MS,
    GroupResult,
    Row,
    Verdict,
    floor_verdict,
    peer_verdict,
    slope_verdict,
    vcpu_verdict,
)
from tools.lab.bench.rounds import Progress, sample_in_turn
from tools.lab.bench.subjects import FloorSubject, OursSubject, Sample, Subject
from tools.lab.results import NS_PER_MS
from tools.lab.stats import Summary
from tools.peer.argv import our_build, qemu_build
from tools.peer.compare import Side, alternate
from tools.peer.session import GapSample

GIB = 1 << 30
VCPU_COUNTS = (1, 2, 4)
VCPU_JUDGED = 2  # the target names the 2-core machine; 4 vCPUs are reported
PEER_PAIRS = {"kvm": "kvm", "unicorn": "tcg"}  # hardware by hardware, software by software


@dataclass(frozen=True, slots=True)
class Setting:
    """What a run is about."""

    command: tuple[str, ...]
    accels: tuple[str, ...]
    scale: Scale
    qemu: tuple[str, ...] | None = None

    def build(self, accel: str) -> Build:
        """Our VMM with an accelerator."""
        return Build(self.command, accel)

    @property
    def swept_accels(self) -> tuple[str, ...]:
        """The accelerators on which RAM and devices are swept."""
        return self.accels if self.scale.every_accel else self.accels[:1]


async def measure_headline(setting: Setting, progress: Progress) -> GroupResult:
    """Ours and the floor, alternately, for each accelerator."""
    rows: list[Row] = []
    verdicts: list[Verdict] = []
    for accel in setting.accels:
        guest = GuestSpec(HEADLINE_RAM_BYTES)
        silent = GuestSpec(HEADLINE_RAM_BYTES, heartbeat_ms=0)  # the floor has no serial port
        subjects: list[Subject] = [
            OursSubject(f"ours/{accel}", setting.build(accel), guest),
            FloorSubject(f"floor/{accel}", silent, accel),
        ]
        samples = await sample_in_turn(subjects, setting.scale.headline, progress)
        ours = update_row(Group.HEADLINE, f"ours/{accel}", samples, accel, guest)
        floor = update_row(
            Group.HEADLINE, f"floor/{accel}", samples, accel, silent, devices="clock"
        )
        rows += [ours, floor]
        verdicts += [
            floor_verdict(accel, ours.figures[name], floor.figures[name], what)
            for name, what in JUDGED_MS.items()
            if name in ours.figures
        ]
    return GroupResult(tuple(rows), tuple(verdicts))


async def measure_ram(setting: Setting, progress: Progress) -> GroupResult:
    """Blackout against RAM: sparse, and with every page allocated and mapped."""
    rows: list[Row] = []
    verdicts: list[Verdict] = []
    left_out: list[str] = []
    for accel in setting.swept_accels:
        for touched in (False, True) if setting.scale.touched else (False,):
            sizes = setting.scale.ram_bytes
            kind = "touched" if touched else "sparse"
            if touched:
                sizes = fitting(sizes, available_ram_bytes())
                left_out += [
                    f"touched RAM of {size_text(size)} ({accel}): it does not fit beside the "
                    f"smaller ones into half of the {size_text(available_ram_bytes())} available"
                    for size in setting.scale.ram_bytes
                    if size not in sizes
                ]
            guests = {
                f"{kind} {size_text(size)}/{accel}": GuestSpec(
                    size, pages=SPARSE_PAGES, prealloc=touched
                )
                for size in sizes
            }
            found = await _measure(Group.RAM, setting, accel, guests, setting.scale.ram, progress)
            rows += found
            verdicts += _slopes(f"{kind}, {accel}", guests.values(), found)
    return GroupResult(tuple(rows), tuple(verdicts), tuple(left_out))


def _slopes(name: str, guests: Iterable[GuestSpec], rows: Sequence[Row]) -> list[Verdict]:
    """Judge each figure over the sizes for which there is one."""
    judged = []
    for figure, what in JUDGED_MS.items():
        p50_ms_by_gib = {
            guest.ram_bytes / GIB: row.figures[figure].p50
            for guest, row in zip(guests, rows, strict=True)
            if figure in row.figures
        }
        verdict = slope_verdict(name, p50_ms_by_gib, what)
        judged += [verdict] if verdict is not None else []
    return judged


async def measure_vcpus(setting: Setting, progress: Progress) -> GroupResult:
    """Blackout against vCPUs; kvm only, because unicorn has one."""
    if "kvm" not in setting.accels:
        return GroupResult((), left_out=("several vCPUs: only kvm has them",))
    guests = {
        f"{count} vCPUs/kvm": GuestSpec(HEADLINE_RAM_BYTES, vcpu_count=count)
        for count in VCPU_COUNTS
    }
    rows = await _measure(Group.VCPUS, setting, "kvm", guests, setting.scale.vcpus, progress)
    one, judged = (rows[VCPU_COUNTS.index(count)] for count in (1, VCPU_JUDGED))
    verdict = vcpu_verdict(one.figures["blackout_ms"], judged.figures["blackout_ms"], VCPU_JUDGED)
    return GroupResult(tuple(rows), (verdict,))


async def measure_devices(setting: Setting, progress: Progress) -> GroupResult:
    """Blackout against extra devices."""
    rows: list[Row] = []
    for accel in setting.swept_accels:
        guest = GuestSpec(HEADLINE_RAM_BYTES)
        subjects = {
            f"+{count} devices/{accel}": OursSubject(
                f"+{count} devices/{accel}",
                setting.build(accel),
                guest,
                extra=device_options(count),
            )
            for count in setting.scale.device_counts
        }
        samples = await sample_in_turn(list(subjects.values()), setting.scale.devices, progress)
        rows += [
            update_row(
                Group.DEVICES,
                name,
                samples,
                accel,
                guest,
                devices=f"{STANDARD_DEVICES}, {name.partition('/')[0]}",
            )
            for name in subjects
        ]
    return GroupResult(tuple(rows))


async def measure_peer(setting: Setting, progress: Progress) -> GroupResult:
    """Ours beside a real QEMU: the same boot sector, the same instrument, alternately."""
    if setting.qemu is None:
        return GroupResult((), left_out=("beside QEMU: no --qemu CMD (tools/fetch-peer qemu)",))
    rows: list[Row] = []
    verdicts: list[Verdict] = []
    for accel in setting.accels:
        builds = (
            our_build(setting.command, accel),
            qemu_build(setting.qemu, PEER_PAIRS[accel]),
        )
        samples: dict[str, list[GapSample]] = {build.name: [] for build in builds}
        with tempfile.TemporaryDirectory(prefix="cpr-peer-") as run_dir:
            async for build, sample in alternate(
                builds,
                ram_bytes=PEER_RAM_BYTES,
                run_dir=Path(run_dir),
                updates=setting.scale.peer,
            ):
                progress(f"{build.name}: {sample.gap_ms:.2f} ms")
                samples[build.name].append(sample)
        sides = [Side(build.name, tuple(samples[build.name])) for build in builds]
        rows += [_peer_row(side) for side in sides]
        ours, theirs = sides
        verdicts.append(peer_verdict(ours.name, ours.gap_ms, theirs.name, theirs.gap_ms))
    return GroupResult(tuple(rows), tuple(verdicts))


# ---- rows ----------------------------------------------------------------------------------------

STANDARD_DEVICES = "16550 serial on a unix socket (handed over), clock, PC ports"


def update_row(
    group: Group,
    name: str,
    samples: Mapping[str, Sequence[Sample]],
    accel: str,
    guest: GuestSpec,
    *,
    devices: str = STANDARD_DEVICES,
) -> Row:
    """Summarise one subject's samples."""
    own = samples[name]
    figures = {}
    for name_ms, values_ns in (
        ("blackout_ms", [sample.blackout_ns for sample in own]),
        ("switch_ms", [sample.switch_ns for sample in own]),
        ("downtime_ms", [sample.downtime_ns for sample in own]),
    ):
        known = [value_ns / NS_PER_MS for value_ns in values_ns if value_ns is not None]
        if known:
            figures[name_ms] = Summary.of(known)
    return Row(group.value, name, guest_conditions(accel, guest, devices), figures, phases_ms(own))


def phases_ms(samples: Sequence[Sample]) -> dict[str, float]:
    """Find the p50 of each phase."""
    lengths: dict[str, list[float]] = {}
    for sample in samples:
        for phase in sample.phases:
            lengths.setdefault(phase.name, []).append(phase.length_ns / NS_PER_MS)
    return {name: Summary.of(values).p50 for name, values in lengths.items()}


def guest_conditions(accel: str, guest: GuestSpec, devices: str) -> dict[str, str]:
    """What every figure must be read with (DESIGN 9); clock, load and host are the run's."""
    touched = "every page allocated and mapped" if guest.prealloc else "allocated as touched"
    return {
        "guest": f"built-in, stamping {guest.pages or 'all'} pages",
        "accel": accel,
        "RAM": f"{size_text(guest.ram_bytes)} memfd, {touched}",
        "vCPUs": str(guest.vcpu_count),
        "devices": devices,
    }


def _peer_row(side: Side) -> Row:
    return Row(
        Group.PEER.value,
        side.name,
        {
            "guest": "512-byte real-mode boot sector that counts",
            "accel": side.name.partition("/")[2],
            "RAM": size_text(PEER_RAM_BYTES),
            "vCPUs": "1",
            "devices": "none asked for (-nodefaults)",
            "measured": f"stall of the counter, sampled outside; {len(side.quiet)} quiet updates "
            f"of {len(side.samples)}",
        },
        {"gap_ms": side.gap_ms, "switch_ms": side.switch_ms},
    )


async def _measure(
    group: Group,
    setting: Setting,
    accel: str,
    guests: Mapping[str, GuestSpec],
    count: int,
    progress: Progress,
) -> list[Row]:
    subjects = [OursSubject(name, setting.build(accel), guest) for name, guest in guests.items()]
    samples = await sample_in_turn(subjects, count, progress)
    return [update_row(group, name, samples, accel, guest) for name, guest in guests.items()]


def available_ram_bytes() -> int:
    """Read MemAvailable: what can be touched without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) << 10
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
