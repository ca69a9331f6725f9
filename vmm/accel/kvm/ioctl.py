"""The two ways in which we call ioctl, and why there are two.

`blocking_ioctl` releases the GIL: for KVM_RUN and for slow set-up. `state_ioctl` keeps it: reading
or writing one register file takes a few microseconds, and giving up the GIL for that could cost a
whole switch interval (5 ms) in the blackout. It must never be used on a vCPU that is in KVM_RUN,
because the kernel would block on the vCPU's mutex (KVM API, 3).

fcntl.ioctl is not used: from Python 3.14 on it retries after EINTR, and a kick would spin for ever.
"""

from __future__ import annotations

import ctypes
import errno
import os

from vmm.errors import AccelError


class Buffer:
    """Memory with a fixed address, for one kernel struct."""

    __slots__ = ("_pin", "address", "data")

    def __init__(self, size_bytes: int) -> None:
        self.data = bytearray(size_bytes)
        self._pin = (ctypes.c_char * size_bytes).from_buffer(self.data)
        self.address = ctypes.addressof(self._pin)


_WITHOUT_GIL = ctypes.CDLL(None, use_errno=True)
_WITH_GIL = ctypes.PyDLL(None, use_errno=True)

blocking_ioctl = _WITHOUT_GIL.ioctl
blocking_ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
state_ioctl = _WITH_GIL.ioctl
state_ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
get_errno = ctypes.get_errno


def checked_ioctl(fd: int, request: int, argument: int, what: str) -> int:
    """Set-up call: the result, or AccelError that says `what` failed and why."""
    result: int = blocking_ioctl(fd, request, argument)
    if result < 0:
        raise os_refusal(what)
    return result


def os_refusal(what: str) -> AccelError:
    """The error for a call that has just failed; reads this thread's errno."""
    number = get_errno()
    name = errno.errorcode.get(number, str(number))
    return AccelError(f"{what}: KVM refused ({name}: {os.strerror(number)})")
