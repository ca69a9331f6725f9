"""The text of --help and --version, from the table."""

from __future__ import annotations

import textwrap

from vmm.cli.table import GROUPS, Group
from vmm.version import PRODUCT, QEMU_COMPATIBLE, VERSION

_WIDTH = 96
_HELP_COLUMN = 32
_EXAMPLE = """\
Examples (run the second while the first runs, then `migrate` the first over QMP):
  vmm -machine cpr,memory-backend=ram0 -object memory-backend-memfd,id=ram0,size=256M \\
      -qmp unix:old.qmp,server=on,wait=off
  vmm <the same> -qmp unix:new.qmp,server=on,wait=off -incoming unix:main.sock \\
      -incoming cpr,addr.transport=socket,addr.type=unix,addr.path=cpr.sock"""


def version_text() -> str:
    """Product, version, and whose behaviour it follows."""
    qemu = ".".join(str(number) for number in QEMU_COMPATIBLE)
    return f"{PRODUCT} {VERSION} (options, QMP and messages follow QEMU {qemu})"


def help_text() -> str:
    """One or two screens, grouped."""
    parts = [
        f"usage: vmm [options]\n{version_text()}\n"
        "Option syntax is QEMU's: ',,' is a comma in a value, sizes take k M G T.",
        *(_group(group) for group in GROUPS),
        _EXAMPLE,
    ]
    return "\n\n".join(parts)


def _group(group: Group) -> str:
    lines = [f"{group.title}:"]
    quiet: list[str] = []
    for option in group.options:
        usage = f"-{option.names[0]} {option.metavar}".rstrip()
        if option.help:
            lines += _described(usage, option.help)
        else:
            quiet.append(usage)
    if quiet:
        lines += textwrap.wrap(
            ", ".join(quiet), _WIDTH, initial_indent="  also ", subsequent_indent="       "
        )
    return "\n".join(lines)


def _described(usage: str, text: str) -> list[str]:
    first, *more = text.split("\n")
    indent = " " * _HELP_COLUMN
    if len(usage) + 4 <= _HELP_COLUMN:
        lines = [f"  {usage}".ljust(_HELP_COLUMN) + first]
    else:
        lines = [f"  {usage}", indent + first]
    return [*lines, *(indent + line for line in more)]
