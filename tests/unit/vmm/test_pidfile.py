from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmm.errors import ConfigError
from vmm.pidfile import Pidfile


def test_pidfile_names_this_process_and_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "vmm.pid"
    with Pidfile(path):
        assert path.read_text() == f"{os.getpid()}\n"
    assert list(tmp_path.iterdir()) == []


def test_no_pidfile_asked_for_makes_none(tmp_path: Path) -> None:
    with Pidfile(None):
        assert list(tmp_path.iterdir()) == []


def test_successor_takes_the_name_over_and_keeps_it_when_the_old_process_ends(
    tmp_path: Path,
) -> None:
    path = tmp_path / "vmm.pid"
    with Pidfile(path):
        successor = Pidfile(path)
        successor.__enter__()
        inode = path.stat().st_ino
    assert path.stat().st_ino == inode
    successor.__exit__(None, None, None)
    assert not path.exists()


def test_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot create PID file .*nowhere"):
        Pidfile(tmp_path / "nowhere" / "vmm.pid").__enter__()
