"""The initramfs of the drill's Linux guest: busybox, the virtio modules, and the load agent.

Its sources are in `guest/`: `init` (shell) and `agent.c`, compiled here with the system's compiler.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory

from tools.lab.errors import LabError
from tools.lab.linux.cpio import ALIGNMENT, Entry, archive
from tools.lab.linux.kernels import Kernel

GUEST_MODULES = ("virtio_mmio", "virtio_net", "virtio_blk", "virtio_rng", "virtio_console")
_COMPILE = ("gcc", "-static", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread")
COMPILE_DEADLINE_S = 120.0


def guest_initramfs(kernel: Kernel) -> bytes:
    """A cpio archive for `kernel`. Raises LabError when something to build it from is missing."""
    agent = Entry.file("agent", compile_agent(), executable=True)
    ours = archive([*boot_files(kernel, GUEST_MODULES, _source("init")), agent])
    if kernel.initrd is None:
        return ours
    theirs = kernel.initrd.read_bytes()
    return theirs + bytes(-len(theirs) % ALIGNMENT) + ours  # a later file replaces an earlier one


def boot_files(kernel: Kernel, modules: Iterable[str], init: bytes) -> list[Entry]:
    """What an initramfs of ours begins with: console, init, busybox, modules in loading order.

    Raises LabError when the kernel has no such module, or no busybox lies beside it.
    """
    path = kernel.busybox
    try:
        busybox = path.read_bytes()
    except OSError as error:
        raise LabError(f"no static busybox at {path}: {error.strerror}") from error
    found = kernel.modules(modules)
    return [
        Entry.char_device("dev/console", 5, 1),  # init's first output, before devtmpfs
        Entry.file("init", init, executable=True),
        Entry.file("bin/busybox", busybox, executable=True),
        Entry.file("modules/order", "\n".join(f"{name}.ko" for name in found).encode()),
        *(Entry.file(f"modules/{name}.ko", data) for name, data in found.items()),
    ]


def compile_agent() -> bytes:
    """The static executable of agent.c. Raises LabError with the compiler's words."""
    with TemporaryDirectory(prefix="cpr-agent-") as folder:
        source, program = Path(folder) / "agent.c", Path(folder) / "agent"
        source.write_bytes(_source("agent.c"))
        try:
            done = subprocess.run(
                [*_COMPILE, "-o", program, source],
                capture_output=True,
                text=True,
                timeout=COMPILE_DEADLINE_S,
                check=False,
            )
        except FileNotFoundError as error:
            raise LabError("the Linux guest's agent needs gcc to be compiled") from error
        if done.returncode != 0:
            raise LabError(f"the Linux guest's agent does not compile: {done.stderr.strip()}")
        return program.read_bytes()


def _source(name: str) -> bytes:
    return resources.files("tools.lab.linux").joinpath("guest", name).read_bytes()
