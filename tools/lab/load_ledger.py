"""The loss ledger (DESIGN 9): what was sent, received, lost, duplicated and reordered; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# How far back a late frame can still be told from a repeated one; beyond it counts as duplicated.
# Far more than any queue on the way holds.
WINDOW = 1 << 16


@dataclass(frozen=True, slots=True)
class Direction:
    """One flow in one direction, by sequence numbers."""

    name: str
    sent: int
    received: int
    lost: int
    duplicated: int
    reordered: int

    @property
    def clean(self) -> bool:
        """Whether every frame came once and in order."""
        return not (self.lost or self.duplicated or self.reordered)

    def __str__(self) -> str:
        return (
            f"{self.name}: sent {self.sent}, received {self.received}, lost {self.lost}, "
            f"duplicated {self.duplicated}, reordered {self.reordered}"
        )


@dataclass(slots=True)
class SequenceLedger:
    """Counts the sequence numbers of one flow as they come."""

    received: int = 0
    duplicated: int = 0
    reordered: int = 0
    first: int = 0
    next: int = 0  # one more than the highest number that came
    _missing: set[int] = field(default_factory=set)

    def note(self, sequence: int) -> None:
        """One frame came."""
        if not self.received:
            self.first = self.next = sequence
        self.received += 1
        if sequence >= self.next:
            self._missing.update(range(max(self.next, sequence - WINDOW), sequence))
            self.next = sequence + 1
        elif sequence in self._missing:
            self._missing.remove(sequence)
            self.reordered += 1
        else:
            self.duplicated += 1

    def direction(self, name: str, sent: int) -> Direction:
        """Compare with what the sender says."""
        lost = sent - (self.received - self.duplicated)
        return Direction(name, sent, self.received, lost, self.duplicated, self.reordered)


@dataclass(frozen=True, slots=True)
class StreamResult:
    """One TCP stream: what went out and what came back, as hashes of both ends."""

    bytes_sent: int
    bytes_received: int
    exact: bool  # both hashes agree
    error: str = ""  # a reset, for example

    @property
    def clean(self) -> bool:
        """Whether every byte came back in order and the stream ended well."""
        return self.exact and not self.error


@dataclass(frozen=True, slots=True)
class LoadResult:
    """Everything that one run of the load found."""

    seconds: float
    directions: tuple[Direction, ...]
    streams: tuple[StreamResult, ...]
    longest_ping_hole_ms: float | None  # between two replies; None without ping
    longest_round_trip_ms: float  # of any UDP frame
    tap_tx_dropped: int  # by the kernel, on the way to the guest
    guest_resets: int = 0  # TCP connections that the guest lost

    def problems(self) -> tuple[str, ...]:
        """What is not as it should be; empty for a run without loss."""
        wrong = [str(direction) for direction in self.directions if not direction.clean]
        for number, stream in enumerate(self.streams):
            if not stream.clean:
                wrong.append(
                    f"TCP stream {number}: {stream.bytes_sent} bytes sent, "
                    f"{stream.bytes_received} came back, "
                    f"{stream.error or 'the hashes of both ends differ'}"
                )
        if self.tap_tx_dropped:
            wrong.append(f"the tap dropped {self.tap_tx_dropped} frames")
        if self.guest_resets:
            wrong.append(f"the guest lost {self.guest_resets} TCP connections")
        return tuple(wrong)

    def totals(self) -> Mapping[str, int]:
        """Sums over all directions."""
        names = ("sent", "received", "lost", "duplicated", "reordered")
        return {name: sum(getattr(each, name) for each in self.directions) for name in names}

    def summary(self) -> str:
        """One line."""
        totals = ", ".join(f"{name} {value}" for name, value in self.totals().items())
        exact = sum(stream.clean for stream in self.streams)
        hole = self.longest_ping_hole_ms
        ping = "" if hole is None else f"; longest ping hole {hole:.1f} ms"
        return (
            f"{self.seconds:.1f} s: frames {totals}; TCP {exact}/{len(self.streams)} byte-exact"
            f"{ping}; longest UDP round trip {self.longest_round_trip_ms:.1f} ms; tap dropped "
            f"{self.tap_tx_dropped}"
        )


def predicted_loss(frames: float, txqueuelen: int) -> int:
    """Frames lost when so many arrive (pps x blackout) while nobody reads the tap.

    The tap's queue holds `txqueuelen` of them; the kernel drops the rest.
    """
    return max(0, round(frames) - txqueuelen)
