from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vmm.update import placement
from vmm.update.placement import Placement

PROCESSORS = sorted(os.sched_getaffinity(0))
several_processors = pytest.mark.skipif(
    len(PROCESSORS) < 2, reason="nothing to choose: this process may use one processor only"
)


@contextmanager
def threads(count: int) -> Iterator[list[int]]:
    """Kernel ids of that many threads, which live as long as the block."""
    over = threading.Event()
    running = [threading.Thread(target=over.wait) for _ in range(count)]
    for thread in running:
        thread.start()
    try:
        yield [thread.native_id or 0 for thread in running]
    finally:
        over.set()
        for thread in running:
            thread.join()


def places(thread_ids: list[int]) -> list[list[int]]:
    return [sorted(os.sched_getaffinity(thread_id)) for thread_id in thread_ids]


@several_processors
async def test_vcpus_that_leave_no_processor_idle_get_one_each_and_then_all_again() -> None:
    placed = Placement(asyncio.get_running_loop())
    with threads(len(PROCESSORS) + 1) as ids:
        placed.begin(ids)
        assert places(ids) == [[p] for p in (*PROCESSORS, PROCESSORS[0])]
        placed.begin(ids)
        placed.end()
        assert places(ids) == [PROCESSORS] * len(ids)
        placed.end()


@several_processors
async def test_with_a_processor_to_spare_the_kernel_places_them() -> None:
    placed = Placement(asyncio.get_running_loop())
    with threads(len(PROCESSORS) - 1) as ids:
        placed.begin(ids)
        assert places(ids) == [PROCESSORS] * len(ids)


@several_processors
async def test_what_the_user_placed_stays_there() -> None:
    placed = Placement(asyncio.get_running_loop())
    with threads(len(PROCESSORS)) as ids:
        os.sched_setaffinity(ids[0], {PROCESSORS[1]})
        placed.begin(ids)
        assert places(ids)[0] == [PROCESSORS[1]]
        placed.end()
        assert places(ids)[0] == [PROCESSORS[1]]


@several_processors
async def test_they_stay_until_both_processes_have_wound_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(placement, "AFTERMATH_MS", 1)
    loop = asyncio.get_running_loop()
    placed = Placement(loop)
    with threads(len(PROCESSORS)) as ids:
        placed.begin(ids)
        placed.end_soon()
        assert places(ids) == [[p] for p in PROCESSORS]
        later = asyncio.Event()
        loop.call_later(0.01, later.set)
        await later.wait()
        assert places(ids) == [PROCESSORS] * len(ids)


@several_processors
async def test_the_next_update_keeps_them_where_they_are() -> None:
    placed = Placement(asyncio.get_running_loop())
    with threads(len(PROCESSORS)) as ids:
        placed.begin(ids)
        placed.end_soon()
        placed.begin(ids)
        assert places(ids) == [[p] for p in PROCESSORS]
        placed.end()
        assert places(ids) == [PROCESSORS] * len(ids)


@several_processors
async def test_a_thread_that_has_ended_is_no_matter() -> None:
    placed = Placement(asyncio.get_running_loop())
    with threads(len(PROCESSORS)) as ids:
        placed.begin(ids)
    placed.end()
