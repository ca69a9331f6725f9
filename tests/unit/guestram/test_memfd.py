from __future__ import annotations

import dataclasses
import fcntl
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import guestram.memfd
from guestram.errors import IdentityError, MemfdError
from guestram.layout import PAGE_SIZE_BYTES, RAM_SIZE_MAX_BYTES
from guestram.memfd import RAM_SEALS, MemfdIdentity, MemfdOptions, RamMemfd
from tests.unit.guestram.leaks import open_files

PAGE = PAGE_SIZE_BYTES
HUGE = 2 << 20
OPTIONS = MemfdOptions(size_bytes=4 * PAGE)
HUGE_POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")

needs_hugetlb = pytest.mark.skipif(
    not HUGE_POOL.exists(), reason="this kernel has no 2 MiB huge page support"
)


def huge_options(size_bytes: int = HUGE, hugetlb_size_bytes: int | None = HUGE) -> MemfdOptions:
    return MemfdOptions(size_bytes, hugetlb=True, hugetlb_size_bytes=hugetlb_size_bytes)


@pytest.fixture
def memfd() -> Iterator[RamMemfd]:
    with RamMemfd.create("ram0", OPTIONS) as memfd:
        yield memfd


# --- create -------------------------------------------------------------------------------------


def test_created_memfd_has_its_size_seals_and_the_name_of_qemu(memfd: RamMemfd) -> None:
    identity = memfd.identity()
    link = Path(f"/proc/self/fd/{memfd.fileno()}").readlink()
    assert (identity.size_bytes, identity.seals) == (4 * PAGE, RAM_SEALS)
    assert str(link) == "/memfd:memory-backend-memfd (deleted)"
    assert (memfd.block_id, memfd.share) == ("ram0", True)


def test_created_memfd_is_not_inherited(memfd: RamMemfd) -> None:
    assert not os.get_inheritable(memfd.fileno())


@pytest.mark.parametrize("size_bytes", [0, PAGE, 8 * PAGE])
def test_sealed_memfd_cannot_be_resized(memfd: RamMemfd, size_bytes: int) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(memfd.fileno(), size_bytes)
    assert memfd.identity().size_bytes == 4 * PAGE


