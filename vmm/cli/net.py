"""-netdev tap, and -device virtio-net-device on it."""

from __future__ import annotations

import re
from typing import Any

from vmm.cli.builder import ConfigBuilder
from vmm.cli.fdset import fd_number
from vmm.cli.memory import ID_HELP
from vmm.config import DEFAULT_IFDOWN, DEFAULT_IFUP, TapNetdev, VirtioNetDevice
from vmm.errors import ConfigError
from vmm.optstr import is_identifier, parse_options
from vmm.qapi import (
    BOOL,
    SIZE,
    STR,
    UINT32,
    Enum,
    Member,
    Object,
    Variant,
    check,
    check_keyval,
)
from vmm.qmp.jsonvalue import parse_json

# What one machine can have devices for is far below; a tap of Linux has at most 256 queues.
MAX_QUEUES = 256
_MAC = re.compile(r"[0-9a-fA-F]{2}(?:[:-][0-9a-fA-F]{2}){5}")
_MULTICAST = 0x01

_TAP = Object(
    "NetdevTapOptions",
    (
        *(
            Member(name, STR, optional=True)
            for name in ("ifname", "fd", "fds", "script", "downscript", "br", "helper", "vhostfd")
        ),
        *(Member(name, BOOL, optional=True) for name in ("vnet_hdr", "vhost", "vhostforce")),
        Member("sndbuf", SIZE, optional=True),
        Member("queues", UINT32, optional=True),
    ),
)
_NETDEV = Object(
    "Netdev",
    (Member("type", Enum("NetClientDriver", ("tap",))), Member("id", STR)),
    tag="type",
    variants=(Variant("tap", _TAP),),
)
VIRTIO_NET = Object(
    "virtio-net-device",
    (
        Member("id", STR, optional=True),
        Member("netdev", STR, optional=True),
        Member("mac", STR, optional=True),
        Member("migrate-fds", BOOL, optional=True),
    ),
)
_NOT_WITH_FD = ("ifname", "script", "downscript", "vnet_hdr", "helper", "queues")
_NOT_HERE = ("br", "helper", "vhostfd")


def netdev(builder: ConfigBuilder, value: str) -> None:
    """-netdev tap,id=ID[,ifname=|,fd=|,fds=][,script=][,downscript=][,queues=], or JSON."""
    if value.startswith("{"):
        given = check(_NETDEV, parse_json(value))
    else:
        options = {option.key: option.value for option in parse_options(value, "type")}
        given = check_keyval(_NETDEV, options, unexpected="Invalid parameter '{}'")
    name = given["id"]
    if not is_identifier(name):
        raise ConfigError(f"Parameter 'id' expects an identifier\n{ID_HELP}")
    if name in builder.netdevs:
        raise ConfigError(f"Duplicate ID '{name}' for netdev")
    builder.netdevs[name] = _tap(name, given)


def _tap(name: str, given: dict[str, Any]) -> TapNetdev:
    for key in _NOT_HERE:
        if key in given:
            raise ConfigError(f"netdev '{name}': option '{key}' is not supported")
    if given.get("vhost") or given.get("vhostforce"):
        raise ConfigError(f"netdev '{name}': vhost is not supported; say vhost=off")
    if "fd" in given or "fds" in given:
        return _inherited(name, given)
    if given.get("vnet_hdr") is False:
        raise ConfigError(f"netdev '{name}': vnet_hdr=off is not supported")
    queues = given.get("queues", 1)
    if not 1 <= queues <= MAX_QUEUES:
        raise ConfigError(f"netdev '{name}': queues must be from 1 to {MAX_QUEUES}, not {queues}")
    return TapNetdev(
        name,
        ifname=given.get("ifname") or None,
        script=_script(given.get("script", DEFAULT_IFUP)),
        downscript=_script(given.get("downscript", DEFAULT_IFDOWN)),
        queues=queues,
        sndbuf_bytes=given.get("sndbuf"),
    )


def _inherited(name: str, given: dict[str, Any]) -> TapNetdev:
    """Not opened yet: in a successor the number is only what the first process had."""
    which = "fd" if "fd" in given else "fds"
    if "fd" in given and "fds" in given:
        raise ConfigError("fds= is invalid with fd=")
    if given.keys() & set(_NOT_WITH_FD):
        raise ConfigError(
            f"{', '.join(f'{key}=' for key in _NOT_WITH_FD)} are invalid with {which}="
        )
    numbers = given[which].split(":") if which == "fds" else [given[which]]
    fds = tuple(fd_number(number) for number in numbers)
    return TapNetdev(
        name,
        fds=fds,
        script=None,
        downscript=None,
        queues=len(fds),
        sndbuf_bytes=given.get("sndbuf"),
    )


def _script(path: str) -> str | None:
    return None if path in ("", "no") else path


def virtio_net(builder: ConfigBuilder, given: dict[str, Any]) -> None:
    """-device virtio-net-device[,netdev=ID][,mac=MAC][,migrate-fds=on|off]."""
    name = given.get("netdev")
    if name is not None and name not in builder.netdevs:
        raise ConfigError(f"Property 'virtio-net-device.netdev' can't find value '{name}'")
    if name is not None and name in builder.used_netdevs():
        raise ConfigError(
            f"Property 'virtio-net-device.netdev' can't take value '{name}', it's in use"
        )
    builder.virtio.append(
        VirtioNetDevice(
            netdev=name,
            mac=_mac(given["mac"]) if "mac" in given else None,
            migrate_fds=given.get("migrate-fds", True),
            id=given.get("id"),
        )
    )


def _mac(text: str) -> bytes:
    if _MAC.fullmatch(text) is None:
        raise ConfigError(
            f"Property 'virtio-net-device.mac' doesn't take value '{text}': six bytes in hex, as "
            "in 52:54:00:12:34:56"
        )
    mac = bytes.fromhex(text.replace(":", "").replace("-", ""))
    if mac[0] & _MULTICAST:
        raise ConfigError(f"Property 'virtio-net-device.mac': '{text}' is a multicast address")
    return mac
