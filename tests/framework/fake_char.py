"""A character back-end that a test can block, feed and read."""

from __future__ import annotations

from vmm.devices.chardev_base import CharFd, CharFrontend


class FakeChar:
    """Implements CharBackend. `accepts` is how many more bytes it takes; None means all."""

    def __init__(self, backend_id: str = "fake0") -> None:
        self.id = backend_id
        self.written = bytearray()
        self.accepts: int | None = None
        self.frontend: CharFrontend | None = None
        self.more_requests = 0
        self.running = False

    def attach(self, frontend: CharFrontend) -> None:
        assert self.frontend is None
        self.frontend = frontend

    def write(self, data: bytes) -> int:
        taken = len(data) if self.accepts is None else min(len(data), self.accepts)
        if self.accepts is not None:
            self.accepts -= taken
        self.written += data[:taken]
        return taken

    def unblock(self) -> None:
        """Accept everything again and say so."""
        self.accepts = None
        assert self.frontend is not None
        self.frontend.writable()

    def feed(self, data: bytes) -> bytes:
        """Give the front-end what it has room for; returns the rest."""
        assert self.frontend is not None
        room = self.frontend.receive_capacity()
        if room:
            self.frontend.receive(data[:room])
        return data[room:]

    def receive_more(self) -> None:
        self.more_requests += 1

    def start(self) -> None:
        self.running = True

    def stop(self) -> None:
        self.running = False

    async def wait_connected(self) -> None:
        return

    def fds(self) -> tuple[CharFd, ...]:
        return ()

    def hold_fds(self) -> None:
        return

    def release_fds(self) -> None:
        return

    def close(self) -> None:
        self.running = False
