"""A network back-end that a test can fill, block and read."""

from __future__ import annotations

from collections import deque

from vmm.devices.virtio.net_backend import NO_OFFLOADS, NetFd, NetFrontend, NetOffloads


class FakeNet:
    """Implements NetBackend. `room` is how many more frames it takes; None means all."""

    def __init__(self, vnet_hdr_size: int = 0, offloads: NetOffloads = NO_OFFLOADS) -> None:
        self.id = "fake0"
        self.vnet_hdr_size = vnet_hdr_size
        self.offloads = offloads
        self.set: NetOffloads | None = None
        self.sent: list[bytes] = []
        self.waiting: deque[bytes] = deque()
        self.room: int | None = None
        self.frontend: NetFrontend | None = None
        self.polling = False
        self.running = False

    def attach(self, frontend: NetFrontend) -> None:
        assert self.frontend is None
        self.frontend = frontend

    def set_offloads(self, offloads: NetOffloads) -> None:
        self.set = offloads

    def send(self, frame: bytes | memoryview) -> bool:
        if self.room == 0:
            return False
        if self.room is not None:
            self.room -= 1
        self.sent.append(bytes(frame))
        return True

    def receive(self) -> bytes | None:
        assert self.running, "read without the run lease"
        return self.waiting.popleft() if self.waiting else None

    def receive_more(self) -> None:
        self.polling = True

    def start(self) -> None:
        self.running = self.polling = True

    def stop(self) -> None:
        self.running = self.polling = False

    def poll(self) -> None:
        """What the loop does as long as the fd is readable."""
        assert self.frontend is not None
        while self.running and self.polling and self.waiting:
            self.polling = self.frontend.readable()

    def unblock(self) -> None:
        self.room = None
        assert self.frontend is not None
        self.frontend.writable()

    def fds(self) -> tuple[NetFd, ...]:
        return ()

    def close(self) -> None:
        self.running = False
