"""The back-end of a card with nothing plugged in (`-device` without netdev=)."""

from __future__ import annotations

from vmm.devices.virtio.net_backend import NO_OFFLOADS, NetFd, NetFrontend, NetOffloads


class Unplugged:
    """Implements `NetBackend`: swallows what is sent, and nothing ever comes."""

    id = "none"
    vnet_hdr_size = 0
    offloads = NO_OFFLOADS

    def attach(self, frontend: NetFrontend) -> None:
        """There is nothing to tell the front-end, ever."""

    def set_offloads(self, offloads: NetOffloads) -> None:
        """There is nobody who would use them."""

    def send(self, frame: bytes | memoryview) -> bool:
        """Dropped, as by a card without a cable."""
        return True

    def receive(self) -> None:
        """Nothing waits."""

    def receive_more(self) -> None:
        """Nothing will come."""

    def start(self) -> None:
        """There is nothing to poll."""

    def stop(self) -> None:
        """There is nothing to poll."""

    def fds(self) -> tuple[NetFd, ...]:
        """None: a successor has nothing plugged in either."""
        return ()

    def close(self) -> None:
        """Nothing is open."""
