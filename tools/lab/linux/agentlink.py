"""The lab's end of the agent's control connection: one word out, one line of JSON back.

The agent connects from inside the guest to a listening socket in the pair's network namespace, so
its connection is the event "Linux is up". Requests are short and synchronous, and none is in a
measured path: the guest is never paused when one is made.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tools.lab.checks import expect_nothing
from tools.lab.deadlines import within
from tools.lab.errors import DeadlineError, LabError
from tools.lab.namespace import NetworkNamespace
from tools.lab.process import VmmProcess
from vmm.boot.guest.net_report import FlowReport, NetLink, NetReport

CONTROL_PORT = 7000
BOOT_MS = 240_000  # a kernel that unpacks itself, on a processor that is emulated itself
# A reply goes through the guest's own scheduler; nested and shared, that has taken seconds.
REPLY_DEADLINE_S = 60.0
# What Linux says when it stood still for more than a second, as on any machine that is paused: this
# once it does not compare its clocks.
OF_A_LONG_PAUSE = "clocksource: Long readout interval, skipping watchdog check"
# And when a virtual processor waited for a real one while it handled a timer, update or not.
OF_A_CROWDED_HOST = (OF_A_LONG_PAUSE, "hrtimer: interrupt took")
# Both clocks of Linux come from one counter: they differ by what is between two calls.
CLOCK_JUMP_MAX_NS = 2_000_000


@dataclass(frozen=True, slots=True)
class AgentReport:
    """What the agent saw; the gap and the drift since the report before, the rest since boot."""

    ticks: int
    longest_gap_ns: int  # of the ticker, CLOCK_MONOTONIC
    longest_drift_ns: int  # CLOCK_REALTIME against CLOCK_MONOTONIC, within one tick
    monotonic_backwards: int
    realtime_backwards: int
    blocks_written: int
    disk_errors: int  # failed, read back wrong, or not to be announced on the virtio console
    answers_refused: int  # UDP answers that Linux did not take to send: no frame of ours
    queue_drops: int  # frames that Linux's own queues dropped before the card had them; -1: unknown
    flows: tuple[FlowReport, ...]
    warnings: tuple[str, ...]  # the kernel's, level warning or worse

    @classmethod
    def parse(cls, line: bytes) -> AgentReport:
        """Raises LabError when it is no report."""
        try:
            found = json.loads(line)
            flows = tuple(_flow(flow) for flow in found.pop("flows"))
            found["warnings"] = tuple(found["warnings"])
            return cls(flows=flows, **found)
        except (ValueError, TypeError, KeyError) as error:
            raise LabError(f"the guest's agent sent {line[:200]!r}") from error

    def net_report(self) -> NetReport:
        """In the form in which the built-in guest reports; Linux's stack has no such counters."""
        counters = dict.fromkeys(NetReport.__slots__[1:-1], 0)
        return NetReport(link=NetLink.UP, flows=self.flows, **counters)


def _flow(found: dict[str, Any]) -> FlowReport:
    distinct = found["received"] - found["duplicated"]
    return FlowReport(missing=max(0, found["next_sequence"] - distinct), sent=0, **found)


class AgentLink:
    """The control connection. Made by `listen` and `accept`; `close` must follow."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._peer: socket.socket | None = None
        self._pending = b""

    @classmethod
    def listen(cls, namespace: NetworkNamespace, address: str) -> AgentLink:
        """Listen where the agent will call. Raises LabError."""
        listener = namespace.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, CONTROL_PORT))
        listener.listen(1)
        listener.setblocking(False)
        return cls(listener)

    async def accept(self) -> None:
        """Wait until Linux is up; a guest that booted again calls again. Raises DeadlineError."""
        loop = asyncio.get_running_loop()
        peer, _ = await within(BOOT_MS, "the guest's agent calls", loop.sock_accept(self._listener))
        if self._peer is not None:
            self._peer.close()
        peer.settimeout(REPLY_DEADLINE_S)
        self._peer, self._pending = peer, b""

    def ask(self, word: str) -> AgentReport:
        """Send a request and read the report that answers it. Raises LabError, DeadlineError."""
        self.tell(word)
        while b"\n" not in self._pending:
            assert self._peer is not None
            with _told_as_lab_errors(word):
                data = self._peer.recv(1 << 16)
            if not data:
                raise LabError("the guest's agent hung up")
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return AgentReport.parse(line)

    def report(self) -> AgentReport:
        """How the guest is; the longest gap begins anew."""
        return self.ask("report")

    def tell(self, word: str) -> None:
        """Send a request that may have no answer (`poweroff`, `reboot`)."""
        if self._peer is None:
            raise LabError("the guest's agent has not called yet")
        with _told_as_lab_errors(word):
            self._peer.sendall(f"{word}\n".encode())

    def close(self) -> None:
        """Hang up."""
        self._listener.close()
        if self._peer is not None:
            self._peer.close()


@contextlib.contextmanager
def _told_as_lab_errors(word: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise DeadlineError(
            f"the guest's agent did not answer {word!r} in {REPLY_DEADLINE_S:g} s"
        ) from error
    except OSError as error:
        raise LabError(f"the guest's agent is gone ({word!r}): {error.strerror}") from error


class AgentWitness:
    """What the agent says from report to report (tools.lab.faults.witness.Witness)."""

    def __init__(self, link: AgentLink, first: AgentReport, *, crowded: bool) -> None:
        self._link = link
        self.seen = first
        self.crowded = crowded  # its processors wait for those of the host, update or not
        self.long_pause = False  # the guest stands still until a deadline: it may say so

    def look(self) -> AgentReport:
        """A new report, judged; the longest gap begins anew."""
        return self.judge(self._link.report())

    def judge(self, report: AgentReport) -> AgentReport:
        """Compare with the report before: what the kernel said between two updates counts, too.

        Raises CheckFailedError.
        """
        allowed = (OF_A_LONG_PAUSE,) if self.long_pause else ()
        check_report(self.seen, report, allowed=OF_A_CROWDED_HOST if self.crowded else allowed)
        self.seen = report
        return report

    def progress(self) -> int:
        """The ticker's count when it was looked at last."""
        return self.seen.ticks

    async def check(self, _owner: VmmProcess) -> None:
        """Raise CheckFailedError when the guest did not go on as if nothing had happened."""
        self.look()


def check_report(before: AgentReport, now: AgentReport, *, allowed: tuple[str, ...] = ()) -> None:
    """Raise CheckFailedError when the guest did not go on as if nothing had happened.

    Its kernel may say what begins like one of the `allowed`.
    """
    problems = [
        text
        for text, wrong in (
            (f"the ticker stands at {now.ticks}", now.ticks <= before.ticks),
            (
                f"CLOCK_MONOTONIC went backwards {now.monotonic_backwards} times",
                now.monotonic_backwards > 0,
            ),
            (
                f"CLOCK_REALTIME went backwards {now.realtime_backwards} times",
                now.realtime_backwards > 0,
            ),
            (
                f"CLOCK_REALTIME jumped by {now.longest_drift_ns} ns",
                now.longest_drift_ns > CLOCK_JUMP_MAX_NS,
            ),
            (f"{now.disk_errors} disk errors", now.disk_errors > 0),
            (f"{now.answers_refused} UDP answers refused by Linux", now.answers_refused > 0),
            (f"{now.queue_drops} frames dropped by Linux's own queue", now.queue_drops != 0),
        )
        if wrong
    ]
    new_warnings = now.warnings[len(before.warnings) :]
    problems += [
        f"the kernel says: {warning}" for warning in new_warnings if not warning.startswith(allowed)
    ]
    expect_nothing("Linux guest", problems)
