"""A network namespace with one tap, entered by one thread of this process only.

A namespace belongs to a thread, and a socket stays for ever in the namespace in which it was made.
So a thread that enters a new one and makes sockets for the others is all that a test needs; the
namespace is gone when the last of its sockets, and the tap, are closed.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

from pyroute2 import IPRoute

T = TypeVar("T")
CLONE_NEWNET = 0x4000_0000
TUNSETIFF = 0x4004_54CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
IFA_F_NODAD = 0x02  # linux/if_addr.h: usable at once

HOST_IP4, GUEST_IP4 = "10.0.2.2", "10.0.2.15"
HOST_IP6, GUEST_IP6 = "fd00::2", "fd00::15"


class TapThread:
    """One namespace with the tap `tap0`, addresses on the host's side set, and up."""

    def __init__(self, queue_length: int = 1000) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="netns")
        self.tap_fd = -1
        try:
            self.tap_fd = self.call(lambda: _enter_and_open(queue_length))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close()

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` in the namespace; what it opens stays there."""
        return self._thread.submit(function).result()

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket of the namespace."""
        return self.call(lambda: socket.socket(family, kind, protocol))

    def close(self) -> None:
        """Leave the namespace and close the tap."""
        self._thread.shutdown()
        if self.tap_fd >= 0:
            os.close(self.tap_fd)
            self.tap_fd = -1


def _enter_and_open(queue_length: int) -> int:
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"tap0", IFF_TAP | IFF_NO_PI))
        _set_up_links(queue_length)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _set_up_links(queue_length: int) -> None:
    """Addresses and queue of the tap, and both links up; in the calling thread's namespace."""
    with IPRoute() as route:
        (tap,) = route.link_lookup(ifname="tap0")
        (loopback,) = route.link_lookup(ifname="lo")
        route.link("set", index=loopback, state="up")
        route.link("set", index=tap, txqlen=queue_length)
        route.addr("add", index=tap, address=HOST_IP4, prefixlen=24)
        route.addr("add", index=tap, address=HOST_IP6, prefixlen=64, flags=IFA_F_NODAD)
        route.link("set", index=tap, state="up")
