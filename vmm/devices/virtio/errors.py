"""What a driver in the guest can do wrong."""

from __future__ import annotations

from vmm.errors import DeviceError


class VirtqueueError(DeviceError):
    """A ring or a descriptor chain breaks the specification; the device needs a reset.

    It is caught by the device (`VirtioDevice`), never by the VMM: the guest is told with
    DEVICE_NEEDS_RESET and goes on running.
    """
