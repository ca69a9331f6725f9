"""This Python with everything the lab imports, as files for an initramfs."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from compileall import compile_dir
from pathlib import Path

from tools.lab.errors import LabError
from tools.lab.linux.cpio import Entry

# Left out: what nothing at run time imports, and what would double the archive.
_NOT_IN_STDLIB = re.compile(
    r"(?:test|tests|idlelib|tkinter|ensurepip|lib2to3|turtledemo|site-packages|dist-packages"
    r"|pydoc_data|config-[^/]*|distutils)(?:/|$)"
    r"|lib-dynload/_(?:tkinter|test)|.*\.opt-[12]\.pyc$"
)
_SITE_PACKAGES = (
    *("cbor2", "prctl.py", "_prctl", "pyroute2", "pyseccomp.py", "qemu", "rich", "pygments"),
    *("markdown_it", "mdurl"),
)
_LIBRARY = re.compile(r"(/\S+\.so\S*)")
PROJECT, SITE = "project", "site"
PROJECT_PACKAGES = ("vmm", "cpr", "guestram", "tools")


def interpreter() -> str:
    """Path of the interpreter itself, the same inside as here."""
    return str(Path(getattr(sys, "_base_executable", sys.executable)).resolve())


def python_files() -> Iterator[Entry]:
    """Interpreter, standard library, run-time dependencies, and the shared libraries of all."""
    objects = [Path(interpreter())]
    yield _copy(objects[0])
    stdlib = Path(sysconfig.get_path("stdlib", vars=_base_vars()))
    for path in _files(stdlib):
        if not _NOT_IN_STDLIB.match(str(path.relative_to(stdlib))):
            yield _copy(path)
            objects += [path] if path.suffix == ".so" else []
    site = Path(sysconfig.get_path("purelib"))
    for name in _SITE_PACKAGES:
        for found in sorted(site.glob(f"{name}*")):
            if found.suffix in (".dist-info", ".egg-info"):
                continue
            for path in _files(found):
                yield Entry.copy(path, f"{SITE}/{path.relative_to(site)}")
                objects += [path] if path.suffix == ".so" else []
    seccomp = Path(_library_path("libseccomp.so.2"))
    for library in sorted(_libraries([*objects, seccomp]) | {seccomp}):
        yield _copy(library)
    # ctypes finds a library by asking ldconfig for its cache.
    yield _copy(Path("/sbin/ldconfig"))
    yield _copy(Path("/etc/ld.so.cache"))


def project_files(root: Path) -> Iterator[Entry]:
    """This checkout's packages, compiled: the part that changes."""
    for package in PROJECT_PACKAGES:
        compile_dir(root / package, quiet=2)  # an emulated processor needs seconds for it
        for path in _files(root / package):
            yield Entry.copy(path, f"{PROJECT}/{path.relative_to(root)}")


def _base_vars() -> dict[str, str]:
    return {"installed_base": sys.base_prefix, "base": sys.base_prefix}


def _files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    return sorted(path for path in place.rglob("*") if path.is_file())


def _copy(path: Path) -> Entry:
    return Entry.copy(path, str(path).lstrip("/"))


def _libraries(objects: list[Path]) -> set[Path]:
    """Everything that the dynamic linker loads for them, the linker itself among it."""
    found: set[Path] = set()
    for path in objects:
        listed = subprocess.run(
            ["ldd", path], capture_output=True, text=True, timeout=30, check=False
        )
        found |= {Path(name) for name in _LIBRARY.findall(listed.stdout) if Path(name).is_file()}
    return found


def _library_path(soname: str) -> str:
    listed = subprocess.run(
        ["/sbin/ldconfig", "-p"], capture_output=True, text=True, timeout=30, check=True
    )
    for line in listed.stdout.splitlines():
        if line.split(" ")[0].strip() == soname and "x86-64" in line:
            return line.rpartition("=> ")[2]
    raise LabError(f"no {soname} on this system, which the VMM's sandbox needs")
