"""System calls that fail in either process during an update, injected from outside with strace.

Nothing of the product knows about it: whatever call fails, wherever, the guest goes on in one
process, and the next update succeeds.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from qemu.qmp import ExecuteError

from tests.scoreboard.rig import Rig, ended, rig, status
from tools.lab.deadlines import LAUNCH_MS, within
from tools.lab.launcher import Launched
from tools.lab.process import VmmProcess

pytestmark = pytest.mark.needs_strace
# Each of the first calls of an update in turn, and the errors that the kernel may give.
SOURCE = [
    *(("sendmsg", "EPIPE", n) for n in (1, 2, 3, 4, 5)),
    *(("recvmsg", "ECONNRESET", n) for n in (1, 2, 3, 4, 5, 6)),
    *(("sendmsg", "ENOBUFS", n) for n in (1, 3)),
    ("fcntl", "EIO", 1),
]
TARGET = [
    *(("sendmsg", "EPIPE", n) for n in (1, 2, 3, 4, 5)),
    *(("recvmsg", "ECONNRESET", n) for n in (1, 2, 3, 4, 5)),
    *(("ioctl", "ENOMEM", n) for n in (1, 20, 60)),
    *(("mmap", "ENOMEM", n) for n in (1, 2, 3, 5)),
    ("fcntl", "EIO", 1),
    ("openat", "EMFILE", 1),
    ("accept4", "EMFILE", 1),
    ("fstat", "EIO", 1),
]


@contextlib.asynccontextmanager
async def failing(process: VmmProcess, call: str, error: str, number: int) -> AsyncIterator[None]:
    """The `number`th `call` of the process from now on fails with `error`."""
    strace = await asyncio.create_subprocess_exec(
        *("strace", "-f", "-o", "/dev/null", "-e", f"trace={call}"),
        *("-e", f"inject={call}:error={error}:when={number}", "-p", str(process.pid)),
        stderr=asyncio.subprocess.PIPE,
    )
    assert strace.stderr is not None
    said = await within(LAUNCH_MS, "strace attaches", strace.stderr.readline())
    assert b"attached" in said, said
    try:
        yield
    finally:
        if strace.returncode is None:
            strace.terminate()
        await within(LAUNCH_MS, "strace ends", strace.communicate())


async def update_under(r: Rig, new: Launched) -> None:
    """An update that may end in either process; the successor of one that failed is gone then."""
    migrate = await r.begin(new)
    await asyncio.wait([migrate])
    settled = [asyncio.ensure_future(r.last_word()), asyncio.ensure_future(new.process.wait_exit())]
    await asyncio.wait(settled, return_when=asyncio.FIRST_COMPLETED)
    for each in settled:
        each.cancel()
    await asyncio.gather(*settled, return_exceptions=True)
    if await status(r.old) == "running":
        assert await ended(new.process) != 0
        assert new.process.log_path.read_text().strip()  # why (the last word may be a library's)


async def one_owner(r: Rig, new: Launched) -> None:
    owners = [p for p in (r.old, new.process) if p.alive and await status(p) == "running"]
    assert len(owners) == 1
    (owner,) = owners
    await r.guest_goes_on()
    r.old = owner
    await r.update()
    await r.guest_goes_on()


@pytest.mark.long
@pytest.mark.parametrize(("call", "error", "number"), SOURCE)
async def test_a_call_of_the_old_process_fails(call: str, error: str, number: int) -> None:
    async with rig() as r:
        new = await r.successor()
        async with failing(r.old, call, error, number):
            await update_under(r, new)
        await one_owner(r, new)


@pytest.mark.long
@pytest.mark.parametrize("call", ["socket", "connect"])
async def test_an_old_process_that_cannot_connect_says_so_and_the_successor_waits_on(
    call: str,
) -> None:
    async with rig() as r:
        new = await r.successor()
        async with failing(r.old, call, "EMFILE", 1):
            migrate = await r.begin(new)
            with pytest.raises(ExecuteError, match="Too many open files"):
                await migrate
        assert await status(r.old) == "running"
        assert await status(new.process) == "inmigrate"
        await r.update_ends(new)
        assert await status(new.process) == "running"
        await r.guest_goes_on()


@pytest.mark.long
@pytest.mark.parametrize(("call", "error", "number"), TARGET)
async def test_a_call_of_the_successor_fails(call: str, error: str, number: int) -> None:
    async with rig() as r:
        new = await r.successor()
        async with failing(new.process, call, error, number):
            await update_under(r, new)
        await one_owner(r, new)
