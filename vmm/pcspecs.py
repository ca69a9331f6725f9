"""The chips that an operating system expects of a PC.

They come with the interrupt controllers in the kernel: only an operating system has a use for
either, and the built-in guest's state stays small.
"""

from __future__ import annotations

from collections.abc import Iterator

from vmm.devices.acpi_sleep import AcpiSleep, AcpiSleepState
from vmm.devices.keyboard_controller import KeyboardController, KeyboardControllerState
from vmm.devices.rtc import Rtc, RtcState
from vmm.devicespec import DeviceSpec, port_device


def pc_specs() -> Iterator[DeviceSpec]:
    """Clock chip, keyboard controller, power switch."""
    yield port_device("rtc", RtcState, lambda _outside: Rtc())
    yield port_device(
        "i8042",
        KeyboardControllerState,
        lambda outside: KeyboardController(outside.guest_reset),
    )
    yield port_device(
        "acpi-sleep", AcpiSleepState, lambda outside: AcpiSleep(outside.guest_shutdown)
    )
