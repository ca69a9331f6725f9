"""-chardev, -serial, -mon, -qmp, -qmp-pretty, -monitor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vmm.cli.builder import ConfigBuilder
from vmm.cli.fdset import fd_number
from vmm.cli.memory import ID_HELP
from vmm.config import Chardev, ChardevKind, Monitor, MonitorMode
from vmm.errors import ConfigError
from vmm.optstr import is_identifier, parse_bool, parse_options

BACKEND_NAMES = ("null", "stdio", "file", "socket", "pty")
_KINDS = {
    "null": ChardevKind.NULL,
    "stdio": ChardevKind.STDIO,
    "file": ChardevKind.FILE,
    "socket": ChardevKind.SOCKET,
    "unix": ChardevKind.SOCKET,
    "pty": ChardevKind.PTY,
}
# Back-ends of QEMU that this VMM has not; an orchestrator's mistake is told apart from a typo.
_OTHER_KINDS = frozenset(
    {
        *("tcp", "telnet", "udp", "websocket", "ringbuf", "memory", "serial", "tty", "parallel"),
        *("pipe", "con", "console", "msmouse", "braille", "testdev", "hub", "spicevmc", "vc"),
    }
)
_OPTIONS = {
    ChardevKind.NULL: frozenset({"mux"}),
    ChardevKind.STDIO: frozenset({"mux", "signal"}),
    ChardevKind.FILE: frozenset({"mux", "path", "append"}),
    ChardevKind.SOCKET: frozenset({"mux", "path", "fd", "server", "wait"}),
    ChardevKind.PTY: frozenset({"mux"}),
}
_UNSUPPORTED = frozenset(
    {
        *("host", "port", "to", "ipv4", "ipv6", "delay", "nodelay", "reconnect", "reconnect-ms"),
        *("telnet", "tn3270", "websocket", "tls-creds", "tls-authz", "abstract", "tight"),
        *("logfile", "logappend", "input-path"),
    }
)
_BOOLEANS = frozenset({"mux", "signal", "append", "server", "wait"})


def chardev(builder: ConfigBuilder, value: str) -> None:
    """-chardev BACKEND,id=ID[,…]."""
    options = parse_options(value, "backend")
    given = {option.key: option.value for option in options}
    backend = given.pop("backend", "")
    if "id" not in given:
        raise ConfigError("chardev: no id specified")
    name = given.pop("id")
    if not is_identifier(name):
        raise ConfigError(f"Parameter 'id' expects an identifier\n{ID_HELP}")
    if backend not in _KINDS or backend == "unix":
        raise ConfigError(f"'{backend}' is not a valid char driver name")
    builder.add_chardev(_make(name, _KINDS[backend], given))


def serial(builder: ConfigBuilder, value: str) -> None:
    """-serial DEV: the next serial port; `none` makes none."""
    index = builder.serial_options
    builder.serial_options += 1
    name = attach(builder, value, f"serial{index}")
    if name is not None:
        builder.serials.append(name)


def mon(builder: ConfigBuilder, value: str) -> None:
    """-mon [chardev=]ID[,mode=readline|control][,pretty=on|off]."""
    given = {option.key: option.value for option in parse_options(value, "chardev")}
    given.pop("id", None)
    if "chardev" not in given:
        raise ConfigError("Parameter 'chardev' is missing")
    mode = given.pop("mode", "readline")
    if mode not in {item.value for item in MonitorMode}:
        raise ConfigError(f"Parameter 'mode' does not accept value '{mode}'")
    name = given.pop("chardev")
    pretty = _boolean("pretty", given.pop("pretty", "off"))
    for key in given:
        raise ConfigError(f"Invalid parameter '{key}'")
    builder.monitors.append(Monitor(name, MonitorMode(mode), pretty))


def qmp(builder: ConfigBuilder, value: str, *, pretty: bool = False) -> None:
    """-qmp DEV: a control monitor on its own chardev."""
    _monitor(builder, value, Monitor("", MonitorMode.CONTROL, pretty))


def qmp_pretty(builder: ConfigBuilder, value: str) -> None:
    """-qmp-pretty DEV: the same with indented JSON."""
    qmp(builder, value, pretty=True)


def monitor(builder: ConfigBuilder, value: str) -> None:
    """-monitor DEV: a human monitor."""
    _monitor(builder, value, Monitor("", MonitorMode.READLINE))


def _monitor(builder: ConfigBuilder, value: str, template: Monitor) -> None:
    name = attach(builder, value, f"compat_monitor{len(builder.monitors)}")
    if name is not None:
        builder.monitors.append(replace(template, chardev=name))


def attach(builder: ConfigBuilder, text: str, name: str) -> str | None:
    """The chardev that a device string names or describes; None for `none`.

    null | stdio | pty | file:PATH | unix:PATH[,server=on][,wait=off] | chardev:ID | none; `vc` (a
    virtual console, of which there is none) is null, and `mon:stdio` is stdio with a warning.
    """
    head, colon, rest = text.partition(":")
    if text == "none":
        return None
    if head == "chardev" and colon:
        return rest
    if head == "mon" and colon:
        builder.warnings.append(f"'{text}': there is no monitor multiplexing; use -monitor")
        return attach(builder, rest, name)
    builder.add_chardev(_describe(text, head, rest if colon else None, name))
    return name


def _describe(text: str, head: str, rest: str | None, name: str) -> Chardev:
    if head == "vc":
        return Chardev(name, ChardevKind.NULL)
    if head == "unix" and rest is not None:
        given = {option.key: option.value for option in parse_options(rest, "path")}
        return _make(name, ChardevKind.SOCKET, {"path": "", **given})
    if head == "file" and rest is not None:
        return _make(name, ChardevKind.FILE, {"path": rest})
    if text in ("null", "stdio", "pty"):
        return Chardev(name, _KINDS[text])
    if head in _OTHER_KINDS:
        raise ConfigError(
            f"character devices of type '{head}' are not supported; there are null, stdio, pty, "
            "file:PATH, unix:PATH"
        )
    raise ConfigError(f"'{text}' is not a valid char driver")


def _make(name: str, kind: ChardevKind, given: dict[str, str]) -> Chardev:
    for key in given:
        if key in _UNSUPPORTED:
            raise ConfigError(
                f"chardev '{name}': option '{key}' is not supported; sockets are unix sockets "
                "(path= or fd=)"
            )
        if key not in _OPTIONS[kind]:
            raise ConfigError(f"Invalid parameter '{key}'")
    flags = {key: _boolean(key, given[key]) for key in given.keys() & _BOOLEANS}
    path = given.get("path")
    if kind is ChardevKind.FILE and not path:
        raise ConfigError("chardev: file: no filename given")
    if kind is ChardevKind.SOCKET:
        return _socket(name, path, given.get("fd"), flags)
    return Chardev(name, kind, Path(path) if path else None, append=flags.get("append", False))


def _socket(name: str, path: str | None, fd: str | None, flags: dict[str, bool]) -> Chardev:
    if (path is None) == (fd is None):
        raise ConfigError("None or one of 'path', 'fd' or 'host' option required.")
    number = None if fd is None else fd_number(fd)
    if path == "":
        raise ConfigError("invalid Unix socket address")
    server = flags.get("server", False)
    if "wait" in flags and not server:
        raise ConfigError("'wait' option is incompatible with socket in client connect mode")
    return Chardev(
        name,
        ChardevKind.SOCKET,
        path=None if path is None else Path(path),
        fd=number,
        server=server,
        wait=flags.get("wait", True),
    )


def _boolean(key: str, text: str) -> bool:
    value = parse_bool(text)
    if value is None:
        raise ConfigError(f"Parameter '{key}' expects 'on' or 'off'")
    return value
