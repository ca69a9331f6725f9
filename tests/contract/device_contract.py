"""What every port device promises, and the list of devices that are held to it.

A new device adopts the contract with one line in CASES. Two of the promises need no list of fields:
whatever register accesses did to a device, `save` then `load` into another one must give the same
attributes, except those that the class names in TRANSIENT (locks, callbacks, what follows from the
rest). So a new runtime attribute that is not saved fails the contract as soon as an access changes
it.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from tests.framework.fake_char import FakeChar
from vmm.devices.acpi_sleep import AcpiSleep
from vmm.devices.base import PortDevice
from vmm.devices.clock import Clock
from vmm.devices.debug_console import DebugConsole
from vmm.devices.debug_exit import DebugExit
from vmm.devices.keyboard_controller import KeyboardController
from vmm.devices.pc_ports import PcPorts
from vmm.devices.rtc import Rtc
from vmm.devices.serial import Serial

SIZES = (1, 2, 4)


@dataclass(frozen=True, slots=True)
class DeviceCase:
    """How to make a device; two devices of one case are alike and connected to nothing."""

    name: str
    make: Callable[[], PortDevice]


def _ignore(*_arguments: object) -> None:
    """Stand for a callback that leads out of the device."""


def _blocked_char() -> FakeChar:
    """Take nothing, so that what the guest writes stays inside the device."""
    backend = FakeChar()
    backend.accepts = 0
    return backend


CASES = (
    DeviceCase("serial", lambda: Serial(FakeChar(), _ignore)),
    DeviceCase("serial, blocked output", lambda: Serial(_blocked_char(), _ignore)),
    DeviceCase("clock", lambda: Clock(4)),
    DeviceCase("pc-ports", lambda: PcPorts(_ignore)),
    DeviceCase("rtc", lambda: Rtc(lambda: 1_700_000_000.5)),
    DeviceCase("i8042", lambda: KeyboardController(_ignore)),
    DeviceCase("acpi-sleep", lambda: AcpiSleep(_ignore)),
    DeviceCase("debug-exit", lambda: DebugExit(0x501, 2, _ignore)),
    DeviceCase("debugcon", lambda: DebugConsole(FakeChar())),
    DeviceCase("debugcon, blocked output", lambda: DebugConsole(_blocked_char())),
)


@dataclass(frozen=True, slots=True)
class Access:
    """One port access; `value` None is a read."""

    position: int  # wraps around the device's ports
    size: int
    value: int | None

    def apply(self, device: PortDevice) -> int | None:
        offset = self.position % len(device.ports)
        if self.value is None:
            return device.port_read(offset, self.size)
        device.port_write(offset, self.size, self.value & ((1 << 8 * self.size) - 1))
        return None


ACCESSES = st.lists(
    st.builds(
        Access,
        st.integers(0, 63),
        st.sampled_from(SIZES),
        st.none() | st.integers(0, 0xFFFF_FFFF) | st.integers(0, 0xFF),
    ),
    max_size=60,
)


def attributes(device: PortDevice) -> dict[str, Any]:
    """Everything that must be the same after save and load."""
    transient: frozenset[str] = getattr(type(device), "TRANSIENT")  # noqa: B009 - not in Protocol
    return {
        name: copy.deepcopy(value) for name, value in vars(device).items() if name not in transient
    }


def unlisted_resources(device: PortDevice) -> list[str]:
    """Attributes that no state can hold and that TRANSIENT does not name."""
    lock_type = type(threading.Lock())
    transient: frozenset[str] = getattr(type(device), "TRANSIENT")  # noqa: B009 - not in Protocol
    return [
        name
        for name, value in vars(device).items()
        if name not in transient and (isinstance(value, lock_type) or callable(value))
    ]
