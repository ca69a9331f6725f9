"""The instrument: watches a guest's counter in its RAM from outside and notes when it stood still.

A program of its own (`python -m tools.peer.sampler PATH ADDRESS PERIOD_US`), so that nobody else's
work delays it. It must poll: a guest that stores to memory can notify no one, and a guest that
notified would no longer be undisturbed. It runs at real-time priority where it may, and reports for
each pause how well it could see it, so a late sample is never mistaken for a stopped guest.

Standard output, JSON lines: `settled` once the guest has counted for SETTLE_NS without a long
pause, `result` at the end. The end of standard input ends it, after one more sign of life.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import mmap
import os
import select
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

NS_PER_US = 1000
US_PER_S = 1_000_000
# The guest runs undisturbed when it counted this long without a pause longer than SETTLE_STALL_NS.
SETTLE_NS = 500_000_000
SETTLE_STALL_NS = 50_000_000
# A guest that does not count again this long after the end is dead; the pause is reported open.
LAST_SIGN_NS = 10_000_000_000
PAUSES_KEPT = 1024  # the longest ones; a run has a few hundred at most
REALTIME_PRIORITY = 10  # above everything that is not real-time; a sample takes microseconds


@dataclass(frozen=True, slots=True, order=True)
class Pause:
    """The counter was seen to stand still from `start_ns` to `end_ns`, CLOCK_MONOTONIC.

    True length: `length_ns` plus or minus `resolution_ns`, the spacing of the samples at its ends.
    """

    length_ns: int
    start_ns: int
    end_ns: int
    resolution_ns: int


@dataclass(slots=True)
class PauseFinder:
    """Turns samples into pauses; pure.

    One unchanged sample is needed to call it a pause: a long wait between two samples with progress
    across it says nothing about the guest.
    """

    pauses: list[Pause] = field(default_factory=list)
    samples: int = 0
    longest_period_ns: int = 0
    settled_since_ns: int | None = None
    _value: int | None = None
    _changed_ns: int = 0
    _first_period_ns: int = 0
    _sampled_ns: int = 0
    _unchanged: int = 0

    def sample(self, now_ns: int, value: int) -> None:
        """Take one sample; `now_ns` never goes back."""
        period_ns = now_ns - self._sampled_ns if self.samples else 0
        self.samples += 1
        self._sampled_ns = now_ns
        self.longest_period_ns = max(self.longest_period_ns, period_ns)
        if value == self._value:
            self._unchanged += 1
            return
        if self._value is not None:
            self._progress(now_ns, period_ns)
        self._value, self._changed_ns, self._unchanged = value, now_ns, 0
        self._first_period_ns = period_ns

    def settled(self, now_ns: int) -> bool:
        """Whether the guest has run for SETTLE_NS with no pause to speak of."""
        since = self.settled_since_ns
        if now_ns - self._changed_ns > SETTLE_STALL_NS:
            return False
        return since is not None and now_ns - since >= SETTLE_NS

    def _progress(self, now_ns: int, period_ns: int) -> None:
        length_ns = now_ns - self._changed_ns
        if length_ns > SETTLE_STALL_NS or self.settled_since_ns is None:
            self.settled_since_ns = now_ns
        if self._unchanged:
            resolution_ns = max(period_ns, self._first_period_ns)
            pause = Pause(length_ns, self._changed_ns, now_ns, resolution_ns)
            if len(self.pauses) < PAUSES_KEPT:
                heapq.heappush(self.pauses, pause)
            else:
                heapq.heappushpop(self.pauses, pause)

    @property
    def counting(self) -> bool:
        """Whether the newest sample showed progress."""
        return self._unchanged == 0


def watch(
    read: Callable[[], int], period_s: float, say: Callable[[dict[str, object]], None]
) -> None:
    """Sample until standard input ends; says `settled` and `result`."""
    finder = PauseFinder()
    announced = False
    while not _input_ended(period_s):
        finder.sample(time.monotonic_ns(), read())
        if not announced and finder.settled(time.monotonic_ns()):
            announced = True
            say({"event": "settled"})
    deadline_ns = time.monotonic_ns() + LAST_SIGN_NS
    finder.sample(time.monotonic_ns(), read())
    while not finder.counting and time.monotonic_ns() < deadline_ns:
        _input_ended(0)
        finder.sample(time.monotonic_ns(), read())
    say(
        {
            "event": "result",
            "counting": finder.counting,
            "samples": finder.samples,
            "longest_period_ns": finder.longest_period_ns,
            "realtime": os.sched_getscheduler(0) == os.SCHED_FIFO,
            "pauses": [asdict(pause) for pause in sorted(finder.pauses, reverse=True)],
        }
    )


def _input_ended(wait_s: float) -> bool:
    """Wait a sampling period, or less if standard input ends; the wait is the sampling clock."""
    return bool(select.select([sys.stdin], [], [], wait_s)[0])


def main(argv: Sequence[str] | None = None) -> int:
    """`PATH ADDRESS PERIOD_US`: the memfd by its /proc path, the counter's offset, the period."""
    path, address, period_us = sys.argv[1:] if argv is None else argv
    page, offset = divmod(int(address), mmap.PAGESIZE)
    with contextlib.suppress(PermissionError):  # then `realtime` says false
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(REALTIME_PRIORITY))
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    ram = mmap.mmap(fd, mmap.PAGESIZE, prot=mmap.PROT_READ, offset=page * mmap.PAGESIZE)
    os.close(fd)
    words = memoryview(ram).cast("I")
    index = offset // words.itemsize
    watch(lambda: words[index], int(period_us) / US_PER_S, _say)
    return 0


def _say(message: dict[str, object]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    sys.exit(main())
