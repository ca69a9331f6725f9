"""-name, -uuid, -incoming, -global, -add-fd, -pidfile … and options without effect here."""

from __future__ import annotations

import fcntl
import re
from dataclasses import replace
from pathlib import Path
from uuid import UUID

from vmm.cli.builder import ConfigBuilder
from vmm.config import ChannelType, InheritedFd, SandboxOptions
from vmm.errors import ConfigError
from vmm.migration.addresses import is_uri, parse_channel, parse_uri
from vmm.optstr import parse_bool, parse_keyval, parse_number, parse_options

_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_GLOBAL = re.compile(r"(?P<driver>[^.=,]+)\.(?P<property>[^=]+)=(?P<value>.*)", re.DOTALL)
_FIRST_FREE_FD = 3
_BOOT_OPTIONS = frozenset(
    {"order", "once", "menu", "splash", "splash-time", "reboot-timeout", "strict"}
)
_RTC_OPTIONS = frozenset({"base", "clock", "driftfix"})
_ACTIONS = frozenset({"reboot", "shutdown", "panic", "watchdog"})


def name(builder: ConfigBuilder, value: str) -> None:
    """-name [guest=]NAME[,process=NAME][,debug-threads=on|off]."""
    for option in parse_options(value, "guest"):
        if option.key == "guest":
            builder.name = option.value
        elif option.key == "debug-threads":
            _on_off("debug-threads", option.value)
        elif option.key != "process":
            raise ConfigError(f"Invalid parameter '{option.key}'")


def uuid(builder: ConfigBuilder, value: str) -> None:
    """-uuid UUID."""
    if _UUID.fullmatch(value) is None:
        raise ConfigError("failed to parse UUID string: wrong format")
    builder.uuid = UUID(value)


def incoming(builder: ConfigBuilder, value: str) -> None:
    """-incoming URI|defer|CHANNEL; of each channel type the last counts."""
    if value == "defer":
        builder.incoming_main = None
    elif is_uri(value):
        builder.incoming_main = parse_uri(value)
    else:
        channel = parse_channel(value)
        if channel.type is ChannelType.MAIN:
            builder.incoming_main = channel.address
        else:
            builder.incoming_cpr = channel.address
    builder.incoming_given = True


def global_(builder: ConfigBuilder, value: str) -> None:
    """-global DRIVER.PROPERTY=VALUE, of the drivers `migration` and `virtio-mmio`."""
    found = _GLOBAL.fullmatch(value)
    if found is not None:
        driver, prop, text = found.groups()
    else:
        given = {option.key: option.value for option in parse_options(value)}
        driver, prop = given.pop("driver", ""), given.pop("property", "")
        text = given.pop("value", "")
        for key in given:
            raise ConfigError(f"Invalid parameter '{key}'")
        if not driver or not prop:
            raise ConfigError("expects DRIVER.PROPERTY=VALUE")
    if driver == "migration":
        builder.migration_globals[prop] = text
    elif driver == "virtio-mmio":
        _virtio_mmio_global(builder, prop, text)
    else:
        builder.warnings.append(f"global {driver}.{prop} has no effect: there is no such driver")


def _virtio_mmio_global(builder: ConfigBuilder, prop: str, text: str) -> None:
    """QEMU's properties of the transport; ours has version 2 of the registers only."""
    value = parse_bool(text)
    if value is None:
        raise ConfigError(f"Parameter '{prop}' expects 'on' or 'off'")
    if prop == "ioeventfd":
        builder.virtio_ioeventfd = value
    elif prop != "force-legacy":
        raise ConfigError(f"Property 'virtio-mmio.{prop}' not found")
    elif value:
        raise ConfigError("there is no legacy transport here")


def add_fd(builder: ConfigBuilder, value: str) -> None:
    """-add-fd fd=N,set=M[,opaque=TEXT]: keep an inherited fd for /dev/fdset/M."""
    given = {option.key: option.value for option in parse_options(value)}
    fd, fdset = parse_number(given.pop("fd", "")), parse_number(given.pop("set", ""))
    opaque = given.pop("opaque", None)
    for key in given:
        raise ConfigError(f"Invalid parameter '{key}'")
    if fd is None:
        raise ConfigError("fd option is required and must be non-negative")
    if fd < _FIRST_FREE_FD:
        raise ConfigError("fd cannot be a standard I/O stream")
    if not _was_inherited(fd):
        raise ConfigError("fd is not valid or already in use")
    if fdset is None:
        raise ConfigError("set option is required and must be non-negative")
    builder.inherited_fds.append(InheritedFd(fd, fdset, opaque))