def test_sealed_memfd_takes_no_more_seals(memfd: RamMemfd) -> None:
    with pytest.raises(PermissionError):
        fcntl.fcntl(memfd.fileno(), fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_seal_off_leaves_the_size_open() -> None:
    with RamMemfd.create("ram0", dataclasses.replace(OPTIONS, seal=False)) as memfd:
        os.ftruncate(memfd.fileno(), PAGE)
        assert memfd.identity().size_bytes == PAGE


def test_close_is_idempotent_and_the_fd_is_gone(memfd: RamMemfd) -> None:
    fd = memfd.fileno()
    memfd.close()
    memfd.close()
    assert memfd.closed
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    with pytest.raises(MemfdError, match="memfd 'ram0' is closed"):
        memfd.fileno()


def test_forgotten_memfd_warns_with_its_name_and_is_closed() -> None:
    forgotten: list[RamMemfd] = [RamMemfd.create("ram0", OPTIONS)]
    with pytest.warns(ResourceWarning, match="memfd:ram0"):
        forgotten.clear()  # CPython drops it at once


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: MemfdOptions(0), "^can't create backend with size 0$", id="zero"),
        pytest.param(
            lambda: MemfdOptions(-PAGE), "size -0x1000 must be more than 0", id="negative"
        ),
        pytest.param(
            lambda: MemfdOptions(RAM_SIZE_MAX_BYTES + PAGE), "at most 0x10000000000", id="too large"
        ),
        pytest.param(
            lambda: MemfdOptions(PAGE + 1),
            "size 0x1001 must be a multiple of the page size 0x1000",
            id="not whole pages",
        ),
        pytest.param(
            lambda: MemfdOptions(HUGE, hugetlb_size_bytes=HUGE),
            "hugetlbsize=2097152 is given, but hugetlb is off",
            id="huge page size without huge pages",
        ),
        pytest.param(
            lambda: huge_options(3 * HUGE, 3 * HUGE), "must be a power of two", id="odd huge page"
        ),
        pytest.param(lambda: huge_options(HUGE, PAGE), "larger than 4096", id="small huge page"),
        pytest.param(
            lambda: huge_options(HUGE + PAGE), "multiple of the page size 0x200000", id="huge rest"
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(
    make: Callable[[], MemfdOptions], message: str
) -> None:
    with pytest.raises(MemfdError, match=message):
        make()


# --- huge pages ---------------------------------------------------------------------------------


@needs_hugetlb
def test_huge_memfd_is_sealed_like_any_other() -> None:
    with RamMemfd.create("ram0", huge_options()) as memfd:
        assert memfd.identity().seals == RAM_SEALS
        with pytest.raises(PermissionError):
            os.ftruncate(memfd.fileno(), 0)


@needs_hugetlb
def test_size_that_is_not_whole_default_huge_pages_is_refused_and_nothing_leaks() -> None:
    before = open_files()
    with pytest.raises(MemfdError, match="size 0x1000 must be a multiple of the page size 0x"):
        RamMemfd.create("ram0", huge_options(PAGE, None))
    assert open_files() == before


@needs_hugetlb
def test_huge_page_size_that_the_kernel_lacks_is_refused_with_those_it_has() -> None:
    with pytest.raises(MemfdError, match=r"cannot be created.*; huge pages: .* of 2048kB"):
        RamMemfd.create("ram0", huge_options(8 * PAGE, 2 * PAGE))


@needs_hugetlb
def test_shortage_of_huge_pages_is_an_error_at_mapping_that_counts_them() -> None:
    with (
        RamMemfd.create("ram0", huge_options(RAM_SIZE_MAX_BYTES)) as memfd,
        pytest.raises(MemfdError, match=r"cannot be mapped: .*\d+ free of \d+ of 2048kB"),
    ):
        memfd.map()


def test_kernel_without_huge_pages_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(guestram.memfd, "_HUGE_PAGE_POOLS", tmp_path)
    with pytest.raises(MemfdError, match=r"huge pages: none; add some with vm\.nr_hugepages"):
        RamMemfd.create("ram0", huge_options(8 * PAGE, 2 * PAGE))


@needs_hugetlb
def test_huge_memfd_is_adopted_under_the_same_options_only() -> None:
    with RamMemfd.create("ram0", huge_options()) as memfd:
        with adopt_copy(memfd, huge_options()) as adopted:
            assert adopted.identity() == memfd.identity()
        with adopt_copy(memfd, huge_options(HUGE, None)) as adopted:
            assert adopted.identity() == memfd.identity()
        with pytest.raises(IdentityError, match=r"'hugetlb' option is off .*pages of 0x200000"):
            adopt_copy(memfd, MemfdOptions(HUGE))


def test_memfd_of_small_pages_is_not_adopted_as_huge() -> None:
    with (
        RamMemfd.create("ram0", MemfdOptions(HUGE)) as memfd,
        pytest.raises(IdentityError, match=r"'hugetlb' option is on .*pages of 0x1000 bytes"),
    ):
        adopt_copy(memfd, huge_options(HUGE, None))


@needs_hugetlb
def test_huge_memfd_of_another_page_size_is_not_adopted() -> None:
    with (
        RamMemfd.create("ram0", huge_options(2 * HUGE)) as memfd,
        pytest.raises(IdentityError, match=r"'hugetlbsize' 4194304, .*pages of 0x200000"),
    ):
        adopt_copy(memfd, huge_options(2 * HUGE, 2 * HUGE))


@pytest.mark.needs_hugepage
def test_huge_pages_are_mapped_and_shared() -> None:
    memfd = RamMemfd.create("ram0", huge_options())
    with memfd, memfd.map() as first, memfd.map() as second:
        first[HUGE - 4 :] = b"last"
        assert second[HUGE - 4 :] == b"last"


# --- map ----------------------------------------------------------------------------------------


def test_mapping_shows_what_another_mapping_wrote(memfd: RamMemfd) -> None:
    with memfd.map() as first, memfd.map() as second:
        first[PAGE : PAGE + 5] = b"guest"
        assert second[PAGE : PAGE + 5] == b"guest"


def test_share_off_keeps_writes_in_the_process() -> None:
    memfd = RamMemfd.create("ram0", dataclasses.replace(OPTIONS, share=False))
    with memfd, memfd.map() as first, memfd.map() as second:
        first[0:5] = b"guest"
        assert not memfd.share
        assert second[0:5] == bytes(5)


def test_unsealed_memfd_that_shrank_cannot_be_mapped() -> None:
    with RamMemfd.create("ram0", dataclasses.replace(OPTIONS, seal=False)) as memfd:
        os.ftruncate(memfd.fileno(), PAGE)
        with pytest.raises(MemfdError, match="memfd 'ram0' of 0x4000 bytes cannot be mapped"):
            memfd.map()


# --- identity -----------------------------------------------------------------------------------


def test_identity_survives_the_wire(memfd: RamMemfd) -> None:
    fields = memfd.identity().to_map()
    assert set(fields) == {"dev", "ino", "size_bytes", "seals"}
    assert MemfdIdentity.from_map(fields) == memfd.identity()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "expected the fields dev, ino, size_bytes, seals, got none"),
        ({"dev": 1, "ino": 2, "size_bytes": 3}, "got dev, ino, size_bytes"),
        ({"dev": 1, "ino": 2, "size_bytes": 3, "seals": 4, "mode": 5}, "got dev, ino, mode"),
        ({"dev": 1, "ino": "2", "size_bytes": 3, "seals": 4}, "ino must be an integer.*got '2'"),
        ({"dev": True, "ino": 2, "size_bytes": 3, "seals": 4}, "dev must be an int.*got True"),
        ({"dev": 1, "ino": 2, "size_bytes": -3, "seals": 4}, "size_bytes must be .*got -3"),
    ],
)
def test_identity_that_is_malformed_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(IdentityError, match=message):
        MemfdIdentity.from_map(fields)


