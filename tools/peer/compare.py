"""Two VMMs measured alternately in one run, so that the machine's mood is the same for both.

The one that is not being measured is stopped: it takes no core from the other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.lab.stats import Summary
from tools.peer.argv import PeerBuild
from tools.peer.session import GapSample, PeerSession

# Before the update nothing paused the guest for so long: what follows is the update's doing.
QUIET_NOISE_MS = 3.0


@dataclass(frozen=True, slots=True)
class Side:
    """All updates of one VMM, in order."""

    name: str
    samples: tuple[GapSample, ...]

    @property
    def quiet(self) -> tuple[GapSample, ...]:
        """Those on a quiet machine, or all when there is none."""
        chosen = tuple(sample for sample in self.samples if sample.noise_ms < QUIET_NOISE_MS)
        return chosen or self.samples

    @property
    def gap_ms(self) -> Summary:
        """Guest-felt gap over the quiet updates."""
        return Summary.of([sample.gap_ms for sample in self.quiet])

    @property
    def switch_ms(self) -> Summary:
        """The pause across STOP..RESUME; the gap itself where those events were not seen."""
        return Summary.of(
            [s.gap_ms if s.switch_ms is None else s.switch_ms for s in self.quiet],
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """Ours beside theirs; small is good.

    `ratio` is over the longest pause of the whole update, which on a small machine holds the pauses
    that starting a successor causes. `switch_ratio` is over the pause from STOP to RESUME alone.
    """

    ours: Side
    theirs: Side
    ram_bytes: int

    @property
    def ratio(self) -> float:
        """Ours over theirs, p50 of the guest-felt gap."""
        return self.ours.gap_ms.p50 / self.theirs.gap_ms.p50

    @property
    def switch_ratio(self) -> float:
        """Ours over theirs, p50 of the pause at the switch."""
        return self.ours.switch_ms.p50 / self.theirs.switch_ms.p50


async def measure_gap(
    build: PeerBuild, *, ram_bytes: int, run_dir: Path, updates: int
) -> tuple[GapSample, ...]:
    """Boot one VMM and update it `updates` times; its processes are gone afterwards."""
    async with PeerSession(build, ram_bytes=ram_bytes, run_dir=run_dir) as session:
        return tuple([await session.update() for _ in range(updates)])


async def alternate(
    builds: Sequence[PeerBuild], *, ram_bytes: int, run_dir: Path, updates: int
) -> AsyncIterator[tuple[PeerBuild, GapSample]]:
    """Yield each update of each build in turn: a, b, a, b."""
    sessions = [
        PeerSession(build, ram_bytes=ram_bytes, run_dir=run_dir / str(number))
        for number, build in enumerate(builds)
    ]
    try:
        for session in sessions:
            await session.start()
            await session.pause()
        for _ in range(updates):
            for session in sessions:
                await session.resume()
                yield session.build, await session.update()
                await session.pause()
    finally:
        for session in sessions:
            await session.close()
