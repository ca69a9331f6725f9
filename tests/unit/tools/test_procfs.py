"""Counting and comparing what processes hold, on this very process."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator

import pytest

from tools.lab.errors import CheckFailedError
from tools.lab.procfs import (
    ProcessCounters,
    cpu_time_us,
    fd_kind,
    find_memfd,
    leaks,
    memfd_identity,
    read_counters,
)

ODD_SIZE_BYTES = 12_345 * 4096  # a size that no other memfd of this process has


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = os.memfd_create("lab-test", os.MFD_CLOEXEC)
    os.ftruncate(fd, ODD_SIZE_BYTES)
    yield fd
    os.close(fd)


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("socket:[4711]", "socket"),
        ("pipe:[1]", "pipe"),
        ("anon_inode:[eventpoll]", "anon_inode:[eventpoll]"),
        ("anon_inode:kvm-vcpu:0", "anon_inode:kvm-vcpu:0"),
        ("/memfd:ram0 (deleted)", "memfd:ram0"),
        ("/dev/kvm", "/dev/kvm"),
        ("/tmp/cpr-abc/gen17.log", "genN.log"),
    ],
)
def test_fd_kind_drops_what_differs_between_processes(target: str, kind: str) -> None:
    assert fd_kind(target) == kind


def test_counters_see_a_new_fd_and_its_end() -> None:
    before = read_counters(os.getpid())
    fd = os.memfd_create("counted", os.MFD_CLOEXEC)
    with_fd = read_counters(os.getpid())
    os.close(fd)
    assert with_fd.fds["memfd:counted"] == 1
    assert "memfd:counted" not in before.fds
    assert leaks(before, with_fd) == ("fd memfd:counted: 0 -> 1",)
    assert with_fd.rss_bytes > 0
    assert with_fd.mappings > 0


def test_fewer_things_than_before_are_no_leak() -> None:
    before = ProcessCounters({"socket": 3}, threads=2, mappings=10, rss_bytes=1, children=1)
    after = ProcessCounters({"socket": 2}, threads=1, mappings=20, rss_bytes=9, children=0)
    assert leaks(before, after) == ()


def test_threads_and_children_that_stay_are_named() -> None:
    before = ProcessCounters({}, threads=1, mappings=1, rss_bytes=1, children=0)
    after = ProcessCounters({}, threads=3, mappings=1, rss_bytes=1, children=2)
    assert leaks(before, after) == ("threads: 1 -> 3", "child processes: 0 -> 2")


def test_counters_of_a_process_that_is_gone_are_refused() -> None:
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(pid, 0)
    with pytest.raises(CheckFailedError, match="is gone"):
        read_counters(pid)


def test_ram_is_found_by_its_size_and_has_the_memfd_inode(memfd: int) -> None:
    duplicate = os.dup(memfd)  # the same file twice is one memory
    try:
        path = find_memfd(os.getpid(), ODD_SIZE_BYTES)
    finally:
        os.close(duplicate)
    assert memfd_identity(path).ino == os.fstat(memfd).st_ino


def test_two_memfds_of_the_size_are_ambiguous(memfd: int) -> None:
    other = os.memfd_create("other", os.MFD_CLOEXEC)
    os.ftruncate(other, ODD_SIZE_BYTES)
    try:
        with pytest.raises(CheckFailedError, match="found 2"):
            find_memfd(os.getpid(), ODD_SIZE_BYTES)
    finally:
        os.close(other)


def test_missing_ram_is_said_with_its_size() -> None:
    with pytest.raises(CheckFailedError, match=r"one memfd of 50561024 bytes .* found 0"):
        find_memfd(os.getpid(), 50561024)


def test_processor_time_of_a_process_is_read_to_the_microsecond() -> None:
    before_us = time.process_time_ns() / 1000
    now_us = cpu_time_us(os.getpid())
    assert before_us <= now_us <= time.process_time_ns() / 1000


def test_processor_time_of_no_process_is_an_error() -> None:
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    with pytest.raises(ProcessLookupError, match=f"process {ended.pid}"):
        cpu_time_us(ended.pid)
