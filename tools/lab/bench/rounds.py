"""Every subject in turn, again and again: what drifts, drifts for all of them alike."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from tools.lab.bench.subjects import Sample, Subject

Progress = Callable[[str], None]


async def sample_in_turn(
    subjects: Sequence[Subject], count: int, progress: Progress
) -> dict[str, list[Sample]]:
    """Take `count` samples of each subject; every round begins with another one.

    Raises LabError when a hand-over fails: a benchmark of failures means nothing.
    """
    samples: dict[str, list[Sample]] = {subject.name: [] for subject in subjects}
    async with contextlib.AsyncExitStack() as alive:
        for subject in subjects:
            progress(f"starting {subject.name}")
            await alive.enter_async_context(subject)
        for number in range(count):
            first = number % len(subjects)
            for subject in (*subjects[first:], *subjects[:first]):
                progress(f"round {number + 1}/{count}: {subject.name}")
                samples[subject.name].append(await subject.sample())
    return samples
