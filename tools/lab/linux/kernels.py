"""Distribution kernels as packaged: the image, the modules, and what modules need each other."""

from __future__ import annotations

import lzma
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tools.lab.errors import LabError
from vmm.boot.linux_image import is_bzimage

_FETCH = Path(__file__).parents[2] / "fetch-peer"
FETCH_DEADLINE_S = 600.0  # some 80 MB of packages over any line
# Where a bzImage says its version (Documentation/arch/x86/boot.rst, kernel_version).
_SETUP_BYTES, _SETUP_SECTOR_BYTES, _VERSION_AT = 32 << 10, 0x200, 0x20E
_MODULE_FOLDERS = ("lib/modules", "usr/lib/modules")
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel package, unpacked under `root`."""

    version: str
    image: Path  # bzImage
    root: Path
    forms: tuple[str, ...] = ("bzImage", "vmlinux")  # in which it is given to guests
    initrd: Path | None = None  # comes before what the lab adds
    other_busybox: Path | None = None

    @property
    def busybox(self) -> Path:
        """A static one."""
        return self.other_busybox or self.root / "bin" / "busybox"

    @property
    def series(self) -> tuple[int, ...]:
        """(6, 12) of 6.12.95-…."""
        return tuple(int(part) for part in re.findall(r"\d+", self.version)[:2])

    def modules(self, names: Iterable[str]) -> dict[str, bytes]:
        """The named modules and all that they need, each after what it needs; none built in.

        Names have underscores, contents are decompressed. Raises LabError for one that this kernel
        has neither as a module nor built in.
        """
        folder = self._module_folder()
        files = {_plain_name(path.name): path for path in folder.rglob("*.ko*")}
        builtin = {
            _plain_name(Path(line).name)
            for line in (folder / "modules.builtin").read_text().split()
        }
        loaded: dict[str, bytes] = {}

        def collect(name: str) -> None:
            if name in loaded or name in builtin:
                return
            if name not in files:
                raise LabError(f"kernel {self.version} has no module {name}")
            data = files[name].read_bytes()
            if files[name].suffix == ".xz":
                data = lzma.decompress(data)
            for needed in _dependencies(data):
                collect(needed)
            loaded[name] = data

        for name in names:
            collect(_plain_name(name))
        return loaded

    def _module_folder(self) -> Path:
        for folder in _MODULE_FOLDERS:
            if (found := self.root / folder / self.version).is_dir():
                return found
        raise LabError(f"{self.root} has no modules of kernel {self.version}")


def own_kernel(image: Path, initrd: Path | None, busybox: Path) -> Kernel:
    """A kernel of the user's, installed as distributions do: ROOT/boot/IMAGE, ROOT/lib/modules.

    Raises LabError when it is no bzImage.
    """
    try:
        with image.open("rb") as file:
            start = file.read(_SETUP_BYTES)
    except OSError as error:
        raise LabError(f"{image}: {error.strerror}") from error
    if not is_bzimage(start):
        raise LabError(f"{image} is no Linux kernel (bzImage)")
    at = _SETUP_SECTOR_BYTES + int.from_bytes(start[_VERSION_AT : _VERSION_AT + 2], "little")
    version = start[at:].split(b" ", 1)[0].split(b"\0", 1)[0].decode(errors="replace")
    root = image.resolve().parent.parent
    return Kernel(version, image, root, ("bzImage",), initrd, busybox)


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


def _plain_name(file_name: str) -> str:
    """virtio_rng of virtio-rng.ko.xz: modules are called with either sign."""
    return file_name.split(".ko", maxsplit=1)[0].replace("-", "_")


def _dependencies(module: bytes) -> list[str]:
    match = _DEPENDS.search(module)
    if match is None:
        return []
    return [_plain_name(name.decode()) for name in match.group(1).split(b",") if name]
