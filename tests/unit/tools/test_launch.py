"""Starting processes that do not become VMMs: the reason arrives, and nothing stays behind."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tools.lab.argv import Build, GuestSpec
from tools.lab.errors import LaunchError, OptionError
from tools.lab.launcher import Launcher
from tools.lab.procfs import child_pids

GUEST = GuestSpec(ram_bytes=16 << 20)


def launch(command: tuple[str, ...]) -> None:
    async def run() -> None:
        async with Launcher(GUEST) as launcher:
            await launcher.start_plain(Build(command))

    asyncio.run(run())


def test_process_that_ends_at_once_is_reported_with_its_stderr() -> None:
    script = "import sys; sys.exit('vmm: no such option')"
    with pytest.raises(LaunchError, match="vmm: no such option"):
        launch((sys.executable, "-c", script))
    assert child_pids(os.getpid()) == ()


def test_command_that_does_not_exist_is_reported() -> None:
    with pytest.raises(LaunchError, match=r"cannot start '/nonexistent/vmm'"):
        launch(("/nonexistent/vmm",))


def test_run_directory_is_removed_with_the_launcher() -> None:
    async def run() -> Path:
        async with Launcher(GUEST) as launcher:
            assert launcher.run_dir.is_dir()
        return launcher.run_dir

    assert not asyncio.run(run()).exists()


def test_temporary_directory_that_is_too_long_for_sockets_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long_directory = tmp_path / ("d" * 100)
    long_directory.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long_directory))
    with pytest.raises(OptionError, match="TMPDIR"):
        Launcher(GUEST)
    assert list(long_directory.iterdir()) == []
