"""One side of a replay: a real process with the real Driver, Channel, run lease and epoch.

A third process begins where the model has it: it verified a STATE, and then the source took the
guest back. None of them has a guest; everything else is what a VMM uses. Before each step of an
action it stops and asks its conductor, and it reports every event that its handshake is told.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

from cpr.channel import Channel
from cpr.deadlines import Deadlines
from cpr.driver import Driver
from cpr.handshake import Action, Event, Handshake, Phase
from cpr.messages import (
    Abort,
    Accept,
    Commit,
    Connected,
    Failed,
    Fds,
    Hello,
    Listening,
    Loaded,
    Message,
    Prepared,
    Refuse,
    Rehearsal,
    Running,
    State,
)
from cpr.ownedfd import OwnedFd
from cpr.peer import PeerIdentity
from guestram.errors import EpochMovedError, LeaseBusyError
from guestram.lease import ControlPage, RunLease
from tools.lab.model.process import SENDS
from tools.lab.model.world import Micro, Setup, Who

REPORT_SIZE_MAX_BYTES = 256
_LONG_S = 10_000.0  # more than any deadline
_TO_LOADED = (
    Event.HELLO, Event.ACCEPTABLE, Event.FDS, Event.BUILT, Event.MAIN_CHECKED, Event.REHEARSAL,
    Event.REHEARSED, Event.STATE, Event.STATE_LOADED,
)  # fmt: skip


class ReplayError(RuntimeError):
    """The work that the trace says fails."""


class _Clock(asyncio.SelectorEventLoop):
    """A loop whose time the conductor moves on: a deadline passes when the trace says so."""

    ahead_s = 0.0

    def time(self) -> float:
        return super().time() + self.ahead_s


class _Telling(Handshake):
    """A handshake that reports each event that it is told."""

    def __init__(self, who: Who, report: Callable[[str], None]) -> None:
        super().__init__(who.role)
        self._report = report
        if who is Who.THIRD:
            for event in _TO_LOADED:
                super().receive(event)
            assert self.phase is Phase.LOADED, self.phase

    def receive(self, event: Event) -> tuple[Action, ...]:
        actions = super().receive(event)
        self._report(f"told {event.name} {self.phase.name}")
        return actions


class Puppet:
    """Runs until it is killed or told to end. `control` is the conductor's, a SEQPACKET socket."""

    def __init__(
        self, setup: Setup, who: Who, link: socket.socket, control: socket.socket, death: OwnedFd,
        ram_fd: int, page: ControlPage,
    ) -> None:  # fmt: skip
        self._setup = setup
        self._control = control
        self._page = page
        self._lease = RunLease(ram_fd, page)
        start = setup.start()
        self._running = start.procs[who].running
        if who is Who.SOURCE:
            self._lease.acquire()
            while page.epoch < start.epoch:
                self._lease.enter()
        self._state_epoch = start.procs[who].state_epoch
        self._loop = _Clock()
        self._driver = Driver(_Telling(who, self._report), self._perform, Deadlines(), self._loop)
        peer = PeerIdentity(os.getpid(), os.getuid(), os.getgid(), death)
        self._channel = Channel(link, self._loop, peer=peer)

    def run(self) -> None:
        """Serve the conductor."""
        self._driver.attach(self._channel)
        self._loop.add_reader(self._control.fileno(), self._obey)
        self._report("ready")
        self._loop.run_forever()

    def _report(self, what: str) -> None:
        self._control.send(what.encode())

    def _ask(self, step: Action | Micro) -> str:
        self._report(f"at {step.name}")
        answer = self._control.recv(REPORT_SIZE_MAX_BYTES).decode()
        if not answer:
            os._exit(1)  # the conductor is gone
        if answer == "fail":
            raise ReplayError(f"{step.name} fails")
        return answer

    def _obey(self) -> None:
        command, _, name = self._control.recv(REPORT_SIZE_MAX_BYTES).decode().partition(" ")
        if command == "feed":
            self._driver.feed(Event[name])
        elif command == "fail":
            self._driver.fail("work in the background fails")
        elif command == "wait":
            self._loop.ahead_s += _LONG_S
        elif command == "close":
            self._driver.close()
            self._report("done")
        elif command == "status":
            held, running = int(self._lease.held), int(self._running)
            self._report(f"{self._driver.handshake.phase.name} {held} {running}")
        else:
            self._loop.stop()

    # ---- actions ---------------------------------------------------------------------------------

    def _perform(self, action: Action, message: Message | None) -> None:
        answer = self._ask(action)
        if isinstance(message, State) and action is Action.LOAD_STATE:
            self._state_epoch = message.epoch
        try:
            if action in SENDS:
                self._channel.send(self._words(action))
            elif action in {Action.TAKE_LEASE, Action.RECLAIM_LEASE}:
                found = self._claim(action)
                if self._setup.prompt:
                    self._driver.feed(found)
            elif action is Action.STOP_GUEST:
                self._running = False
                self._state_epoch = self._page.epoch
            elif action is Action.RELEASE_LEASE:
                self._lease.release()
            elif action in {Action.RESUME_GUEST, Action.RUN_GUEST} and not self._setup.paused:
                self._enter()
        finally:
            self._report("done")
        if answer == "fail-after":
            raise ReplayError(f"{action.name} fails after it was done")

    def _claim(self, action: Action) -> Event:
        """As `vmm.machine.Machine.claim`, with a stop in the middle.

        What it comes to is fed at once, or (a kernel that is slow to answer) by the conductor.
        """
        try:
            self._lease.acquire()
        except LeaseBusyError:
            moved = self._page.epoch != self._state_epoch
            return Event.EPOCH_MOVED if moved else Event.LEASE_BUSY
        self._report("done")
        self._ask(Micro.CHECK_EPOCH)
        try:
            self._lease.check_epoch(self._state_epoch)
        except EpochMovedError:
            self._lease.release()
            return Event.EPOCH_MOVED
        return Event.LEASE_TAKEN if action is Action.TAKE_LEASE else Event.RECLAIMED

    def _enter(self) -> None:
        self._report("done")
        self._ask(Micro.RAISE_EPOCH)
        self._lease.check_epoch(self._state_epoch)
        self._state_epoch = self._lease.enter()
        self._report("done")
        self._ask(Micro.ENTER_GUEST)
        self._running = True

    def _words(self, action: Action) -> Message:
        words: dict[Action, Message] = {
            Action.SEND_HELLO: Hello(
                protocol_min=1, protocol_max=1, product="replay", product_version="1",
                machine={}, sections=(), fds=(), user_paced=False, nonce=bytes(16),
            ),
            Action.SEND_FDS: Fds(names=(), more=False),
            Action.REHEARSE: Rehearsal(sections=()),
            Action.SEND_STATE: State(
                sections=(), runstate="running", epoch=self._state_epoch, stopped_ns=0
            ),
            Action.SEND_COMMIT: Commit(),
            Action.SEND_ABORT: Abort(reason="replay", cancelled=False),
            Action.SEND_ACCEPT: Accept(
                protocol=1, product="replay", product_version="1", deferred=False
            ),
            Action.SEND_REFUSE: Refuse(reasons=("replay",)),
            Action.SEND_LISTENING: Listening(),
            Action.SEND_CONNECTED: Connected(),
            Action.SEND_PREPARED: Prepared(),
            Action.SEND_LOADED: Loaded(),
            Action.SEND_RUNNING: Running(resumed_ns=0, runstate="running"),
            Action.SEND_FAILED: Failed(reason="replay"),
        }  # fmt: skip
        return words[action]
