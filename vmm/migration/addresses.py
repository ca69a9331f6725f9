"""Migration addresses: URI strings, channel objects and dotted channels, all to one set of values.

Three spellings of one thing: `unix:/p` (a URI, always for the main channel), the JSON channel
`{"channel-type": "main", "addr": {"transport": "socket", "type": "unix", "path": "/p"}}`, and the
same with dots, `main,addr.transport=socket,addr.type=unix,addr.path=/p`. Error texts are QEMU's
(shared facts, qemu-fds-and-files 2.2 and 2.3).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vmm.config import (
    ChannelType,
    ExecAddress,
    FileAddress,
    MigrationAddress,
    MigrationChannel,
    SocketFd,
    SocketInet,
    SocketUnix,
    SocketVsock,
)
from vmm.errors import MigrationError
from vmm.optstr import OptionSyntaxError, parse_keyval, parse_number, parse_size
from vmm.qapi import (
    BOOL,
    STR,
    UINT16,
    UINT64,
    Array,
    Enum,
    Member,
    Object,
    QapiError,
    Variant,
    check,
    check_keyval,
)
from vmm.qmp.jsonvalue import JsonSyntaxError, parse_json

INET_ADDRESS = Object(
    "InetSocketAddress",
    (
        Member("host", STR),
        Member("port", STR),
        Member("numeric", BOOL, optional=True),
        Member("to", UINT16, optional=True),
        Member("ipv4", BOOL, optional=True),
        Member("ipv6", BOOL, optional=True),
        Member("keep-alive", BOOL, optional=True),
        Member("mptcp", BOOL, optional=True),
    ),
)
UNIX_ADDRESS = Object(
    "UnixSocketAddress",
    (
        Member("path", STR),
        Member("abstract", BOOL, optional=True),
        Member("tight", BOOL, optional=True),
    ),
)
SOCKET_ADDRESS = Object(
    "SocketAddress",
    (Member("type", Enum("SocketAddressType", ("inet", "unix", "vsock", "fd"))),),
    tag="type",
    variants=(
        Variant("inet", INET_ADDRESS),
        Variant("unix", UNIX_ADDRESS),
        Variant("vsock", Object("VsockSocketAddress", (Member("cid", STR), Member("port", STR)))),
        Variant("fd", Object("FdSocketAddress", (Member("str", STR),))),
    ),
)
MIGRATION_ADDRESS = Object(
    "MigrationAddress",
    (Member("transport", Enum("MigrationAddressType", ("socket", "exec", "file"))),),
    tag="transport",
    variants=(
        Variant("socket", SOCKET_ADDRESS),
        Variant("exec", Object("MigrationExecCommand", (Member("args", Array(STR)),))),
        Variant(
            "file",
            Object("FileMigrationArgs", (Member("filename", STR), Member("offset", UINT64))),
        ),
    ),
)
MIGRATION_CHANNEL = Object(
    "MigrationChannel",
    (
        Member("channel-type", Enum("MigrationChannelType", ("main", "cpr"))),
        Member("addr", MIGRATION_ADDRESS),
    ),
)

SocketAddress = SocketUnix | SocketInet | SocketVsock | SocketFd

_URI = re.compile(r"(?P<scheme>[A-Za-z]+):(?P<rest>.*)", re.DOTALL)
_OFFSET_OPTION = ",offset="
_SHELL = ("/bin/sh", "-c")
_INET = re.compile(
    r"(?::(?P<port>[^,]{1,32})|\[(?P<host6>[^\]]{1,64})\]:(?P<port6>[^,]{1,32})"
    r"|(?P<host4>[^:\[][^:]{0,63}):(?P<port4>[^,]{1,32}))(?P<options>(?:,.*)?)",
    re.DOTALL,
)
_INET_FLAGS = ("ipv4", "ipv6", "keep-alive", "mptcp")
# Inet options that we cannot honour, with the value at which they would change something.
_UNSUPPORTED_INET = {"ipv4": False, "ipv6": True, "keep-alive": True, "mptcp": True}


# ---- strings -------------------------------------------------------------------------------------


def is_uri(text: str) -> bool:
    """Whether `-incoming` takes `text` for a URI: letters, then a colon."""
    return _URI.fullmatch(text) is not None


def parse_uri(text: str) -> MigrationAddress:
    """The address of `tcp: unix: vsock: fd: exec: file:` URIs. Raises MigrationError."""
    found = _URI.fullmatch(text)
    parser = _SCHEMES.get(found["scheme"]) if found is not None else None
    if found is None or parser is None:
        raise MigrationError(f"unknown migration protocol: {text}")
    return parser(found["rest"])


def parse_channel(text: str) -> MigrationChannel:
    """One `-incoming` channel, JSON or dotted keys. Raises MigrationError."""
    try:
        if text.startswith("{"):
            clean = check(MIGRATION_CHANNEL, parse_json(text))
        else:
            clean = check_keyval(MIGRATION_CHANNEL, parse_keyval(text, "channel-type"))
    except (JsonSyntaxError, OptionSyntaxError, QapiError) as error:
        raise MigrationError(str(error)) from error
    return channel_from_qmp(clean)


def _unix(rest: str) -> MigrationAddress:
    if not rest or "\0" in rest:
        raise MigrationError("invalid Unix socket address")
    return SocketUnix(rest)


def _fd(rest: str) -> MigrationAddress:
    if not rest:
        raise MigrationError("invalid file descriptor address")
    return SocketFd(rest)


def _vsock(rest: str) -> MigrationAddress:
    cid, colon, port = rest.partition(":")
    if not (cid and colon and port):
        raise MigrationError(f"error parsing address '{rest}'")
    return SocketVsock(cid, port)


def _exec(rest: str) -> MigrationAddress:
    return ExecAddress((*_SHELL, rest))


def _file(rest: str) -> MigrationAddress:
    filename, option, offset = rest.partition(_OFFSET_OPTION)
    if not option:
        return FileAddress(filename)
    size = parse_size(offset)
    if size is None:
        too_far = re.fullmatch(r"-\d+|\d+[bBkKmMgGtTpPeE]?|0[xX][0-9a-fA-F]+", offset)
        reason = "Numerical result out of range" if too_far else "Invalid argument"
        raise MigrationError(f"file URI has bad offset {offset}: {reason}")
    return FileAddress(filename, size)


def _tcp(rest: str) -> MigrationAddress:
    found = _INET.fullmatch(rest)
    if found is None:
        what = "port in " if rest.startswith(":") else "IPv6 " if rest.startswith("[") else ""
        raise MigrationError(f"error parsing {what}address '{rest}'")
    host = found["host6"] or found["host4"] or ""
    port = found["port"] or found["port6"] or found["port4"]
    return _inet(host, port, _inet_options(found["options"], rest))


def _inet_options(text: str, whole: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for item in text.split(",")[1:]:
        name, equals, value = item.partition("=")
        if name == "to":
            if (last := parse_number(value)) is None:
                raise MigrationError("error parsing to= argument")
            options["to"] = last
        elif name in _INET_FLAGS:
            if equals and value not in ("on", "off"):
                raise MigrationError(f"error parsing '{name}' flag '={value}'")
            options[name] = value != "off"
        else:
            raise MigrationError(f"error parsing address '{whole}'")
    return options


_SCHEMES: Mapping[str, Callable[[str], MigrationAddress]] = {
    "tcp": _tcp,
    "unix": _unix,
    "vsock": _vsock,
    "fd": _fd,
    "exec": _exec,
    "file": _file,
}


# ---- QMP objects ---------------------------------------------------------------------------------


def channel_from_qmp(channel: Mapping[str, Any]) -> MigrationChannel:
    """A channel that passed MIGRATION_CHANNEL's check. Raises MigrationError."""
    return MigrationChannel(ChannelType(channel["channel-type"]), address_from_qmp(channel["addr"]))


