"""Distribution kernels as packaged: the image, the modules, and what modules need each other."""

from __future__ import annotations

import lzma
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tools.lab.errors import LabError

_FETCH = Path(__file__).parents[2] / "fetch-peer"
FETCH_DEADLINE_S = 600.0  # some 80 MB of packages over any line
_MODULE_FOLDERS = ("lib/modules", "usr/lib/modules")
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel package, unpacked under `root`."""

    version: str
    image: Path  # bzImage
    root: Path

    @property
    def series(self) -> tuple[int, ...]:
        """(6, 12) of 6.12.95-…."""
        return tuple(int(part) for part in re.findall(r"\d+", self.version)[:2])

    def module(self, name: str) -> bytes | None:
        """The module's object file, decompressed; None when it is built into the kernel.

        Raises LabError when this kernel has it in neither form.
        """
        folder = self._module_folder()
        wanted = _file_name(name)
        for path in folder.rglob("*.ko*"):
            if _file_name(path.name.split(".ko")[0]) == wanted:
                data = path.read_bytes()
                return lzma.decompress(data) if path.suffix == ".xz" else data
        builtin = (folder / "modules.builtin").read_text().split()
        if any(_file_name(Path(line).stem) == wanted for line in builtin):
            return None
        raise LabError(f"kernel {self.version} has no module {name}")

    def modules(self, names: Iterable[str]) -> dict[str, bytes]:
        """The named modules and all that they need, each after what it needs; none built in."""
        loaded: dict[str, bytes] = {}
        for name in names:
            self._collect(name, loaded)
        return loaded

    def _collect(self, name: str, loaded: dict[str, bytes]) -> None:
        if _file_name(name) in loaded:
            return
        data = self.module(name)
        if data is None:
            return
        for needed in _dependencies(data):
            self._collect(needed, loaded)
        loaded[_file_name(name)] = data

    def _module_folder(self) -> Path:
        for folder in _MODULE_FOLDERS:
            if (found := self.root / folder / self.version).is_dir():
                return found
        raise LabError(f"{self.root} has no modules of kernel {self.version}")


def find_kernels(root: Path) -> tuple[Kernel, ...]:
    """Every kernel unpacked under `root`, oldest series first."""
    images = (root / "boot").glob("vmlinuz-*")
    kernels = [Kernel(image.name.removeprefix("vmlinuz-"), image, root) for image in images]
    return tuple(sorted(kernels, key=lambda kernel: kernel.series))


def fetch_linux() -> Path:
    """Where tools/fetch-peer keeps the distribution's kernels and busybox; fetched at need.

    Raises LabError with its reason.
    """
    done = subprocess.run(
        [_FETCH, "linux"],
        capture_output=True,
        text=True,
        timeout=FETCH_DEADLINE_S,
        check=False,
    )
    if done.returncode != 0:
        raise LabError(done.stderr.strip().splitlines()[-1])
    return Path(done.stdout.strip())


def _file_name(name: str) -> str:
    """Modules are called with either sign."""
    return name.replace("-", "_")


def _dependencies(module: bytes) -> list[str]:
    match = _DEPENDS.search(module)
    return [name.decode() for name in match.group(1).split(b",") if name] if match else []
