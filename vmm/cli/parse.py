"""Walk the arguments, apply each option, check the whole.

Both `-opt` and `--opt` are accepted. Messages carry the option as QEMU's do: `-m foo: Parameter …`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from vmm.boot.linux_image import is_linux_file
from vmm.cli import chardevs, guest, machine, memory
from vmm.cli.builder import ConfigBuilder
from vmm.cli.fdset import resolve_fdsets
from vmm.cli.help import help_text, version_text
from vmm.cli.table import REFUSED, OptionSpec, option_index
from vmm.config import VmmConfig
from vmm.errors import ConfigError, MigrationError
from vmm.optstr import OptionSyntaxError
from vmm.qapi import QapiError
from vmm.qmp.jsonvalue import JsonSyntaxError

_LISTS = {
    "machine": (*machine.MACHINES, *machine.ALIASES, "pc", "q35", "microvm"),
    "M": (*machine.MACHINES, *machine.ALIASES, "pc", "q35", "microvm"),
    "accel": machine.ACCELERATORS,
    "device": guest.DEVICE_NAMES,
    "object": memory.OBJECT_TYPES,
    "chardev": chardevs.BACKEND_NAMES,
}


def parse_args(argv: Sequence[str]) -> VmmConfig:
    """The configuration that the arguments (without the program's name) ask for.

    Raises ConfigError with the text for stderr, and SystemExit(0) after printing what --help,
    --version or `-machine help` ask for.
    """
    builder = ConfigBuilder()
    options = option_index()
    arguments = iter(argv)
    for argument in arguments:
        name = _option_name(argument)
        if name in ("h", "help", "version"):
            _print(version_text() if name == "version" else help_text())
        if name in REFUSED:
            raise ConfigError(f"{argument}: {REFUSED[name]}")
        if name not in options:
            raise ConfigError(f"{argument}: invalid option")
        _apply(builder, options[name], name, argument, arguments)
    config = resolve_fdsets(
        builder.finish(machine.finish_machine(builder), machine.finish_accels(builder))
    )
    return config if machine.irqchip_given(builder) else _with_irqchip_for_linux(config)


def _with_irqchip_for_linux(config: VmmConfig) -> VmmConfig:
    """kernel-irqchip=auto: Linux needs the chips, everything else has less state without them."""
    if config.kernel is None or not is_linux_file(config.kernel):
        return config
    return replace(config, machine=replace(config.machine, kernel_irqchip=True))


def _option_name(argument: str) -> str:
    if not argument.startswith("-") or argument in ("-", "--"):
        raise ConfigError(
            f"{argument}: expected an option; a disk image cannot be attached, there are no disks"
        )
    return argument.removeprefix("-").removeprefix("-")


def _apply(
    builder: ConfigBuilder,
    option: OptionSpec,
    name: str,
    argument: str,
    rest: Iterator[str],
) -> None:
    if not option.metavar:
        option.apply(builder)
        return
    value = next(rest, None)
    if value is None:
        raise ConfigError(f"{argument}: requires an argument")
    if value in ("help", "?") and name in _LISTS:
        _print("\n".join(_LISTS[name]))
    try:
        option.apply(builder, value)
    except (ConfigError, MigrationError, QapiError, OptionSyntaxError, JsonSyntaxError) as error:
        raise ConfigError(f"-{name} {value}: {error}") from error


def _print(text: str) -> None:
    print(text)  # noqa: T201 - what the user asked for
    raise SystemExit(0)
