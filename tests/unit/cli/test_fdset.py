"""`-add-fd` and the paths that name a set."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmm.cli import parse_args
from vmm.errors import ConfigError


@pytest.fixture
def inherited(tmp_path: Path) -> Iterator[int]:
    """An fd as a launcher leaves it: open to read, inheritable."""
    path = tmp_path / "image"
    path.write_bytes(b"image")
    fd = os.open(path, os.O_RDONLY)
    os.set_inheritable(fd, True)
    yield fd
    os.close(fd)


def test_kernel_from_an_fd_set_is_read_through_the_inherited_fd(inherited: int) -> None:
    config = parse_args(["-add-fd", f"fd={inherited},set=7", "-kernel", "/dev/fdset/7"])
    assert config.kernel is not None
    assert config.kernel.read_bytes() == b"image"
    assert not os.get_inheritable(inherited)


def test_set_that_nobody_gave_is_named(inherited: int) -> None:
    with pytest.raises(ConfigError, match="no fd set 8"):
        parse_args(["-add-fd", f"fd={inherited},set=7", "-kernel", "/dev/fdset/8"])


def test_fd_without_the_needed_access_is_refused(inherited: int) -> None:
    arguments = ["-add-fd", f"fd={inherited},set=7", "-serial", "file:/dev/fdset/7"]
    with pytest.raises(ConfigError, match="open to write"):
        parse_args(arguments)
