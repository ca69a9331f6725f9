"""What tests may need of a machine, how to see whether it is there, and when a skip is honest."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.framework import memory_cgroup
from tools.lab.cache import peer_qemu
from tools.lab.linux import host
from vmm.devices.net.tun import CLONE_DEVICE

ROOT = Path(__file__).parents[1]
KVM_DEVICE = "/dev/kvm"
# In a user namespace in which root is somebody else.
ORDINARY_USER = ("unshare", "--user", "--map-user=1000", "--map-group=1000")
HUGE_PAGE_POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")


@dataclass(frozen=True, slots=True)
class Need:
    """A marker's meaning: `present()` on this machine, and the reason of the skip if it is not."""

    present: Callable[[], bool]
    reason: str


def kvm_opens() -> bool:
    """Whether this process may use KVM."""
    try:
        os.close(os.open(KVM_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def huge_page_is_free() -> bool:
    """Whether a 2 MiB page is left in the kernel's pool."""
    try:
        return int((HUGE_PAGE_POOL / "free_hugepages").read_text()) > 0
    except FileNotFoundError:  # a kernel without them
        return False


def can_assemble() -> bool:
    """Whether the test guests can be assembled and linked."""
    return all(shutil.which(tool) for tool in ("gcc", "ld"))


def tun_opens() -> bool:
    """Whether this process may make taps in a network namespace of its own, as another user too."""
    if os.geteuid() != 0:
        return False
    try:
        os.close(os.open(CLONE_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def ordinary_user_may_have_a_network() -> bool:
    """Whether somebody without privilege may make a network namespace and open the tun device."""
    first = ORDINARY_USER if os.geteuid() == 0 else ()
    own = ("unshare", "--user", "--map-root-user", "--net", "sh", "-c", f": <>{CLONE_DEVICE}")
    try:
        return subprocess.run([*first, *own], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def others_can_read() -> bool:
    """Whether the system's Python, run by any user, can import this checkout and its packages."""
    packages = Path(sysconfig.get_path("purelib"))
    folders = [*ROOT.parents, ROOT, *packages.parents, packages]
    same_python = Path(f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}").exists()
    return same_python and all(folder.stat().st_mode & stat.S_IXOTH for folder in folders)


def is_root() -> bool:
    """Whether this process may do what only root may."""
    return os.geteuid() == 0


NEEDS = {
    "needs_kvm": Need(kvm_opens, f"{KVM_DEVICE} cannot be opened here"),
    "needs_tun": Need(tun_opens, f"not root, or {CLONE_DEVICE} cannot be opened here"),
    "needs_user_network": Need(
        ordinary_user_may_have_a_network,
        f"an ordinary user may not make a network namespace, or not open {CLONE_DEVICE}, here",
    ),
    "needs_memory_cgroup": Need(
        lambda: memory_cgroup.parent() is not None, "no control group with a memory limit here"
    ),
    "needs_root": Need(is_root, "not running as root"),
    "needs_readable": Need(
        others_can_read, "other users cannot read this checkout, or have no Python of its version"
    ),
    "needs_hugepage": Need(huge_page_is_free, "no free 2 MiB huge page (vm.nr_hugepages)"),
    "needs_assembler": Need(can_assemble, "no gcc and ld to assemble the test guests with"),
    "needs_strace": Need(
        lambda: is_root() and shutil.which("strace") is not None, "not root, or no strace"
    ),
    "needs_iasl": Need(lambda: shutil.which("iasl") is not None, "no iasl (acpica-tools)"),
    "needs_linux_host": Need(
        lambda: host.why_not_here() is None or peer_qemu().exists(),
        "KVM here has no hardware virtualisation, and there is no real QEMU to nest Linux guests "
        "in; 'tools/fetch-peer qemu' unpacks one",
    ),
    "needs_peer_qemu": Need(
        lambda: peer_qemu().exists(), "no real QEMU; 'tools/fetch-peer qemu' unpacks one"
    ),
}


def absent_needs(names: Iterable[str]) -> tuple[str, ...]:
    """Those of `names` (keys of NEEDS) that this machine does not have, sorted."""
    return tuple(sorted(name for name in names if not NEEDS[name].present()))


def skip_verdict(needs: frozenset[str], reason: str) -> str | None:
    """Why a skip is a failure in CI; None when one of the test's marked needs is truly absent."""
    if absent_needs(needs):
        return None
    marked = ", ".join(sorted(needs)) or "none"
    return (
        f"skipped in CI although everything it declares is here (markers: {marked}): {reason}; "
        "let .ci/run install what the test uses, or mark the need in tests/needs.py"
    )
