"""-kernel, -initrd, -append, -device: what the guest starts with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vmm.cli.builder import ConfigBuilder
from vmm.cli.console import VIRTCONSOLE, VIRTIO_SERIAL, virtconsole, virtio_serial
from vmm.cli.disk import VIRTIO_BLK, VIRTIO_RNG, virtio_blk, virtio_rng
from vmm.cli.net import VIRTIO_NET, virtio_net
from vmm.config import DebugConsoleDevice, DebugExitDevice, LoaderDevice
from vmm.errors import ConfigError
from vmm.optstr import parse_options
from vmm.qapi import (
    BOOL,
    STR,
    UINT8,
    UINT16,
    UINT32,
    UINT64,
    Member,
    Object,
    check,
    check_keyval,
)
from vmm.qmp.jsonvalue import parse_json

_MAX_DATA_LENGTH = 8

_ID = Member("id", STR, optional=True)
_DEVICES: Mapping[str, Object] = {
    "loader": Object(
        "loader",
        (
            _ID,
            Member("addr", UINT64, optional=True),
            Member("data", UINT64, optional=True),
            Member("data-len", UINT8, optional=True),
            Member("data-be", BOOL, optional=True),
            Member("file", STR, optional=True),
            Member("force-raw", BOOL, optional=True),
            Member("cpu-num", UINT32, optional=True),
        ),
    ),
    "isa-debug-exit": Object(
        "isa-debug-exit",
        (_ID, Member("iobase", UINT16, optional=True), Member("iosize", UINT8, optional=True)),
    ),
    "isa-debugcon": Object(
        "isa-debugcon",
        (
            _ID,
            Member("iobase", UINT16, optional=True),
            Member("chardev", STR, optional=True),
            Member("readback", UINT32, optional=True),
        ),
    ),
    "isa-serial": Object("isa-serial", (_ID, Member("chardev", STR))),
    "virtio-net-device": VIRTIO_NET,
    "virtio-blk-device": VIRTIO_BLK,
    "virtio-rng-device": VIRTIO_RNG,
    "virtio-serial-device": VIRTIO_SERIAL,
    "virtconsole": VIRTCONSOLE,
}
DEVICE_NAMES = tuple(_DEVICES)
# The names of QEMU's PCI variants, and its short ones; here the same device is on virtio-mmio.
_ALIASES = {
    f"virtio-{kind}{suffix}": f"virtio-{kind}-device"
    for kind in ("net", "blk", "rng", "serial")
    for suffix in ("", "-pci")
}


def kernel(builder: ConfigBuilder, value: str) -> None:
    """-kernel FILE, or `builtin`."""
    builder.kernel = Path(value)


def initrd(builder: ConfigBuilder, value: str) -> None:
    """-initrd FILE."""
    builder.initrd = Path(value)


def append(builder: ConfigBuilder, value: str) -> None:
    """-append TEXT: the command line of -kernel or of the built-in guest."""
    builder.append = value


def device(builder: ConfigBuilder, value: str) -> None:
    """-device DRIVER[,property=value], as options or as JSON."""
    if value.startswith("{"):
        given = parse_json(value)
        checker: Callable[..., Any] = check
    else:
        given = {option.key: option.value for option in parse_options(value, "driver")}
        checker = check_keyval
    driver = given.pop("driver", None)
    if driver is None:
        raise ConfigError("Parameter 'driver' is missing")
    if driver in _ALIASES:
        builder.warnings.append(f"{driver} is {_ALIASES[driver]} here: there is no PCI, only mmio")
        driver = _ALIASES[driver]
    if driver not in _DEVICES:
        raise ConfigError(f"'{driver}' is not a valid device model name")
    clean = checker(_DEVICES[driver], given, unexpected=f"Property '{driver}.{{}}' not found")
    _ADD[driver](builder, clean)


def _loader(builder: ConfigBuilder, given: dict[str, Any]) -> None:
    if given.get("data-be"):
        raise ConfigError("data-be=on is not supported: the guest is little-endian")
    if not given.keys() & {"file", "addr", "data"}:
        raise ConfigError("please include valid arguments")
    if ("data" in given) != ("data-len" in given):
        raise ConfigError("Both data and data-len must be specified")
    if given.get("data-len", 0) > _MAX_DATA_LENGTH:
        raise ConfigError("data-len cannot be greater then 8 bytes")
    if "data" in given and "file" in given:
        raise ConfigError("data and file cannot both be specified")
    builder.loaders.append(
        LoaderDevice(
            file=Path(given["file"]) if "file" in given else None,
            addr=given.get("addr"),
            cpu_num=given.get("cpu-num"),
            data=given.get("data"),
            data_len=given.get("data-len"),
            force_raw=given.get("force-raw", False),
        )
    )


def _debug_exit(builder: ConfigBuilder, given: dict[str, Any]) -> None:
    default = DebugExitDevice()
    builder.debug_exits.append(
        DebugExitDevice(given.get("iobase", default.iobase), given.get("iosize", default.iosize))
    )


def _debug_console(builder: ConfigBuilder, given: dict[str, Any]) -> None:
    if "chardev" not in given:
        raise ConfigError("Can't create debugcon device, empty char device")
    _need_chardev(builder, "isa-debugcon", given["chardev"])
    default = DebugConsoleDevice(given["chardev"])
    builder.debug_consoles.append(
        DebugConsoleDevice(given["chardev"], given.get("iobase", default.iobase))
    )


def _isa_serial(builder: ConfigBuilder, given: dict[str, Any]) -> None:
    _need_chardev(builder, "serial", given["chardev"])
    builder.serials.append(given["chardev"])
    builder.serial_options += 1


def _need_chardev(builder: ConfigBuilder, owner: str, name: str) -> None:
    if name not in builder.chardevs:
        raise ConfigError(f"Property '{owner}.chardev' can't find value '{name}'")


_ADD: Mapping[str, Callable[[ConfigBuilder, dict[str, Any]], None]] = {
    "loader": _loader,
    "isa-debug-exit": _debug_exit,
    "isa-debugcon": _debug_console,
    "isa-serial": _isa_serial,
    "virtio-net-device": virtio_net,
    "virtio-blk-device": virtio_blk,
    "virtio-rng-device": virtio_rng,
    "virtio-serial-device": virtio_serial,
    "virtconsole": virtconsole,
}