def _was_inherited(fd: int) -> bool:
    """An fd that came from our parent is open and not close-on-exec."""
    try:
        return not fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    except OSError:
        return False


def pidfile(builder: ConfigBuilder, value: str) -> None:
    """-pidfile FILE."""
    builder.pidfile = Path(value)


def msg(builder: ConfigBuilder, value: str) -> None:
    """-msg timestamp=on|off[,guest-name=on|off]."""
    for option in parse_options(value):
        if option.key not in ("timestamp", "guest-name"):
            raise ConfigError(f"Invalid parameter '{option.key}'")
        enabled = _on_off(option.key, option.value)
        if option.key == "timestamp":
            builder.timestamps = enabled


def action(builder: ConfigBuilder, value: str) -> None:
    """-action reboot=reset|shutdown,shutdown=poweroff|pause; panic and watchdog never happen."""
    for option in parse_options(value):
        if option.key not in _ACTIONS:
            raise ConfigError(f"Invalid parameter '{option.key}'")
        if option.key == "reboot":
            builder.no_reboot = option.value == "shutdown"
        elif option.key == "shutdown":
            builder.no_shutdown = option.value == "pause"


def paused(builder: ConfigBuilder) -> None:
    """-S."""
    builder.start_paused = True


def no_reboot(builder: ConfigBuilder) -> None:
    """-no-reboot."""
    builder.no_reboot = True


def no_shutdown(builder: ConfigBuilder) -> None:
    """-no-shutdown."""
    builder.no_shutdown = True


def nographic(builder: ConfigBuilder) -> None:
    """-nographic: without -serial, the first serial port is stdio."""
    builder.nographic = True


def display(_builder: ConfigBuilder, value: str) -> None:
    """-display none."""
    if value.partition(",")[0] != "none":
        raise ConfigError(f"Parameter 'type' does not accept value '{value}'")


def vga(_builder: ConfigBuilder, value: str) -> None:
    """-vga none."""
    if value != "none":
        raise ConfigError(f"unknown vga type: {value}")


def only_none(_builder: ConfigBuilder, value: str) -> None:
    """Options whose device does not exist: only `none` is true."""
    if value != "none":
        raise ConfigError("there is no such device here; only 'none' is accepted")


def boot(_builder: ConfigBuilder, value: str) -> None:
    """-boot: checked, without effect; there is nothing to choose from."""
    for key in parse_keyval(value, "order"):
        if key not in _BOOT_OPTIONS:
            raise ConfigError(f"Parameter 'boot.{key}' is unexpected")


def rtc(_builder: ConfigBuilder, value: str) -> None:
    """-rtc: checked, without effect; there is no real-time clock."""
    for option in parse_options(value):
        if option.key not in _RTC_OPTIONS:
            raise ConfigError(f"Invalid parameter '{option.key}'")


_SANDBOX_GROUPS = {
    "obsolete": ("deny_obsolete", ("allow", "deny")),
    "elevateprivileges": ("deny_elevate_privileges", ("allow", "deny", "children")),
    "spawn": ("deny_spawn", ("allow", "deny")),
    "resourcecontrol": ("deny_resource_control", ("allow", "deny")),
}


def sandbox(builder: ConfigBuilder, value: str) -> None:
    """-sandbox on|off[,obsolete=…][,elevateprivileges=…][,spawn=…][,resourcecontrol=…]."""
    options = SandboxOptions()
    for option in parse_options(value, "enable"):
        if option.key == "enable":
            options = replace(options, enabled=_on_off("enable", option.value))
        elif option.key == "x-dumpable":
            options = replace(options, dumpable=_on_off("x-dumpable", option.value))
        elif option.key in _SANDBOX_GROUPS:
            field, words = _SANDBOX_GROUPS[option.key]
            if option.value not in words:
                raise ConfigError(f"invalid argument for {option.key}")
            # no_new_privs, which is what `children` asks for, is always there
            options = replace(options, **{field: option.value == "deny"})
            builder.spawn_given = builder.spawn_given or option.key == "spawn"
        else:
            raise ConfigError(f"Invalid parameter '{option.key}'")
    builder.sandbox = options


def without_effect(_builder: ConfigBuilder, _value: str = "") -> None:
    """Options that change nothing that this VMM has."""


def logging(builder: ConfigBuilder, value: str) -> None:
    """-d, -D, -trace: accepted so that scripts run; nothing is logged."""
    builder.warnings.append(f"logging and tracing options have no effect here ('{value}')")


def _on_off(key: str, text: str) -> bool:
    value = parse_bool(text)
    if value is None:
        raise ConfigError(f"Parameter '{key}' expects 'on' or 'off'")
    return value