# --- adopt --------------------------------------------------------------------------------------


def adopt_copy(
    memfd: RamMemfd, options: MemfdOptions, identity: MemfdIdentity | None = None
) -> RamMemfd:
    return RamMemfd.adopt(
        os.dup(memfd.fileno()), memfd.block_id, options, identity or memfd.identity()
    )


def test_adopted_memfd_has_the_same_pages(memfd: RamMemfd) -> None:
    with adopt_copy(memfd, OPTIONS) as adopted, memfd.map() as old, adopted.map() as new:
        old[0:5] = b"guest"
        assert new[0:5] == b"guest"
        assert adopted.identity() == memfd.identity()


def test_adopted_fd_is_owned_and_no_longer_inherited(memfd: RamMemfd) -> None:
    fd = os.dup(memfd.fileno())
    os.set_inheritable(fd, True)
    with RamMemfd.adopt(fd, "ram0", OPTIONS, memfd.identity()) as adopted:
        assert adopted.fileno() == fd
        assert not os.get_inheritable(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_unsealed_memfd_is_adopted_when_seal_is_off() -> None:
    options = dataclasses.replace(OPTIONS, seal=False)
    with RamMemfd.create("ram0", options) as memfd, adopt_copy(memfd, options) as adopted:
        assert adopted.identity() == memfd.identity()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dev": 999}, r"promised was inode \d+ on device 999, got inode \d+ on device \d+;"),
        ({"ino": 999_999_999}, "promised was inode 999999999 .*another file was passed"),
        ({"size_bytes": 8 * PAGE}, "promised size was 0x8000, got 0x4000"),
        ({"seals": 0}, "promised seals were 0x0, got 0x7"),
    ],
)
def test_memfd_that_is_not_the_promised_one_is_refused(
    memfd: RamMemfd, change: dict[str, int], message: str
) -> None:
    with pytest.raises(IdentityError, match=f"memfd 'ram0': {message}"):
        adopt_copy(memfd, OPTIONS, dataclasses.replace(memfd.identity(), **change))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (MemfdOptions(8 * PAGE), "'size' option is 0x8000, .*has 0x4000; start both processes"),
        (dataclasses.replace(OPTIONS, seal=False), "'seal' option is off, .*came has 0x7"),
        (dataclasses.replace(OPTIONS, share=False), "'share' option is off, .*private"),
    ],
)
def test_memfd_that_our_options_would_not_make_is_refused(
    memfd: RamMemfd, options: MemfdOptions, message: str
) -> None:
    with pytest.raises(IdentityError, match=f"memfd 'ram0': {message}"):
        adopt_copy(memfd, options)


