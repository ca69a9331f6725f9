"""Test guests (tests/guests/*.S), assembled when a test wants them."""

from __future__ import annotations

import enum
import subprocess
from pathlib import Path

GUESTS = Path(__file__).parents[1] / "guests"
TOOL_DEADLINE_S = 60


class Image(enum.Enum):
    """Forms of a guest image: (compiler's width, linker's emulation, address, output format)."""

    SECTOR = ("-m32", "elf_i386", 0x7C00, "binary")
    FLAT = ("-m64", "elf_x86_64", 0x10_0000, "binary")
    ELF64 = ("-m64", "elf_x86_64", 0x20_0000, "elf64-x86-64")
    ELF32 = ("-m32", "elf_i386", 0x20_0000, "elf32-i386")


def assemble(
    directory: Path,
    name: str,
    image: Image = Image.SECTOR,
    *,
    at: int | None = None,
    **defines: int,
) -> Path:
    """Assemble and link tests/guests/NAME.S in `directory`; `defines` are macros of the source.

    Raises CalledProcessError, with the tools' words on stderr.
    """
    width, emulation, address, output_format = image.value
    macros = [f"-D{macro}={value:#x}" for macro, value in defines.items()]
    source, objects, linked = GUESTS / f"{name}.S", directory / f"{name}.o", directory / name
    _run("gcc", "-c", width, *macros, str(source), "-o", str(objects))
    text = f"{address if at is None else at:#x}"
    options = ("-m", emulation, "-Ttext", text, "--oformat", output_format, "-z", "noexecstack")
    _run("ld", *options, "--no-warn-rwx-segments", str(objects), "-o", str(linked))
    return linked


def _run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=TOOL_DEADLINE_S)
