"""Between the pure handshake and the world: events in, actions performed, deadlines armed.

No decisions: the table of `cpr.handshake` makes them. Everything happens synchronously in the turn
of the loop that brought the event, because two of these turns are in the blackout.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from cpr.channel import Channel
from cpr.deadlines import DeadlineName, Deadlines
from cpr.errors import ChannelError, FdError
from cpr.handshake import DEADLINES, Handshake
from cpr.messages import Abort, Accept, Failed, Fds, Hello, Message, MessageKind, Refuse
from cpr.ownedfd import FdTable, OwnedFd
from cpr.phases import MESSAGE_EVENTS, Action, Event, Phase, Role

EVENT_OF_KIND = {kind: Event[kind.name] for kind in MessageKind}
_MS_PER_S = 1000
# Everything else that is fed is a result of our own work.
_FROM_OUTSIDE = MESSAGE_EVENTS | {Event.LOST, Event.PEER_DIED, Event.VIOLATION, Event.CANCEL}

Perform = Callable[[Action, Message | None], None]


class Steps(Protocol):
    """Is told of every action, before and after it; a drill makes the process fail there."""

    def before(self, action: Action, channel: Channel | None) -> None:
        """About to be performed."""
        ...

    def after(self, action: Action, channel: Channel | None) -> None:
        """Performed without an error."""
        ...


class Driver:
    """Runs one side's handshake.

    `perform` does one action; the message that caused it, or None, is its second argument. It may
    feed events itself: they wait until the actions of the present one are done. `reason` is why the
    update last went wrong, in words. `deadlines` count for the phases that are entered from now on.
    `record` is (CLOCK_MONOTONIC ns, event, phase entered) of every step. `received_fds` is complete
    when FDS is fed. `finished` is set in the terminal phase, after its actions.
    """

    def __init__(
        self,
        handshake: Handshake,
        perform: Perform,
        deadlines: Deadlines,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.handshake = handshake
        self.reason = ""
        self.received_fds = FdTable()
        self.record: list[tuple[int, Event, Phase]] = []
        self.finished = asyncio.Event()
        self._perform = perform
        self.deadlines = deadlines
        self._loop = loop
        self._channel: Channel | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._queue: deque[tuple[Event, Message | None, str]] = deque()
        # What the action being performed came to. A failing send may have queued what the peer said
        # before it went; our own results are older news than that, and the phase waits for them.
        self._results: deque[tuple[Event, Message | None, str]] = deque()
        self._draining = False
        self._lost = False
        self._offered: frozenset[str] = frozenset()
        self.steps: Steps | None = None

    def attach(self, channel: Channel) -> None:
        """Take over `channel` and begin to listen to it."""
        self._channel = channel
        self._arm(None)
        channel.start(self._on_message, self._on_lost, self._on_peer_died, self._on_violation)

    def feed(self, event: Event, message: Message | None = None) -> None:
        """Tell the handshake what happened and perform what follows.

        Raises LocalProtocolError when the phase does not take `event`, and whatever `perform`
        raises where the table has no row for a failure.
        """
        self._enqueue(event, message, "")

    def fail(self, reason: str) -> None:
        """Local work failed; nothing happens when the update is over already."""
        self._enqueue(Event.FAILURE, None, reason)

    def disarm(self) -> None:
        """No deadline for the present phase: a person sets the pace."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """Release the channel, the timer and every fd that nobody claimed."""
        self.disarm()
        self.received_fds.close_unclaimed()
        if self._channel is not None:
            self._channel.close()

    # ---- what the channel says -------------------------------------------------------------------

    def _on_message(self, message: Message, fds: list[OwnedFd]) -> None:
        event = EVENT_OF_KIND[message.KIND]
        if not self.handshake.expects(event):
            for fd in fds:
                fd.close()
        elif isinstance(message, Hello):
            self._offered = frozenset(offer.name for offer in message.fds)
        elif isinstance(message, Fds):
            try:
                self._collect(message, fds)
            except FdError as error:
                self.received_fds.close_unclaimed()
                self._enqueue(Event.VIOLATION, message, str(error))
                return
            if message.more:
                return
        self._enqueue(event, message, _reason_in(message))

    def _collect(self, message: Fds, fds: list[OwnedFd]) -> None:
        """Put the frame's fds under their names; FdError when they are not what HELLO offered."""
        problem = ""
        if len(message.names) != len(fds):
            problem = f"FDS names {len(message.names)} fds and carries {len(fds)}"
        for name, fd in zip(message.names, fds, strict=False):
            fd.name = name
            if name not in self._offered:
                problem = problem or f"fd '{name}' came, but HELLO does not offer it"
        if problem:
            for fd in fds:
                fd.close()
            raise FdError(problem)
        self._offer_all(message.names, fds)
        missing = self._offered.difference(self.received_fds.names)
        if missing and not message.more:
            raise FdError(f"offered fd(s) {', '.join(sorted(missing))} did not come")

    def _offer_all(self, names: tuple[str, ...], fds: list[OwnedFd]) -> None:
        waiting = deque(zip(names, fds, strict=True))
        try:
            while waiting:
                self.received_fds.offer(*waiting.popleft())
        finally:
            for _name, fd in waiting:
                fd.close()

    def _on_lost(self, reason: str) -> None:
        self._lost = True
        self._enqueue(Event.LOST, None, f"lost the {self._peer_name} {self._where}: {reason}")

    def _on_peer_died(self) -> None:
        self._enqueue(Event.PEER_DIED, None, f"the {self._peer_name} process died {self._where}")

    def _on_violation(self, reason: str) -> None:
        self._enqueue(Event.VIOLATION, None, f"{self._peer_name}: {reason}")

    def _on_deadline(self, name: DeadlineName) -> None:
        self._timer = None
        waited_ms = self.deadlines.of(name)
        self._enqueue(
            Event.DEADLINE,
            None,
            f"the {self._peer_name} did not answer within {waited_ms} ms {self._where} "
            f"(deadline '{name.value}')",
        )

    # ---- the pump --------------------------------------------------------------------------------

    def _enqueue(self, event: Event, message: Message | None, reason: str) -> None:
        own_result = self._draining and event not in _FROM_OUTSIDE
        (self._results if own_result else self._queue).append((event, message, reason))
        if self._draining:
            return
        self._draining = True
        error: Exception | None = None
        try:
            while following := self._results or self._queue:
                try:
                    self._step(*following.popleft())
                except Exception as caught:  # the events behind it still happened
                    error = error or caught
        finally:
            self._draining = False
        if error is not None:
            raise error

    def _step(self, event: Event, message: Message | None, reason: str) -> None:
        handshake = self.handshake
        before = handshake.phase
        if not handshake.finished:
            if event in MESSAGE_EVENTS and not handshake.expects(event):
                reason = f"the {self._peer_name} sent {event.name} {self._where}"
            self.reason = reason or self.reason
        actions = handshake.receive(event)
        self.record.append((time.monotonic_ns(), event, handshake.phase))
        if handshake.phase is not before:
            self._arm(message)
        try:
            for action in actions:
                if not self._performed(action, message):
                    return
        finally:
            if handshake.finished:
                self.finished.set()

    def _performed(self, action: Action, message: Message | None) -> bool:
        """Perform; False when it failed and the table takes it from here."""
        try:
            if self.steps is None:
                self._perform(action, message)
            else:
                self.steps.before(action, self._channel)
                self._perform(action, message)
                self.steps.after(action, self._channel)
        except ChannelError as error:
            # What the row does besides talking must still be done (REPORT, COMPLETE).
            if not self._lost:
                self._on_lost(str(error))
        except Exception as error:
            if self.handshake.finished or not self.handshake.expects(Event.FAILURE):
                raise
            self._results.append((Event.FAILURE, None, str(error) or repr(error)))
            return False
        return True

    def _arm(self, message: Message | None) -> None:
        """Start the deadline of the phase just entered."""
        self.disarm()
        name = DEADLINES.get((self.handshake.role, self.handshake.phase))
        if name is None:
            return
        if isinstance(message, Accept) and message.deferred:
            name = DeadlineName.DEFER
        delay_s = self.deadlines.of(name) / _MS_PER_S
        self._timer = self._loop.call_later(delay_s, self._on_deadline, name)

    @property
    def _peer_name(self) -> str:
        return "target" if self.handshake.role is Role.SOURCE else "source"

    @property
    def _where(self) -> str:
        return f"in phase {self.handshake.phase.name}"


def _reason_in(message: Message) -> str:
    """The peer's own words, when it gives the update up."""
    if isinstance(message, Refuse):
        return "; ".join(message.reasons)
    return message.reason if isinstance(message, Failed | Abort) else ""