def test_unsealed_memfd_is_refused_when_seal_is_on() -> None:
    with (
        RamMemfd.create("ram0", dataclasses.replace(OPTIONS, seal=False)) as memfd,
        pytest.raises(IdentityError, match="'seal' option is on, which means seals 0x7"),
    ):
        adopt_copy(memfd, OPTIONS)


def test_write_sealed_memfd_is_refused() -> None:
    fd = os.memfd_create("write-sealed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4 * PAGE)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, RAM_SEALS | fcntl.F_SEAL_WRITE)
    status = os.fstat(fd)
    promise = MemfdIdentity(status.st_dev, status.st_ino, 4 * PAGE, RAM_SEALS | fcntl.F_SEAL_WRITE)
    with pytest.raises(IdentityError, match=r"'seal' option is on, .*came has 0xf"):
        RamMemfd.adopt(fd, "ram0", OPTIONS, promise)


@pytest.mark.parametrize(("flags", "mode"), [(os.O_RDONLY, 0), (os.O_WRONLY, 1)])
def test_fd_that_cannot_read_and_write_is_refused(memfd: RamMemfd, flags: int, mode: int) -> None:
    fd = os.open(f"/proc/self/fd/{memfd.fileno()}", flags)
    with pytest.raises(IdentityError, match=f"open for reading and writing .*access mode {mode}$"):
        RamMemfd.adopt(fd, "ram0", OPTIONS, memfd.identity())


def _pipe_end() -> int:
    read_end, write_end = os.pipe()
    os.close(write_end)
    return read_end


@pytest.mark.parametrize(
    ("open_wrong", "message"),
    [
        pytest.param(_pipe_end, "must be a memfd, got file type 0o10000", id="pipe"),
        pytest.param(lambda: os.open("/dev/null", os.O_RDWR), "got file type 0o20000", id="device"),
        pytest.param(lambda: os.open("/", os.O_RDONLY), "is unusable: .*directory", id="directory"),
        pytest.param(
            lambda: os.open("/proc/self/comm", os.O_RDWR), "got a file without seals", id="file"
        ),
    ],
)
def test_fd_of_another_kind_is_refused_and_closed(
    memfd: RamMemfd, open_wrong: Callable[[], int], message: str
) -> None:
    fd = open_wrong()
    with pytest.raises(IdentityError, match=f"memfd 'ram0': .*{message}"):
        RamMemfd.adopt(fd, "ram0", OPTIONS, memfd.identity())
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize("fd", [-1, 1_000_000])
def test_fd_that_is_not_open_is_refused(memfd: RamMemfd, fd: int) -> None:
    with pytest.raises(IdentityError, match=f"memfd 'ram0': fd {fd} is unusable"):
        RamMemfd.adopt(fd, "ram0", OPTIONS, memfd.identity())


def test_refused_memfd_is_closed_too(memfd: RamMemfd) -> None:
    fd = os.dup(memfd.fileno())
    with pytest.raises(IdentityError):
        RamMemfd.adopt(fd, "ram0", MemfdOptions(PAGE), memfd.identity())
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_mapping_outlives_the_fd(memfd: RamMemfd) -> None:
    with memfd.map() as area:
        memfd.close()
        area[0:1] = b"x"
        assert area[0:1] == b"x"
        assert isinstance(area, mmap.mmap)
