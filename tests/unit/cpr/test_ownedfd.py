from __future__ import annotations

import fcntl
import gc
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from cpr.errors import FdError
from cpr.ownedfd import FD_NAME_SIZE_MAX, FdName, FdTable, OwnedFd


@pytest.fixture
def number() -> Iterator[int]:
    fd = os.memfd_create("test", os.MFD_CLOEXEC)
    yield fd
    if _is_open(fd):
        os.close(fd)


def _is_open(fd: int) -> bool:
    return Path(f"/proc/self/fd/{fd}").exists()


def _lose(number: int) -> None:
    OwnedFd(number, "ram:ram0:0")
    gc.collect()


def _fresh(name: str = "ram:ram0:0") -> OwnedFd:
    return OwnedFd(os.memfd_create("test", os.MFD_CLOEXEC), name)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("ram:ram0:0", ("ram", "ram0", 0)),
        ("lease:epoch:0", ("lease", "epoch", 0)),
        ("chardev:serial-0.a_b/c#1:12", ("chardev", "serial-0.a_b/c#1", 12)),
    ],
)
def test_names_have_three_parts(text: str, parts: tuple[str, str, int]) -> None:
    name = FdName.parse(text)
    assert (name.kind, name.owner, name.index) == parts
    assert str(name) == text


@pytest.mark.parametrize(
    "text",
    ["", "ram", "ram:ram0", "ram:ram0:", "ram:ram0:01", "ram:ram0:-1", "Ram:ram0:0", "ram::0",
     "ram:a b:0", "ram:ram0:0:0", "ram:ram0:0\n", f"ram:{'a' * FD_NAME_SIZE_MAX}:0"],
)  # fmt: skip
def test_what_is_not_a_name_is_refused(text: str) -> None:
    with pytest.raises(FdError, match="is not 'kind:owner:index'"):
        FdName.parse(text)


def test_closing_closes_once(number: int) -> None:
    fd = OwnedFd(number, "ram:ram0:0")
    assert fd.fileno() == number
    assert not fd.closed
    fd.close()
    fd.close()
    assert fd.closed
    assert not _is_open(number)
    with pytest.raises(FdError, match="'ram:ram0:0' was used after"):
        fd.fileno()


def test_detaching_gives_the_number_away(number: int) -> None:
    with OwnedFd(number, "ram:ram0:0") as fd:
        assert fd.detach() == number
    assert _is_open(number)
    with pytest.raises(FdError, match="given away"):
        fd.detach()


def test_leaving_the_block_closes(number: int) -> None:
    with OwnedFd(number, "ram:ram0:0"):
        pass
    assert not _is_open(number)


def test_a_lost_fd_warns_and_is_closed(number: int) -> None:
    with pytest.warns(ResourceWarning, match=r"'ram:ram0:0' .* was lost"):
        _lose(number)
    assert not _is_open(number)


def test_an_fd_that_was_never_made_is_not_lost() -> None:
    with warnings.catch_warnings(record=True) as caught:
        OwnedFd.__new__(OwnedFd).__del__()
    assert not caught


def test_repr_says_name_and_state(number: int) -> None:
    fd = OwnedFd(number, "ram:ram0:0")
    assert repr(fd) == f"<OwnedFd ram:ram0:0 {number}>"
    fd.close()
    assert repr(fd) == "<OwnedFd ram:ram0:0 closed>"


@pytest.mark.parametrize("inheritable", [False, True])
def test_adopting_makes_close_on_exec(number: int, *, inheritable: bool) -> None:
    os.set_inheritable(number, inheritable)
    with OwnedFd.adopt(number, "ram:ram0:0") as fd:
        assert fcntl.fcntl(fd.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC


def test_adopting_a_number_that_is_not_open_is_an_error() -> None:
    with pytest.raises(FdError, match="fd 'ram:ram0:0': number -1 cannot be used"):
        OwnedFd.adopt(-1, "ram:ram0:0")


def test_a_duplicate_is_another_number_of_the_same_file(number: int) -> None:
    with OwnedFd.duplicate_of(number, "ram:ram0:0") as fd:
        assert fd.fileno() != number
        assert os.fstat(fd.fileno()).st_ino == os.fstat(number).st_ino
        assert fcntl.fcntl(fd.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    assert _is_open(number)


def test_what_is_offered_can_be_claimed_once() -> None:
    table = FdTable()
    offered = _fresh()
    table.offer("ram:ram0:0", offered)
    assert list(table.names) == ["ram:ram0:0"]
    with table.claim("ram:ram0:0") as claimed:
        assert claimed is offered
    assert not table.names
    with pytest.raises(FdError, match="already claimed"):
        table.claim("ram:ram0:0")


def test_a_missing_fd_is_an_error_that_says_what_there_is() -> None:
    table = FdTable()
    with pytest.raises(FdError, match="'ram:ram1:0' was not received; received: none"):
        table.claim("ram:ram1:0")
    table.offer("ram:ram0:0", _fresh())
    with pytest.raises(FdError, match="received: ram:ram0:0"):
        table.claim("ram:ram1:0")
    table.close_unclaimed()


@pytest.mark.parametrize("claimed", [False, True])
def test_a_second_fd_of_one_name_is_refused_and_closed(*, claimed: bool) -> None:
    table = FdTable()
    table.offer("ram:ram0:0", _fresh())
    if claimed:
        table.claim("ram:ram0:0").close()
    second = _fresh()
    with pytest.raises(FdError, match="'ram:ram0:0' came twice"):
        table.offer("ram:ram0:0", second)
    assert second.closed
    table.close_unclaimed()


def test_an_fd_without_a_proper_name_is_refused_and_closed() -> None:
    table = FdTable()
    fd = _fresh()
    with pytest.raises(FdError, match="kind:owner:index"):
        table.offer("nonsense", fd)
    assert fd.closed


def test_unclaimed_fds_are_closed_and_named() -> None:
    table = FdTable()
    fds = {name: _fresh(name) for name in ("ram:ram0:0", "lease:epoch:0", "tap:net0:0")}
    for name, fd in fds.items():
        table.offer(name, fd)
    table.claim("ram:ram0:0").close()
    assert table.close_unclaimed() == ("lease:epoch:0", "tap:net0:0")
    assert all(fd.closed for fd in fds.values())
    assert table.close_unclaimed() == ()
