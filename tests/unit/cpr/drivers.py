"""Drivers that are in a phase already, and a performer that remembers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from cpr.channel import Channel
from cpr.deadlines import Deadlines
from cpr.driver import Driver
from cpr.handshake import Action, Handshake, Phase, Role
from cpr.messages import Accept, Message

ACCEPT = Accept(1, "cpr-vmm", "0.1.0", deferred=False)


class Performer:
    """Remembers actions; `on` says what one of them does."""

    def __init__(self) -> None:
        self.done: list[Action] = []
        self.messages: list[Message | None] = []
        self.on: dict[Action, Callable[[], None]] = {}

    def __call__(self, action: Action, message: Message | None) -> None:
        self.done.append(action)
        self.messages.append(message)
        self.on.get(action, lambda: None)()


def driver_in(
    role: Role, phase: Phase, deadlines: Deadlines | None = None
) -> tuple[Driver, Performer]:
    """A driver that is in `phase` already."""
    handshake = Handshake(role)
    handshake.phase = phase
    performer = Performer()
    loop = asyncio.get_running_loop()
    return Driver(handshake, performer, deadlines or Deadlines(), loop), performer


def attached(driver: Driver) -> Channel:
    """Attach `driver` to a new channel and return the channel at the other end, not started."""
    ours, theirs = socket.socketpair()
    loop = asyncio.get_running_loop()
    driver.attach(Channel(ours, loop))
    return Channel(theirs, loop)
