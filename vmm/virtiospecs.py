"""The virtio devices of a machine: one register page and one interrupt input each, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

from cpr.vmstate import VmState
from vmm.config import (
    VirtioBlkDevice,
    VirtioConsoleDevice,
    VirtioNetDevice,
    VirtioRngDevice,
    VmmConfig,
)
from vmm.devices.base import Device
from vmm.devices.chardev_basic import NullBackend
from vmm.devices.irq import SetLevel
from vmm.devices.net.unplugged import Unplugged
from vmm.devices.virtio.blk import VirtioBlk
from vmm.devices.virtio.blk_state import BlkState
from vmm.devices.virtio.console import ConsoleState, VirtioConsole
from vmm.devices.virtio.device import VirtioDevice
from vmm.devices.virtio.doorbell import Doorbells
from vmm.devices.virtio.memory import GuestMemory
from vmm.devices.virtio.mmio import mmio_slot
from vmm.devices.virtio.net import VirtioNet
from vmm.devices.virtio.net_state import NetState
from vmm.devices.virtio.rng import RngState, VirtioRng
from vmm.devicespec import DeviceSpec, Outside

# QEMU's own range for cards without mac=; the first one has exactly this.
_FIRST_MAC = 0x5254_0012_3456

Make = Callable[[Outside, GuestMemory, SetLevel], VirtioDevice]


def virtio_specs(config: VmmConfig) -> Iterator[DeviceSpec]:
    """Every virtio device that `config` asks for, in command-line order.

    Raises ConfigError when there are more than the machine has pages and interrupt inputs for.
    """
    kinds = (VirtioNetDevice, VirtioBlkDevice, VirtioRngDevice, VirtioConsoleDevice)
    numbers = {kind: count() for kind in kinds}
    for slot, device in enumerate(config.virtio):
        number = next(numbers[type(device)])
        if isinstance(device, VirtioNetDevice):
            yield _net_spec(slot, number, device)
        elif isinstance(device, VirtioRngDevice):
            yield _rng_spec(slot, number)
        elif isinstance(device, VirtioConsoleDevice):
            yield _console_spec(slot, number, device)
        else:
            yield _blk_spec(slot, number, device)


def net_section(number: int) -> str:
    """Section name of the network card `number`."""
    return f"virtio-net{number}"


def _net_spec(slot: int, number: int, device: VirtioNetDevice) -> DeviceSpec:
    name = net_section(number)
    mac = device.mac or (_FIRST_MAC + number).to_bytes(6, "big")

    def make(outside: Outside, memory: GuestMemory, set_irq: SetLevel) -> VirtioDevice:
        backend = Unplugged() if device.netdev is None else outside.netdevs[device.netdev].backend
        defer = outside.loop.call_soon_threadsafe
        return VirtioNet(backend, mac, memory, set_irq, defer, name=name)

    return _mmio_device(slot, name, NetState, make)


def _blk_spec(slot: int, number: int, device: VirtioBlkDevice) -> DeviceSpec:
    name = f"virtio-blk{number}"

    def make(outside: Outside, memory: GuestMemory, set_irq: SetLevel) -> VirtioDevice:
        image = outside.images[device.drive]
        defer = outside.loop.call_soon_threadsafe
        return VirtioBlk(image, memory, set_irq, defer, serial=device.serial, name=name)

    return _mmio_device(slot, name, BlkState, make)


def _rng_spec(slot: int, number: int) -> DeviceSpec:
    name = f"virtio-rng{number}"

    def make(outside: Outside, memory: GuestMemory, set_irq: SetLevel) -> VirtioDevice:
        return VirtioRng(memory, set_irq, outside.loop.call_soon_threadsafe, name=name)

    return _mmio_device(slot, name, RngState, make)


def _console_spec(slot: int, number: int, device: VirtioConsoleDevice) -> DeviceSpec:
    name = f"virtio-console{number}"

    def make(outside: Outside, memory: GuestMemory, set_irq: SetLevel) -> VirtioDevice:
        chardev = device.chardev
        backend = NullBackend(name) if chardev is None else outside.chardevs[chardev]
        return VirtioConsole(backend, memory, set_irq, outside.loop.call_soon_threadsafe, name=name)

    return _mmio_device(slot, name, ConsoleState, make)


def _mmio_device(slot: int, name: str, state_type: type[VmState], make: Make) -> DeviceSpec:
    addresses, gsi = mmio_slot(slot)

    def plug(outside: Outside) -> Device:
        device = make(outside, GuestMemory(outside.ram.ranges), outside.irqs.connect(gsi))
        outside.bus.attach_mmio(addresses, device)
        if outside.signal_on_store is not None:
            device.connect_doorbells(
                Doorbells(outside.loop), outside.signal_on_store, addresses.start
            )
        return device

    return DeviceSpec(name, state_type, plug)
