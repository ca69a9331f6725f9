"""How long the lab waits for each event, and the one way in which it waits.

Deadlines only bound a broken run: they are generous, because the machine may be shared and slow,
and a passing run never comes near them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

from tools.lab.errors import DeadlineError

T = TypeVar("T")

MS_PER_S = 1000

LAUNCH_MS = 30_000  # exec to the first QMP reply: imports from a cold disk on a busy machine
QMP_REPLY_MS = 20_000  # longer than any phase deadline of an update that a command may wait for
UPDATE_MS = 60_000  # from `migrate` to the guest running in the successor
GUEST_PROGRESS_MS = 30_000  # to the next heartbeat; the guest sends several a second
EXIT_MS = 15_000  # from `quit` or SIGTERM to the end of the process
DRAIN_MS = 10_000  # the last serial bytes of a stopped guest


async def within(deadline_ms: int, what: str, event: Awaitable[T]) -> T:
    """Wait for `event`; DeadlineError names `what` when it does not come in `deadline_ms`."""
    scope = asyncio.timeout(deadline_ms / MS_PER_S)
    try:
        async with scope:
            return await event
    except TimeoutError as error:
        if not scope.expired():
            raise  # a time-out of the event's own
        raise DeadlineError(f"{what}: nothing came within {deadline_ms} ms") from error


async def all_or_first_failure(*work: Coroutine[Any, Any, None], needed: int) -> None:
    """Run all; return when the first `needed` of them are done, raise as soon as any one fails."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in work]
    try:
        waiting = set(tasks)
        while not all(task.done() for task in tasks[:needed]):
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
