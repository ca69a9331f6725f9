"""What is measured: groups, sizes, how often, and what fits into this machine; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

MIB, GIB = 1 << 20, 1 << 30
HEADLINE_RAM_BYTES = 256 * MIB
PEER_RAM_BYTES = 64 * MIB  # QEMU's own migration tests use guests of about this size
# The guest's working set where RAM is sparse: it never touches more, whatever the size of RAM.
SPARSE_PAGES = 4096
# Touched RAM of all guests alive at once may take this part of what the machine can give.
TOUCHED_SHARE = 0.5
DEVICES_MAX = 4


class Group(Enum):
    """What can be asked for with --only."""

    HEADLINE = "headline"  # ours beside the floor
    RAM = "ram"
    VCPUS = "vcpus"
    DEVICES = "devices"
    NICS = "nics"
    PATH = "path"  # of a frame, without an update
    ACCEL = "accel"  # kick latency, exits per second
    PROCESS = "process"  # start-up time, memory
    PEER = "peer"  # beside a real QEMU


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of everything. Counts are samples of each subject."""

    headline: int
    ram: int
    vcpus: int
    devices: int
    peer: int
    kicks: int
    exits: int
    frames: int
    starts: int
    ram_bytes: tuple[int, ...]
    touched: bool
    device_counts: tuple[int, ...]
    every_accel: bool  # RAM and devices on each accelerator, or on the first only

    def with_count(self, count: int) -> Scale:
        """Take `count` samples of every subject that is handed over."""
        return replace(self, headline=count, ram=count, vcpus=count, devices=count, peer=count)


FULL = Scale(
    headline=30,
    ram=20,
    vcpus=20,
    devices=20,
    peer=7,
    kicks=500,
    exits=50_000,
    frames=5_000,
    starts=10,
    ram_bytes=(64 * MIB, 256 * MIB, GIB, 2 * GIB, 4 * GIB, 8 * GIB),
    touched=True,
    device_counts=tuple(range(DEVICES_MAX + 1)),
    every_accel=True,
)
QUICK = Scale(
    headline=8,
    ram=4,
    vcpus=4,
    devices=4,
    peer=2,
    kicks=100,
    exits=10_000,
    frames=500,
    starts=3,
    ram_bytes=(64 * MIB, GIB, 4 * GIB, 8 * GIB),
    touched=False,
    device_counts=(0, DEVICES_MAX),
    every_accel=False,
)


def fitting(sizes_bytes: Sequence[int], available_bytes: int) -> tuple[int, ...]:
    """Return the smallest sizes that may all be touched at once on this machine."""
    budget_bytes = int(available_bytes * TOUCHED_SHARE)
    chosen: list[int] = []
    for size_bytes in sorted(sizes_bytes):
        if sum(chosen) + size_bytes > budget_bytes:
            break
        chosen.append(size_bytes)
    return tuple(chosen)


def size_text(size_bytes: int) -> str:
    """Write 256M or 4G as on the command line."""
    if size_bytes % GIB == 0:
        return f"{size_bytes // GIB}G"
    return f"{size_bytes // MIB}M"


def device_options(count: int) -> tuple[str, ...]:
    """Command line of `count` extra devices: COM2 to COM4, then a debug console.

    ValueError beyond DEVICES_MAX.
    """
    if not 0 <= count <= DEVICES_MAX:
        raise ValueError(f"{count} extra devices: expected 0..{DEVICES_MAX}")
    words: list[str] = []
    for number in range(count):
        words += ["-chardev", f"null,id=extra{number}"]
        if number < DEVICES_MAX - 1:
            words += ["-serial", f"chardev:extra{number}"]
        else:
            words += ["-device", f"isa-debugcon,chardev=extra{number}"]
    return tuple(words)
