"""tools/fetch-peer where nothing can be fetched: says why in one line and leaves nothing behind."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "tools" / "fetch-peer"
PLAIN_TOOLS = "sh awk cat chmod dpkg grep head id mkdir mktemp rm sed sort"


@pytest.fixture
def bin_dir(tmp_path: Path) -> Path:
    """A PATH without apt."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name in PLAIN_TOOLS.split():
        (directory / name).symlink_to(shutil.which(name) or "/bin/true")
    return directory


def fetch(bin_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, *arguments],
        env={"PATH": str(bin_dir), "XDG_CACHE_HOME": str(bin_dir.parent / "cache")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def make_apt(bin_dir: Path, get: str, cache: str = "") -> None:
    for name, text in (("apt-get", get), ("apt-cache", cache)):
        (bin_dir / name).write_text(f"#!/bin/sh\n{text}\n")
        (bin_dir / name).chmod(0o755)


SOURCES = '[ "$1" != indextargets ] || echo "http://mirror.invalid/debian/ stable"'


@pytest.mark.parametrize(
    ("get", "cache", "reason"),
    [
        ("true", "", "no main archive"),
        (f"{SOURCES}; echo 'Err:1 cannot resolve'", "", "no package list could be read: Err:1"),
        (SOURCES, "echo 'qemu-system-x86 | 1:7.2+dfsg-7 | x'", "is 7.2+dfsg-7; cpr-transfer needs"),
        (
            f'{SOURCES}; case $* in *install*) echo "E: held"; exit 1;; esac',
            "echo 'qemu-system-x86 | 1:10.0.2 | x'",
            "could not fetch it: E: held",
        ),
    ],
    ids=["no archive", "offline", "too old", "unresolvable"],
)
def test_reason_is_named_in_one_line_and_nothing_is_left(
    bin_dir: Path, get: str, cache: str, reason: str
) -> None:
    make_apt(bin_dir, get, cache)
    done = fetch(bin_dir, "qemu")
    assert done.returncode == 1
    assert done.stdout == ""
    assert reason in done.stderr.splitlines()[-1]
    assert list((bin_dir.parent / "cache" / "cpr-vmm" / "peers").iterdir()) == []


def test_system_without_apt_is_told_so(bin_dir: Path) -> None:
    done = fetch(bin_dir, "qemu")
    assert done.returncode == 1
    assert "needs apt-get and dpkg" in done.stderr


def test_unpacked_peer_is_used_as_it_is(bin_dir: Path) -> None:
    command = bin_dir.parent / "cache" / "cpr-vmm" / "peers" / "qemu" / "run"
    command.parent.mkdir(parents=True)
    command.touch(mode=0o755)
    done = fetch(bin_dir, "qemu")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{command}\n", "")


def test_unknown_peer_is_a_usage_error(bin_dir: Path) -> None:
    assert "usage: tools/fetch-peer qemu|linux" in fetch(bin_dir, "xen").stderr
