"""The kernel's tun/tap driver: its ioctls by name, on plain fd numbers (linux/if_tun.h).

Opening a tap by name needs CAP_NET_ADMIN (or to be the tap's owner). Nothing else here does:
whoever holds the fd may ask which tap it is and set its header size and offloads.
"""

from __future__ import annotations

import fcntl
import os
import struct
from dataclasses import dataclass

from vmm.devices.virtio.net_backend import NetOffloads
from vmm.errors import DeviceError

CLONE_DEVICE = "/dev/net/tun"
IFNAME_MAX_BYTES = 15  # IFNAMSIZ without its terminating zero

_TUNSETIFF, _TUNGETIFF = 0x4004_54CA, 0x8004_54D2
_TUNSETOFFLOAD = 0x4004_54D0
_TUNSETSNDBUF = 0x4004_54D4
_TUNSETVNETHDRSZ = 0x4004_54D8
_TUNSETQUEUE = 0x4004_54D9

IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
IFF_MULTI_QUEUE, _IFF_DETACH_QUEUE = 0x0100, 0x0400

_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO6, _TUN_F_TSO_ECN = 1, 2, 4, 8

_IFREQ = struct.Struct("16sH22x")  # struct ifreq: name, flags, the rest of the union
_INT = struct.Struct("i")


@dataclass(frozen=True, slots=True)
class TapInfo:
    """Which tap an fd belongs to. The name is the one in the tap's network namespace."""

    ifname: str
    flags: int

    @property
    def has_vnet_hdr(self) -> bool:
        """Whether each frame is preceded by a virtio-net header."""
        return bool(self.flags & IFF_VNET_HDR)


def open_tap(ifname: str, *, multi_queue: bool) -> int:
    """A new non-blocking, close-on-exec queue of tap `ifname` ("" or "tap%d": the kernel names it).

    Raises DeviceError with QEMU's text.
    """
    if len(ifname.encode()) > IFNAME_MAX_BYTES:
        raise DeviceError(f"ifname '{ifname}' has more than {IFNAME_MAX_BYTES} bytes")
    try:
        fd = os.open(CLONE_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise DeviceError(f"could not open {CLONE_DEVICE}: {error.strerror}") from error
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (IFF_MULTI_QUEUE if multi_queue else 0)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(ifname.encode(), flags))
    except OSError as error:
        os.close(fd)
        raise DeviceError(
            f"could not configure {CLONE_DEVICE} ({ifname}): {error.strerror}"
        ) from error
    return fd


def tap_info(fd: int) -> TapInfo:
    """Which tap `fd` is a queue of.

    Raises DeviceError when it is no tap (a tun without Ethernet header, or something else).
    """
    try:
        name, flags = _IFREQ.unpack(fcntl.ioctl(fd, _TUNGETIFF, bytes(_IFREQ.size)))
    except OSError as error:
        raise DeviceError(f"fd {fd} is not a tap: {error.strerror}") from error
    if not flags & IFF_TAP:
        raise DeviceError(f"fd {fd} is a tun, not a tap: it carries no Ethernet header")
    if not flags & IFF_NO_PI:
        raise DeviceError(f"fd {fd}: a tap with packet information; open it with IFF_NO_PI")
    return TapInfo(name.rstrip(b"\0").decode(), flags)


def tap_identity(fd: int) -> dict[str, int]:
    """What names the tap behind `fd` in HELLO: its name as two numbers, and the file's type.

    Device and inode tell nothing: every tap is the same device node.
    """
    name = tap_info(fd).ifname.encode().ljust(16, b"\0")
    first, second = struct.unpack(">QQ", name)
    return {"mode": os.fstat(fd).st_mode & 0o170000, "ifname-0": first, "ifname-1": second}


def set_vnet_hdr_size(fd: int, size_bytes: int) -> None:
    """Set the size of the header before each frame."""
    fcntl.ioctl(fd, _TUNSETVNETHDRSZ, _INT.pack(size_bytes))


def set_offloads(fd: int, offloads: NetOffloads) -> None:
    """Which unfinished frames (no checksum, larger than the MTU) the reader takes."""
    flags = (
        (_TUN_F_CSUM if offloads.csum else 0)
        | (_TUN_F_TSO4 if offloads.tso4 else 0)
        | (_TUN_F_TSO6 if offloads.tso6 else 0)
        | (_TUN_F_TSO_ECN if offloads.tso_ecn else 0)
    )
    fcntl.ioctl(fd, _TUNSETOFFLOAD, flags)


def set_send_buffer(fd: int, size_bytes: int) -> None:
    """How many bytes may be on their way into the host before a write says EAGAIN."""
    fcntl.ioctl(fd, _TUNSETSNDBUF, _INT.pack(size_bytes))


def detach_queue(fd: int) -> None:
    """The kernel puts no more frames into this queue of a multi-queue tap."""
    fcntl.ioctl(fd, _TUNSETQUEUE, _IFREQ.pack(b"", _IFF_DETACH_QUEUE))
