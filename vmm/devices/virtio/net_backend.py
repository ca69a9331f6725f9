"""What virtio-net and its network back-end (a tap) expect of each other.

Frames are pulled, never pushed: the device asks for one only when the guest has a buffer for it, so
a frame that nobody can take stays in the tap's own queue, where the successor finds it. In the
other direction a frame is taken whole or refused whole; a refused one stays in the guest's ring.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

# struct virtio_net_hdr_v1, what virtio 1.x puts before each frame; a tap is told this size with
# TUNSETVNETHDRSZ. 0 means that the back-end has no such header.
VNET_HDR_SIZE_BYTES = 12


class NetFd(NamedTuple):
    """One fd of a back-end that a successor needs."""

    number: int  # stable index: "tap:net0:<number>"
    fd: int  # still owned by the back-end
    kind: str  # "tap"


@dataclass(frozen=True, slots=True)
class NetOffloads:
    """Work that the receiver of frames does itself (a tap's TUN_F_* flags)."""

    csum: bool = False
    tso4: bool = False
    tso6: bool = False
    tso_ecn: bool = False


NO_OFFLOADS = NetOffloads()


class NetFrontend(Protocol):
    """The device's side; called on the loop's thread, between `start` and `stop` only."""

    def readable(self) -> bool:
        """Frames may be waiting: the device pulls some with `NetBackend.receive`.

        True: call again while the fd is readable. False: the guest has no buffer; do not call
        again until `NetBackend.receive_more`.
        """
        ...

    def writable(self) -> None:
        """The back-end accepts frames again after it had refused one."""
        ...


class NetBackend(Protocol):
    """Where frames go to and come from.

    `send` and `receive_more` are called on vCPU threads and on the loop's, under the device's lock,
    and must not call back; everything else is called on the loop's thread. Between `stop` and
    `start` (and before the first `start`) a back-end reads nothing: it has not the run lease.
    """

    @property
    def id(self) -> str:
        """The -netdev id."""
        ...

    @property
    def vnet_hdr_size(self) -> int:
        """VNET_HDR_SIZE_BYTES if frames carry that header both ways, else 0; never changes."""
        ...

    @property
    def offloads(self) -> NetOffloads:
        """What it can do; NO_OFFLOADS without a header; never changes."""
        ...

    def attach(self, frontend: NetFrontend) -> None:
        """Connect the one front-end; DeviceError if there is one already."""
        ...

    def set_offloads(self, offloads: NetOffloads) -> None:
        """What the guest's driver does itself, out of `offloads`; any thread, at any time."""
        ...

    def send(self, frame: bytes | memoryview) -> bool:
        """Send one frame, with its header if there is one; never blocks.

        True: it is out, or can never be sent (malformed, link gone) and is dropped as a cable
        would. False: no room now; `NetFrontend.writable` will be called when there is.
        """
        ...

    def receive(self) -> bytes | None:
        """Take the oldest waiting frame, with its header if there is one; None: none waits."""
        ...

    def receive_more(self) -> None:
        """The guest has buffers again: resume calling `NetFrontend.readable`."""
        ...

    def start(self) -> None:
        """Begin to poll. As if `receive_more` had been called; nothing is refused yet."""
        ...

    def stop(self) -> None:
        """Poll nothing and call the front-end no more."""
        ...

    def fds(self) -> tuple[NetFd, ...]:
        """The fds to pass to a successor, with stable indexes."""
        ...

    def close(self) -> None:
        """Release everything; idempotent."""
        ...
