"""A tap as the back-end of a virtio-net device.

A frame is read only when the guest has a buffer for it, and only while this process runs the
guest. Everything else waits in the tap's own queue (`txqueuelen` frames), which both processes of
an update hold: what the old one has not read, the new one finds there. Nothing is lost while nobody
reads, until the queue is full, and then the kernel counts it (`tx_dropped` of the interface).

The tap's settings (header size, offloads) belong to the tap and outlive the process that made them.
A successor that has not the guest yet therefore changes none: offloads are applied by `start`.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence

from vmm.devices.net import tun
from vmm.devices.virtio.net_backend import (
    NO_OFFLOADS,
    VNET_HDR_SIZE_BYTES,
    NetFd,
    NetFrontend,
    NetOffloads,
)
from vmm.errors import DeviceError

# The largest frame a tap hands over: 64 KiB of segments to be cut later, the Ethernet header with
# two VLAN tags, and the virtio-net header. A smaller read would cut the frame off silently.
FRAME_MAX_BYTES = (64 << 10) + 22 + VNET_HDR_SIZE_BYTES
ALL_OFFLOADS = NetOffloads(csum=True, tso4=True, tso6=True, tso_ecn=True)


class TapBackend:
    """Implements `NetBackend`. Owns `fds`, queues of one tap; frames use the first of them.

    Raises DeviceError, with `fds` closed, when they are not queues of one tap.
    """

    def __init__(self, netdev_id: str, fds: Sequence[int], loop: asyncio.AbstractEventLoop) -> None:
        self.id = netdev_id
        self._fds = tuple(fds)
        self._loop = loop
        self._frontend: NetFrontend | None = None
        self._lock = threading.Lock()  # guards what vCPU threads use: the fd and the offloads
        self._closed = False
        self._running = False
        self._paused = False  # the guest had no buffer; receive_more wakes us
        self._gone = False  # the tap was deleted under us
        self._offloads = NO_OFFLOADS
        self.dropped_frames = 0  # sent by the guest while the link was down, or malformed
        try:
            self.info = self._check_fds()
            for fd in self._fds:
                os.set_blocking(fd, False)
                if self.info.has_vnet_hdr:
                    tun.set_vnet_hdr_size(fd, VNET_HDR_SIZE_BYTES)
        except (DeviceError, OSError) as error:
            for fd in self._fds:
                os.close(fd)
            raise DeviceError(f"netdev '{netdev_id}': {error}") from error

    def _check_fds(self) -> tun.TapInfo:
        if not self._fds:
            raise DeviceError("there is no fd")
        infos = [tun.tap_info(fd) for fd in self._fds]
        names = sorted({info.ifname for info in infos})
        if len(names) > 1:
            raise DeviceError(f"the fds belong to several taps: {', '.join(names)}")
        return infos[0]

    @property
    def ifname(self) -> str:
        """Name of the tap in its network namespace."""
        return self.info.ifname

    @property
    def vnet_hdr_size(self) -> int:
        """12 bytes, or 0 for an inherited tap that was opened without the header."""
        return VNET_HDR_SIZE_BYTES if self.info.has_vnet_hdr else 0

    @property
    def offloads(self) -> NetOffloads:
        """Everything the tap driver knows, if there is a header to say it in."""
        return ALL_OFFLOADS if self.info.has_vnet_hdr else NO_OFFLOADS

    def attach(self, frontend: NetFrontend) -> None:
        """Connect the one front-end; DeviceError if there is one already."""
        if self._frontend is not None:
            raise DeviceError(f"netdev '{self.id}' is already in use; every device needs its own")
        self._frontend = frontend

    def set_offloads(self, offloads: NetOffloads) -> None:
        """Now if the guest runs here, otherwise when it does."""
        with self._lock:
            self._offloads = offloads
            if self._running:
                self._apply_offloads()

    def _apply_offloads(self) -> None:
        if not self.info.has_vnet_hdr or self._closed or self._gone:
            return
        try:
            tun.set_offloads(self._fds[0], self._offloads)
        except OSError:  # the tap was deleted; a dead link must not keep the guest from running
            self._gone = True

    # ---- frames ---------------------------------------------------------------------------------

    def send(self, frame: bytes | memoryview) -> bool:
        """False when the host takes no more now. A link that is down drops, as a cable would."""
        with self._lock:
            if self._closed:
                return True
            try:
                os.write(self._fds[0], frame)
            except BlockingIOError:
                self._loop.call_soon_threadsafe(self._watch_writable)
                return False
            except OSError:
                self.dropped_frames += 1
        return True

    def receive(self) -> bytes | None:
        """Take the oldest waiting frame."""
        try:
            return os.read(self._fds[0], FRAME_MAX_BYTES)
        except BlockingIOError:
            return None
        except OSError:  # the tap was deleted, and epoll would say so for ever
            self._loop.call_soon_threadsafe(self._link_gone)
            return None

    def receive_more(self) -> None:
        """Any thread: the guest has buffers again."""
        if self._paused:
            self._loop.call_soon_threadsafe(self._resume_reading)

    # ---- who runs the guest ---------------------------------------------------------------------

    def start(self) -> None:
        """Begin to poll: the guest runs here."""
        with self._lock:
            self._apply_offloads()
            self._running = True
        self._paused = False
        self._watch_readable()

    def stop(self) -> None:
        """Poll nothing; frames wait in the tap."""
        with self._lock:
            self._running = False
        if not self._closed:
            self._loop.remove_reader(self._fds[0])
            self._loop.remove_writer(self._fds[0])

    def fds(self) -> tuple[NetFd, ...]:
        """Every queue, in the order of its creation."""
        return tuple(NetFd(number, fd, "tap") for number, fd in enumerate(self._fds))

    def close(self) -> None:
        """Close the queues; idempotent. A tap that is not persistent goes with its last queue."""
        if self._closed:
            return
        self.stop()
        with self._lock:
            self._closed = True
            for fd in self._fds:
                os.close(fd)

    # ---- on the loop's thread -------------------------------------------------------------------

    def _watch_readable(self) -> None:
        if self._frontend is not None and not self._gone:
            self._loop.add_reader(self._fds[0], self._on_readable)

    def _on_readable(self) -> None:
        if not self._running or self._frontend is None:
            return
        # Said before the question: buffers that come while the front-end answers are not missed.
        self._paused = True
        if self._frontend.readable():
            self._paused = False
        elif self._paused:
            self._loop.remove_reader(self._fds[0])

    def _resume_reading(self) -> None:
        if self._paused and self._running:
            self._paused = False
            self._watch_readable()

    def _link_gone(self) -> None:
        self._gone = True
        if not self._closed:
            self._loop.remove_reader(self._fds[0])

    def _watch_writable(self) -> None:
        if self._running:
            self._loop.add_writer(self._fds[0], self._on_writable)

    def _on_writable(self) -> None:
        self._loop.remove_writer(self._fds[0])
        if self._running and self._frontend is not None:
            self._frontend.writable()
