"""Notifications by eventfd: where the accelerator can, the guest does not stop for them.

KVM turns the store to QUEUE_NOTIFY into a write to an eventfd (KVM API, KVM_IOEVENTFD), and the
queue is served on the loop's thread while the vCPU runs on. Elsewhere the store reaches the
device's register, and the vCPU's thread serves the queue itself.

Nothing of a doorbell is state: one that rang while the guest was being stopped is silent for a
stopped device, and `start` serves every queue once, here or in the successor.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable

# (address, size, value, eventfd): see GuestVm.signal_on_store.
SignalOnStore = Callable[[int, int, int, int], bool]
_COUNTER_SIZE_BYTES = 8


class Doorbells:
    """The eventfds of one device's queues."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._fds: list[int] = []

    def connect(
        self,
        signal_on_store: SignalOnStore,
        address: int,
        queue_count: int,
        notify: Callable[[int], None],
    ) -> None:
        """From now on a 4-byte store of a queue's number to `address` calls `notify(number)`.

        Raises AccelError when the accelerator refuses; `close` is needed all the same.
        """
        for index in range(queue_count):
            fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._fds.append(fd)
            if not signal_on_store(address, 4, index, fd):
                self.close()
                return
            self._loop.add_reader(fd, functools.partial(_rang, fd, index, notify))

    def close(self) -> None:
        """Hear nothing more; idempotent. The accelerator lets go of its own copies with the VM."""
        fds, self._fds = self._fds, []
        for fd in fds:
            self._loop.remove_reader(fd)
            os.close(fd)


def _rang(fd: int, index: int, notify: Callable[[int], None]) -> None:
    os.read(fd, _COUNTER_SIZE_BYTES)  # however often it rang
    notify(index)