def channels_from_qmp(channels: Sequence[Mapping[str, Any]]) -> tuple[MigrationChannel, ...]:
    """`migrate`'s channel list, checked against MIGRATION_CHANNEL before."""
    return tuple(channel_from_qmp(channel) for channel in channels)


def address_from_qmp(address: Mapping[str, Any]) -> MigrationAddress:
    """An address that passed MIGRATION_ADDRESS's check. Raises MigrationError."""
    match address["transport"]:
        case "file":
            return FileAddress(address["filename"], address["offset"])
        case "exec":
            if not address["args"]:
                raise MigrationError("an exec address needs at least one argument, the program")
            return ExecAddress(tuple(address["args"]))
        case _:
            return _socket_from_qmp(address)


def _socket_from_qmp(address: Mapping[str, Any]) -> MigrationAddress:
    match address["type"]:
        case "unix":
            if address.get("abstract"):
                raise MigrationError(
                    "abstract unix sockets are not supported here: anybody on the host may bind "
                    "them; give a path"
                )
            return _unix(address["path"])
        case "fd":
            return _fd(address["str"])
        case "vsock":
            return SocketVsock(address["cid"], address["port"])
        case _:
            return _inet(address["host"], address["port"], address)


def _inet(host: str, port: str, options: Mapping[str, Any]) -> MigrationAddress:
    for name, value in _UNSUPPORTED_INET.items():
        if options.get(name) is value:
            shown = "on" if value else "off"
            raise MigrationError(f"the inet option {name}={shown} is not supported here")
    if "to" in options:
        raise MigrationError(
            "the inet option 'to' is not supported here: the source must know the port beforehand"
        )
    return SocketInet(host, port)


def to_qmp(address: MigrationAddress) -> dict[str, Any]:
    """The MigrationAddress object of an address; `address_from_qmp` takes it back."""
    match address:
        case FileAddress(filename, offset_bytes):
            return {"transport": "file", "filename": filename, "offset": offset_bytes}
        case ExecAddress(args):
            return {"transport": "exec", "args": list(args)}
        case _:
            return {"transport": "socket", **socket_to_qmp(address)}


def socket_to_qmp(address: SocketAddress) -> dict[str, Any]:
    """The SocketAddress object, as in `query-migrate`'s socket-address."""
    match address:
        case SocketUnix(path):
            return {"type": "unix", "path": path}
        case SocketInet(host, port):
            return {"type": "inet", "host": host, "port": port}
        case SocketVsock(cid, port):
            return {"type": "vsock", "cid": cid, "port": port}
        case SocketFd(name):
            return {"type": "fd", "str": name}


def describe(address: MigrationAddress) -> str:
    """The address as a person writes it, for messages."""
    match address:
        case SocketUnix(path):
            return path
        case SocketInet(host, port):
            return f"{host}:{port}"
        case SocketVsock(cid, port):
            return f"vsock:{cid}:{port}"
        case SocketFd(name):
            return f"fd:{name}"
        case ExecAddress(args):
            return " ".join(args)
        case FileAddress(filename):
            return filename
