"""Faults on request: a drill names a step of an update, and this process fails exactly there.

Every action of the handshake table is such a step, on both sides, before it and after it, so none
can be forgotten. The migration parameter `x-cpr-fault` asks for one fault in the next update of
this process; without it the driver and the channel have no injector, which costs them one
comparison with None a step. The text is ROLE/WHEN/ACTION/FAULT, for example
`target/before/LOAD_STATE/kill`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from cpr.channel import Channel
from cpr.phases import Action, Role
from vmm.errors import MigrationError
from vmm.say import say


class When(Enum):
    """Which side of an action."""

    BEFORE = "before"
    AFTER = "after"


class Fault(Enum):
    """What goes wrong.

    A full disk is not among them: no step of an update writes to a file. What devices write is
    filled up in tests/integration/test_full_disk.py.
    """

    KILL = "kill"  # SIGKILL
    HANG = "hang"  # SIGSTOP; whoever asked for it lets the process go on
    EOF = "eof"  # the channel is shut down, both ways
    HALF_CLOSE = "half-close"  # … one way: we still hear the peer
    RESET = "reset"  # the kernel reports the connection as reset
    SHORT = "short"  # half of the action's frame, then the end of the channel
    FLIP = "flip"  # one bit of the action's frame is another
    DUPLICATE = "duplicate"  # the action's frame comes twice
    FD_MISSING = "fd-missing"  # one fd less than the frame says
    FD_WRONG = "fd-wrong"  # another file in the place of the first fd
    NO_FDS = "no-fds"  # the process may not open another file (EMFILE)
    NO_MEMORY = "no-memory"  # the process may not map another megabyte (ENOMEM)


FRAME_FAULTS = frozenset(
    {Fault.SHORT, Fault.FLIP, Fault.DUPLICATE, Fault.FD_MISSING, Fault.FD_WRONG}
)
_SPARE_BYTES = 1 << 20
_FLIPPED_BIT = 1 << 3


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """One fault at one step."""

    role: Role
    when: When
    action: Action
    fault: Fault

    @classmethod
    def parse(cls, text: str) -> FaultPlan:
        """Read ROLE/WHEN/ACTION/FAULT. Raises MigrationError naming the part and the choices."""
        parts = text.split("/")
        if len(parts) != len(_PARTS):
            raise MigrationError(f"x-cpr-fault: expected {'/'.join(_PARTS)}, got '{text}'")
        chosen = []
        for part, choices, word in zip(_PARTS, _CHOICES, parts, strict=True):
            if word not in choices:
                raise MigrationError(
                    f"x-cpr-fault: {part} '{word}' is not one of {', '.join(choices)}"
                )
            chosen.append(choices[word])
        plan = cls(*chosen)
        if plan.fault in FRAME_FAULTS and not plan.sends_frame:
            raise MigrationError(f"x-cpr-fault: {plan.action.name} sends no frame to damage")
        return plan

    @property
    def sends_frame(self) -> bool:
        """Whether the action puts a frame on the channel."""
        return self.action in _SENDS

    def __str__(self) -> str:
        return f"{self.role.value}/{self.when.value}/{self.action.name}/{self.fault.value}"


_PARTS = ("ROLE", "WHEN", "ACTION", "FAULT")
_CHOICES: tuple[dict[str, Any], ...] = (
    {role.value: role for role in Role},
    {when.value: when for when in When},
    {action.name: action for action in Action},
    {fault.value: fault for fault in Fault},
)
_SENDS = frozenset(
    action for action in Action if action.name.startswith("SEND_") or action is Action.REHEARSE
)


class FaultInjector:
    """Carries out one plan, once, in one update (implements cpr.driver.Steps)."""

    def __init__(self, plan: FaultPlan) -> None:
        self._plan = plan
        self._due = True
        self._cut_after: Action | None = None
        self._undo = contextlib.ExitStack()

    def before(self, action: Action, channel: Channel | None) -> None:
        """See cpr.driver.Steps."""
        if action in (Action.REPORT, Action.COMPLETE):
            self._undo.close()  # the update is over: what this process lacked it may have again
        self._reach(When.BEFORE, action, channel)

    def after(self, action: Action, channel: Channel | None) -> None:
        """See cpr.driver.Steps."""
        if action is self._cut_after and channel is not None:
            self._cut_after = None
            channel.shutdown(socket.SHUT_RDWR)
        self._reach(When.AFTER, action, channel)

    def _reach(self, when: When, action: Action, channel: Channel | None) -> None:
        if self._due and (when, action) == (self._plan.when, self._plan.action):
            self._due = False
            say(f"x-cpr-fault: {self._plan}")
            self._inject(channel)

    def close(self) -> None:
        """Give back what was taken from this process."""
        self._undo.close()

    def _inject(self, channel: Channel | None) -> None:
        fault = self._plan.fault
        if fault is Fault.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault is Fault.HANG:
            os.kill(os.getpid(), signal.SIGSTOP)
        elif fault is Fault.NO_FDS:
            self._lower(resource.RLIMIT_NOFILE, len(list(Path("/proc/self/fd").iterdir())) - 1)
        elif fault is Fault.NO_MEMORY:
            self._lower(resource.RLIMIT_AS, _mapped_bytes() + _SPARE_BYTES)
        elif channel is None:
            raise MigrationError(f"x-cpr-fault: {self._plan}: there is no channel yet")
        elif fault is Fault.EOF:
            channel.shutdown(socket.SHUT_RDWR)
        elif fault is Fault.HALF_CLOSE:
            channel.shutdown(socket.SHUT_WR)
        elif fault is Fault.RESET:
            channel.break_off(os.strerror(errno.ECONNRESET))
        else:
            channel.tamper = self._tamper

    def _lower(self, limit: int, soft: int) -> None:
        before = resource.getrlimit(limit)
        self._undo.callback(resource.setrlimit, limit, before)
        resource.setrlimit(limit, (soft, before[1]))

    def _tamper(self, frame: bytes, fds: Sequence[int]) -> tuple[bytes, Sequence[int]]:
        """What is sent instead of the next frame; everything after it goes out untouched."""
        fault = self._plan.fault
        if fault is Fault.FLIP:
            damaged = bytearray(frame)
            damaged[-1] ^= _FLIPPED_BIT
            return bytes(damaged), fds
        if fault is Fault.DUPLICATE:
            return frame + frame, fds
        if fault is Fault.FD_MISSING:
            return frame, fds[:-1]
        if fault is Fault.FD_WRONG:
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            self._undo.callback(os.close, null)
            return frame, (null, *fds[1:])
        self._cut_after = self._plan.action
        return frame[: len(frame) // 2], fds


def injector_of(plan: FaultPlan | None) -> FaultInjector | None:
    """What carries out `plan`; None for the updates of every day."""
    return None if plan is None else FaultInjector(plan)


def _mapped_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()
