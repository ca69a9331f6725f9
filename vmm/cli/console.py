"""-device virtio-serial-device, and -device virtconsole on it.

QEMU has a bus with ports; a machine here has one device for each bus, with one port, its console.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import Any

from vmm.cli.builder import ConfigBuilder
from vmm.config import VirtioConsoleDevice
from vmm.errors import ConfigError
from vmm.qapi import STR, UINT32, Member, Object

_ID = Member("id", STR, optional=True)
VIRTIO_SERIAL = Object("virtio-serial-device", (_ID, Member("max_ports", UINT32, optional=True)))
VIRTCONSOLE = Object(
    "virtconsole",
    (
        _ID,
        Member("chardev", STR, optional=True),
        Member("bus", STR, optional=True),
        Member("nr", UINT32, optional=True),
    ),
)


def virtio_serial(builder: ConfigBuilder, given: dict[str, Any]) -> None:
    """-device virtio-serial-device[,id=ID][,max_ports=1]."""
    ports = given.get("max_ports", 1)
    if ports != 1:
        raise ConfigError(
            f"virtio-serial-device: max_ports={ports} is not supported; there is one port, the "
            "console: use one virtio-serial-device for each virtconsole"
        )
    builder.virtio.append(VirtioConsoleDevice(id=given.get("id")))


def virtconsole(builder: ConfigBuilder, given: dict[str, Any]) -> None:
    """-device virtconsole[,chardev=ID][,bus=BUS][,nr=0]: the port of the bus, or of the last one.

    Without chardev= output is discarded, as in QEMU.
    """
    chardev = given.get("chardev")
    if chardev is not None and chardev not in builder.chardevs:
        raise ConfigError(f"Property 'virtconsole.chardev' can't find value '{chardev}'")
    if given.get("nr", 0) != 0:
        raise ConfigError("virtio-serial-bus: Out-of-range port id specified, max. allowed: 0")
    slot = _free_bus(builder, given.get("bus"))
    bus = builder.virtio[slot]
    assert isinstance(bus, VirtioConsoleDevice)
    builder.virtio[slot] = replace(bus, chardev=chardev)
    builder.used_consoles.add(slot)


def _free_bus(builder: ConfigBuilder, wanted: str | None) -> int:
    """The place in the list of devices of the named bus, or of the last one without a port."""
    buses = _buses(builder)
    if wanted is not None:
        if wanted not in buses:
            raise ConfigError(f"Bus '{wanted}' not found")
        buses = {wanted: buses[wanted]}
    if not buses:
        raise ConfigError("No 'virtio-serial-bus' bus found for device 'virtconsole'")
    free = [slot for slot in buses.values() if slot not in builder.used_consoles]
    if not free:
        raise ConfigError("virtio-serial-bus: Maximum port limit for this device reached")
    return free[-1]


def _buses(builder: ConfigBuilder) -> dict[str, int]:
    """QEMU's names of the buses, and where their devices are."""
    unnamed = count()
    return {
        f"{device.id}.0" if device.id else f"virtio-serial-bus.{next(unnamed)}": slot
        for slot, device in enumerate(builder.virtio)
        if isinstance(device, VirtioConsoleDevice)
    }
