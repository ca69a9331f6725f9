"""The human monitor: a few lines for people, with QEMU's output.

`run_line` is `human-monitor-command` and also every line typed at a `-monitor`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vmm.errors import VmmError
from vmm.qmp.control import VmmControl
from vmm.qmp.results import version_info
from vmm.runstate import RunState

NEWLINE = "\r\n"
PROMPT = "(qemu) "
_NO_UUID = "00000000-0000-0000-0000-000000000000"


@dataclass(frozen=True, slots=True)
class _Line:
    """A monitor command without arguments: its names, its help, what it does."""

    names: tuple[str, ...]
    help: str
    run: Callable[[VmmControl], str]


def banner() -> str:
    """What a monitor says to a new client."""
    return f"{version_info().package} monitor - type 'help' for more information{NEWLINE}"


def run_line(vmm: VmmControl, line: str) -> str:
    """What `line` prints. Errors are printed as well, as in QEMU."""
    words = line.split()
    if not words:
        return ""
    name, arguments = words[0], words[1:]
    if name in ("help", "?"):
        return _help(arguments)
    if name == "info":
        return _info(vmm, arguments)
    if (found := _find(_COMMANDS, name)) is None:
        return f"unknown command: '{name}'{NEWLINE}"
    return _run(vmm, found, arguments)


def _info(vmm: VmmControl, arguments: list[str]) -> str:
    if not arguments:
        return "".join(_usage(item, "info ") for item in _INFOS)
    if (found := _find(_INFOS, arguments[0])) is None:
        return f"unknown command: 'info {arguments[0]}'{NEWLINE}"
    return _run(vmm, found, arguments[1:])


def _help(arguments: list[str]) -> str:
    if not arguments:
        own = "help|?  -- show the help" + NEWLINE
        info = "info [subcommand]  -- show various information about the system state" + NEWLINE
        return own + info + "".join(_usage(item) for item in _COMMANDS)
    if arguments[0] == "info":
        return "".join(_usage(item, "info ") for item in _INFOS)
    found = _find(_COMMANDS, arguments[0])
    return _usage(found) if found else f"unknown command: '{arguments[0]}'{NEWLINE}"


def _run(vmm: VmmControl, line: _Line, arguments: list[str]) -> str:
    if arguments:
        names = "|".join(line.names)
        return (
            f"{names}: extraneous characters at the end of line{NEWLINE}"
            f'Try "help {line.names[0]}" for more information{NEWLINE}'
        )
    try:
        return line.run(vmm)
    except VmmError as error:
        return f"Error: {error}{NEWLINE}"


def _find(lines: tuple[_Line, ...], name: str) -> _Line | None:
    return next((line for line in lines if name in line.names), None)


def _usage(line: _Line, prefix: str = "") -> str:
    return f"{prefix}{'|'.join(line.names)}  -- {line.help}{NEWLINE}"


def _silent(action: Callable[[VmmControl], None]) -> Callable[[VmmControl], str]:
    def run(vmm: VmmControl) -> str:
        action(vmm)
        return ""

    return run


def _status(vmm: VmmControl) -> str:
    state = vmm.runstate
    if state is RunState.RUNNING:
        shown = "running"
    else:
        shown = "paused" if state is RunState.PAUSED else f"paused ({state.value})"
    return f"VM status: {shown}{NEWLINE}"


def _version(_vmm: VmmControl) -> str:
    version = version_info()
    numbers = f"{version.qemu.major}.{version.qemu.minor}.{version.qemu.micro}"
    return f"{numbers}{version.package}{NEWLINE}"


def _name(vmm: VmmControl) -> str:
    return f"{vmm.config.name}{NEWLINE}" if vmm.config.name else ""


def _uuid(vmm: VmmControl) -> str:
    return f"{vmm.config.uuid or _NO_UUID}{NEWLINE}"


def _kvm(vmm: VmmControl) -> str:
    return f"kvm support: {'enabled' if vmm.accel_name == 'kvm' else 'disabled'}{NEWLINE}"


def _cpus(vmm: VmmControl) -> str:
    return "".join(
        f"{'*' if index == 0 else ' '} CPU #{index}: thread_id={thread_id}{NEWLINE}"
        for index, thread_id in enumerate(vmm.cpu_thread_ids())
    )


def _migrate(vmm: VmmControl) -> str:
    info = vmm.migration_info()
    lines = [f"blocked: {reason}" for reason in info.get("blocked-reasons", ())]
    if "status" in info:
        why = f" ({info['error-desc']})" if "error-desc" in info else ""
        lines.append(f"Migration status: {info['status']}{why}")
    for key, unit in (("total-time", "ms"), ("downtime", "ms"), ("expected-downtime", "ms")):
        if key in info:
            lines.append(f"{key}: {info[key]} {unit}")
    return "".join(f"{line}{NEWLINE}" for line in lines)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"'{value}'" if value == "" else str(value)


def _pairs(pairs: Mapping[str, object]) -> str:
    return "".join(f"{name}: {_shown(value)}{NEWLINE}" for name, value in pairs.items())


def _parameters(vmm: VmmControl) -> str:
    return _pairs(vmm.parameters.to_qmp())


def _capabilities(vmm: VmmControl) -> str:
    return _pairs({item["capability"]: item["state"] for item in vmm.capabilities.to_qmp()})


def _memory_size(vmm: VmmControl) -> str:
    return f"base memory: {vmm.config.memory_size_bytes}{NEWLINE}plugged memory: 0{NEWLINE}"


_COMMANDS: tuple[_Line, ...] = (
    _Line(("cont", "c"), "resume emulation", _silent(lambda vmm: vmm.cont())),
    _Line(
        ("migrate_cancel",),
        "cancel the current VM migration",
        _silent(lambda v: v.migrate_cancel()),
    ),
    _Line(("quit", "q"), "quit the emulator", _silent(lambda vmm: vmm.quit())),
    _Line(("stop", "s"), "stop emulation", _silent(lambda vmm: vmm.stop())),
    _Line(("system_reset",), "reset the system", _silent(lambda vmm: vmm.system_reset())),
)
_INFOS: tuple[_Line, ...] = (
    _Line(("cpus",), "show infos for each CPU", _cpus),
    _Line(("kvm",), "show KVM information", _kvm),
    _Line(("memory_size_summary",), "show the amount of guest memory in bytes", _memory_size),
    _Line(("migrate",), "show migration status", _migrate),
    _Line(("migrate_capabilities",), "show current migration capabilities", _capabilities),
    _Line(("migrate_parameters",), "show current migration parameters", _parameters),
    _Line(("name",), "show the current VM name", _name),
    _Line(("status",), "show the current VM status (running|paused)", _status),
    _Line(("uuid",), "show the current VM UUID", _uuid),
    _Line(("version",), "show the version", _version),
)
