"""The floor: the smallest honest hand-over of the same guest on this machine.

Two bare processes that do nothing else (`tools.lab.floor_side`). Both have RAM mapped, VM and vCPUs
made, memory slots registered, and every path warmed by hand-overs that are not counted. A hand-over
is: kick, read the whole CPU state, one CBOR message over one blocking socket, set it, run. No
acknowledgement, no event loop, no check, no device state, no lease: what a live update must cost at
least here, and nothing of what it needs to be safe. The guest goes back and forth, so every
hand-over is warm, while a real successor does it once in its life.

What the guest felt is the time between two of its own clock readings, the last here and the first
there, which is how the guest itself measures a gap.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import IO, Self

from guestram.memfd import MemfdOptions, RamMemfd
from tools.lab.argv import GuestSpec
from tools.lab.deadlines import GUEST_PROGRESS_MS, LAUNCH_MS, within
from tools.lab.errors import LaunchError
from tools.lab.floor_side import BLOCK_ID, ORDER_HAND_OVER, ORDER_RUN, PROGRESS, READY
from vmm.boot.guest.report import REPORT_ADDRESS, GuestReport, parse, report_size_bytes

WARM_UP_HANDOVERS = 6
SIDE = ("-m", "tools.lab.floor_side")
_LOG_TAIL_BYTES = 2000


class Floor:
    """Two bare processes and one guest; `async with` makes and ends them.

    Raises LaunchError when a side does not come up or ends, with the end of its stderr.
    """

    def __init__(self, guest: GuestSpec, accel: str) -> None:
        self.guest = guest
        self.accel = accel
        self._owned = contextlib.ExitStack()
        self._sides: tuple[_Side, _Side]
        self._memfd: RamMemfd
        self._holder = 0  # which side has the guest

    async def __aenter__(self) -> Self:
        try:
            await self._start()
            for _ in range(WARM_UP_HANDOVERS):
                await self.hand_over()
        except BaseException:
            self._owned.close()
            raise
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._owned.close()

    async def hand_over(self) -> int:
        """Move the guest to the other side; it runs there when this returns.

        Returns what the vCPU that waited longest felt, in ns.
        """
        await self._sides[self._holder].say(ORDER_HAND_OVER)
        self._holder = 1 - self._holder
        return await self._progress()

    def pause(self) -> None:
        """Stop both processes as they are; the guest stands still."""
        for side in self._sides:
            side.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let both go on; the guest's next gap is the pause."""
        for side in self._sides:
            side.signal(signal.SIGCONT)

    async def _start(self) -> None:
        guest = self.guest
        memfd = self._owned.enter_context(
            RamMemfd.create(BLOCK_ID, MemfdOptions(size_bytes=guest.ram_bytes))
        )
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with left, right:
            self._sides = (
                self._owned.enter_context(self._side(memfd, left, has_guest=True)),
                self._owned.enter_context(self._side(memfd, right, has_guest=False)),
            )
        for side in self._sides:
            await side.hear(len(READY), LAUNCH_MS)
            await side.say(ORDER_RUN)
        self._memfd = memfd
        await self._progress()

    async def _progress(self) -> int:
        """Wait until every vCPU goes on; returns the longest of their gaps."""
        longest_ns = 0
        for _vcpu in range(self.guest.vcpu_count):
            message = await self._sides[self._holder].hear(PROGRESS.size, GUEST_PROGRESS_MS)
            start_ns, end_ns = PROGRESS.unpack(message)
            longest_ns = max(longest_ns, end_ns - start_ns)
        return longest_ns

    def report(self) -> GuestReport:
        """Read what the guest says of itself, as it stands now."""
        size_bytes = report_size_bytes(self.guest.vcpu_count)
        return parse(os.pread(self._memfd.fileno(), size_bytes, REPORT_ADDRESS))

    def _side(self, memfd: RamMemfd, handover: socket.socket, *, has_guest: bool) -> _Side:
        order = {
            "accel": self.accel,
            "ram_bytes": self.guest.ram_bytes,
            "vcpu_count": self.guest.vcpu_count,
            "append": self.guest.append,
            "ram_fd": memfd.fileno(),
            "ram_identity": memfd.identity().to_map(),
            "handover_fd": handover.fileno(),
            "has_guest": has_guest,
        }
        return _Side(order, [memfd.fileno(), handover.fileno()])


class _Side:
    """One bare process, its orders and its stderr; leaving the context ends it."""

    def __init__(self, order: dict[str, object], fds: list[int]) -> None:
        with contextlib.ExitStack() as undo:
            self._log: IO[bytes] = undo.enter_context(tempfile.TemporaryFile())
            self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.enter_context(self._orders)
            self._orders.setblocking(False)
            with theirs:
                argument = json.dumps({**order, "orders_fd": theirs.fileno()})
                self._process = undo.enter_context(
                    subprocess.Popen(
                        [sys.executable, *SIDE, argument],
                        stdin=subprocess.DEVNULL,
                        stdout=self._log,
                        stderr=self._log,
                        pass_fds=[*fds, theirs.fileno()],
                    )
                )
            undo.callback(self._process.kill)
            self._owned = undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._owned.close()

    def signal(self, number: signal.Signals) -> None:
        """Send the process a signal."""
        self._process.send_signal(number)

    async def say(self, word: bytes) -> None:
        """Give an order; never blocks for long, because the side always listens."""
        await asyncio.get_running_loop().sock_sendall(self._orders, word)

    async def hear(self, size_bytes: int, deadline_ms: int) -> bytes:
        """Wait for a message of the side.

        Raises LaunchError when it has ended, DeadlineError when it says nothing.
        """
        loop = asyncio.get_running_loop()
        what = f"floor: a message from process {self._process.pid}"
        try:
            got = await within(deadline_ms, what, loop.sock_recv(self._orders, size_bytes))
        except ConnectionResetError:
            got = b""
        if len(got) != size_bytes:
            raise LaunchError(f"{what} should have come; its stderr ends with: {self._log_tail()}")
        return got

    def _log_tail(self) -> str:
        self._log.seek(0)
        return self._log.read()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip() or "(nothing)"
