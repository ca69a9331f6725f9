"""-drive, -blockdev, -fda; -device virtio-blk-device and virtio-rng-device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vmm.cli.builder import ConfigBuilder
from vmm.config import Drive, FloppyImage, VirtioBlkDevice, VirtioRngDevice
from vmm.errors import ConfigError
from vmm.optstr import parse_bool, parse_keyval, parse_options
from vmm.qapi import STR, Member, Object

_OTHER_BUSES = frozenset({"ide", "scsi", "sd", "pflash", "mtd", "virtio", "xen"})
_DRIVE_OPTIONS = frozenset({"format", "readonly", "read-only", "index", "unit", "bus", "id"})
_READONLY = ("readonly", "read-only")

_ID = Member("id", STR, optional=True)
VIRTIO_BLK = Object(
    "virtio-blk-device", (_ID, Member("drive", STR), Member("serial", STR, optional=True))
)
VIRTIO_RNG = Object("virtio-rng-device", (_ID,))


def drive(builder: ConfigBuilder, value: str) -> None:
    """-drive if=floppy|none,file=FILE[,id=ID][,format=raw][,readonly=on]."""
    given = {option.key: option.value for option in parse_options(value)}
    bus = given.pop("if", "ide")
    file = given.pop("file", None)
    if bus in _OTHER_BUSES:
        raise ConfigError(
            f"if={bus} is not supported: if=floppy boots a boot sector, and if=none,id=ID is a "
            "disk for -device virtio-blk-device,drive=ID"
        )
    if bus not in ("floppy", "none"):
        raise ConfigError(f"unsupported bus type '{bus}'")
    if given.get("format", "raw") != "raw":
        raise ConfigError(f"format={given['format']} is not supported; use format=raw")
    for name in given:
        if name not in _DRIVE_OPTIONS:
            raise ConfigError(f"Invalid parameter '{name}'")
    if file is None:
        raise ConfigError("Must specify either driver or file")
    if bus == "floppy":
        fda(builder, file)
        return
    if "id" not in given:
        raise ConfigError("if=none needs id=ID, for -device virtio-blk-device,drive=ID")
    readonly = any(_on_off(name, given[name]) for name in _READONLY if name in given)
    _add(builder, Drive(given["id"], Path(file), readonly))


def fda(builder: ConfigBuilder, value: str) -> None:
    """-fda FILE."""
    if builder.floppy is not None:
        raise ConfigError("there is one floppy drive, and it has an image already")
    builder.floppy = FloppyImage(Path(value))


def blockdev(builder: ConfigBuilder, value: str) -> None:
    """-blockdev [driver=]raw,node-name=ID,file.driver=file,file.filename=FILE, or driver=file."""
    given = parse_keyval(value, "driver")
    driver = given.pop("driver", None)
    name = given.pop("node-name", None)
    readonly = _on_off("read-only", given.pop("read-only", "off"))
    if driver == "raw":
        file = given.pop("file", None)
        if not isinstance(file, dict) or file.pop("driver", "file") != "file":
            raise ConfigError("blockdev raw: needs file.driver=file,file.filename=FILE")
        given |= file
    elif driver != "file":
        raise ConfigError(f"blockdev: driver '{driver}' is not supported; there are raw and file")
    filename = given.pop("filename", None)
    for key in given:
        raise ConfigError(f"Invalid parameter '{key}'")
    if name is None or filename is None:
        raise ConfigError("blockdev: node-name and filename are needed")
    _add(builder, Drive(name, Path(filename), readonly))


def _add(builder: ConfigBuilder, new: Drive) -> None:
    if new.id in builder.drives:
        raise ConfigError(f"Duplicate ID '{new.id}' for drive")
    builder.drives[new.id] = new


def virtio_blk(builder: ConfigBuilder, given: dict[str, Any]) -> None:
    """-device virtio-blk-device,drive=ID[,serial=TEXT]."""
    name = given["drive"]
    if name not in builder.drives:
        raise ConfigError(f"Property 'virtio-blk-device.drive' can't find value '{name}'")
    used = {device.drive for device in builder.virtio if isinstance(device, VirtioBlkDevice)}
    if name in used:
        raise ConfigError(f"Drive '{name}' is already in use by another block device")
    builder.virtio.append(VirtioBlkDevice(name, given.get("id"), given.get("serial", "")))


def virtio_rng(builder: ConfigBuilder, given: dict[str, Any]) -> None:
    """-device virtio-rng-device."""
    builder.virtio.append(VirtioRngDevice(given.get("id")))


def _on_off(key: str, text: str) -> bool:
    value = parse_bool(text)
    if value is None:
        raise ConfigError(f"Parameter '{key}' expects 'on' or 'off'")
    return value
