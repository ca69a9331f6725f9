"""What the list of a machine's devices is made of: a section, and how to make and plug the device.

The list itself is in `vmm.build`; HELLO and the machine both come from it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from cpr.vmstate import VmState
from guestram.ram import GuestRam
from vmm.accel.base import VcpuStop
from vmm.devices.base import Device, PortDevice
from vmm.devices.bus import SystemBus
from vmm.devices.chardev import CharBackend
from vmm.devices.irq import IrqLines
from vmm.devices.net.netdev import Netdev
from vmm.devices.virtio.blk_image import RawImage
from vmm.devices.virtio.doorbell import SignalOnStore


class GuestEvents(Protocol):
    """What a machine tells its process."""

    def vcpu_stopped(self, index: int, stop: VcpuStop) -> None:
        """A vCPU stopped by itself: triple fault or an accelerator that cannot go on."""
        ...

    def guest_exit(self, status: int) -> None:
        """The guest wrote the debug-exit port."""
        ...

    def guest_reset(self) -> None:
        """The guest asked for a reset."""
        ...

    def guest_shutdown(self) -> None:
        """The guest switched its machine off."""
        ...


@dataclass(frozen=True, slots=True)
class Outside:
    """What a device may reach beyond its registers."""

    chardevs: Mapping[str, CharBackend]
    netdevs: Mapping[str, Netdev]
    images: Mapping[str, RawImage]
    events: GuestEvents
    loop: asyncio.AbstractEventLoop
    irqs: IrqLines
    ram: GuestRam
    bus: SystemBus
    signal_on_store: SignalOnStore | None = None  # None: every notification goes to the bus

    def guest_exit(self, status: int) -> None:
        """Called on a vCPU thread; passes through the one door to the loop."""
        self.loop.call_soon_threadsafe(self.events.guest_exit, status)

    def guest_reset(self) -> None:
        """As `guest_exit`."""
        self.loop.call_soon_threadsafe(self.events.guest_reset)

    def guest_shutdown(self) -> None:
        """As `guest_exit`."""
        self.loop.call_soon_threadsafe(self.events.guest_shutdown)


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """One device of a machine: its section, and how to make it and put it on the bus."""

    name: str
    state_type: type[VmState]
    plug: Callable[[Outside], Device]


def port_device(
    name: str, state_type: type[VmState], make: Callable[[Outside], PortDevice]
) -> DeviceSpec:
    """A device with I/O ports of its own."""

    def plug(outside: Outside) -> Device:
        device = make(outside)
        outside.bus.attach(device)
        return device

    return DeviceSpec(name, state_type, plug)
