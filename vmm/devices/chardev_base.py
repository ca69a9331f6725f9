"""What a character front-end (a serial port) and its back-end (a socket) expect of each other.

Bytes are held in one place only: the front-end, where they are part of saved state. A back-end
writes at once or does not accept, and reads from its fd only what the front-end has room for; what
nobody has read stays in the kernel's buffer, behind an fd that the successor gets.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol


class CharFd(NamedTuple):
    """One fd of a back-end that a successor needs: (index, fd, kind)."""

    number: int
    fd: int  # still owned by the back-end
    kind: str  # "file", "socket-listener", "socket", "pty"


class CharFrontend(Protocol):
    """The device's side; called on the loop's thread."""

    def receive_capacity(self) -> int:
        """How many bytes `receive` will take now; 0 stops reading until `receive_more`."""
        ...

    def receive(self, data: bytes) -> None:
        """Bytes from the outside, at most `receive_capacity`."""
        ...

    def writable(self) -> None:
        """The back-end accepts bytes again after it had refused some."""
        ...


class CharBackend(Protocol):
    """A place where characters go to and come from; made by `vmm.devices.chardev`.

    `write` and `receive_more` are called on vCPU threads, everything else on the loop's thread.
    Between `stop` and `start` (and before the first `start`) a back-end reads nothing.
    """

    @property
    def id(self) -> str:
        """The -chardev id."""
        ...

    def attach(self, frontend: CharFrontend) -> None:
        """Connect the one front-end; DeviceError if there is one already."""
        ...

    def write(self, data: bytes) -> int:
        """Write without blocking; returns how many bytes were accepted.

        After accepting less than all, `CharFrontend.writable` is called when there is room. With
        nobody connected everything is accepted and discarded, as in QEMU.
        """
        ...

    def receive_more(self) -> None:
        """The front-end has room again."""
        ...

    def start(self) -> None:
        """Begin to read, and to accept clients."""
        ...

    def stop(self) -> None:
        """Read nothing more and call the front-end no more."""
        ...

    async def wait_connected(self) -> None:
        """Return when the back-end is ready for use: at once, except for sockets with wait=on."""
        ...

    def fds(self) -> tuple[CharFd, ...]:
        """The fds to pass to a successor, with stable indexes."""
        ...

    def hold_fds(self) -> None:
        """Let `fds` not change from here to `release_fds` or `close`.

        A new client waits in the listener's backlog for whoever runs the guest next, and `close`
        leaves the socket file to the successor.
        """
        ...

    def release_fds(self) -> None:
        """The update did not happen: accept clients again."""
        ...

    def close(self) -> None:
        """Release everything; idempotent."""
        ...
