"""A memfd that holds guest RAM: created once, then handed from process to process.

The pages belong to the file and not to a process, so a successor that maps the same memfd has the
guest's RAM without a byte copied. That makes the fd a promise, and promises are checked:

* The creator sizes the memfd and then seals its size. Without the seals, whoever else holds the fd
  could truncate it, and the next touch of RAM would kill the VMM with SIGBUS.
* `adopt` compares an fd that came from elsewhere with the identity that its sender promised
  (device, inode, size, seals) and with what our own options ask for, before a page of it is mapped.
  Nothing is ever replaced by fresh memory: the wrong file is an error (P5).

Options, defaults and names are QEMU's `memory-backend-memfd` (facts/qemu-cpr.md section 6).
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import io
import mmap
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from guestram.errors import IdentityError, MemfdError
from guestram.layout import PAGE_SIZE_BYTES, RAM_SIZE_MAX_BYTES

MEMFD_NAME = "memory-backend-memfd"  # as in QEMU, so that tools find it in /proc/PID/fd
SIZE_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
RAM_SEALS = SIZE_SEALS | fcntl.F_SEAL_SEAL
_F_SEAL_FUTURE_WRITE = 0x10  # linux/fcntl.h; not in Python 3.11
_WRITE_SEALS = fcntl.F_SEAL_WRITE | _F_SEAL_FUTURE_WRITE
_MAP_NORESERVE = 0x4000  # asm/mman.h, x86; not in Python 3.11
_HUGE_PAGE_POOLS = Path("/sys/kernel/mm/hugepages")


@dataclass(frozen=True, slots=True)
class MemfdOptions:
    """What `-object memory-backend-memfd` asks for; sizes in bytes.

    `hugetlb_size_bytes` None means the kernel's default huge page size. `prealloc` is carried out
    by `GuestRam.prefault`. Raises MemfdError when the values do not fit together.
    """

    size_bytes: int
    share: bool = True
    seal: bool = True
    hugetlb: bool = False
    hugetlb_size_bytes: int | None = None
    prealloc: bool = False

    def __post_init__(self) -> None:
        if self.size_bytes == 0:
            raise MemfdError("can't create backend with size 0")  # QEMU's text
        if not 0 < self.size_bytes <= RAM_SIZE_MAX_BYTES:
            raise MemfdError(
                f"memory backend size {self.size_bytes:#x} must be more than 0 and at most "
                f"{RAM_SIZE_MAX_BYTES:#x}"
            )
        _check_multiple(self.size_bytes, PAGE_SIZE_BYTES)
        if self.hugetlb_size_bytes is not None:
            _check_huge_page_size(self.hugetlb_size_bytes, hugetlb=self.hugetlb)
            _check_multiple(self.size_bytes, self.hugetlb_size_bytes)


@dataclass(frozen=True, slots=True)
class MemfdIdentity:
    """What tells one memfd from any other: a promise that travels beside the fd.

    `dev` and `ino` name the file on this host, `seals` are F_GET_SEALS bits.
    """

    dev: int
    ino: int
    size_bytes: int
    seals: int

    def to_map(self) -> dict[str, int]:
        """Field name to number."""
        return dataclasses.asdict(self)

    @classmethod
    def from_map(cls, fields: Mapping[str, object]) -> Self:
        """Read the identity that a peer described; the map is not trusted.

        Raises IdentityError when a field is missing, unknown or not a number >= 0.
        """
        expected = [field.name for field in dataclasses.fields(cls)]
        if sorted(fields) != sorted(expected):
            raise IdentityError(
                f"memfd identity: expected the fields {', '.join(expected)}, "
                f"got {', '.join(sorted(fields)) or 'none'}"
            )
        numbers: dict[str, int] = {}
        for name, value in fields.items():
            if type(value) is not int or value < 0:
                raise IdentityError(
                    f"memfd identity: {name} must be an integer >= 0, got {value!r}"
                )
            numbers[name] = value
        return cls(**numbers)


class RamMemfd:
    """Owns the fd of one block; closed once, and an unclosed one warns (ResourceWarning).

    Made by `create` or `adopt` only.
    """

    def __init__(self, file: io.FileIO, block_id: str, options: MemfdOptions) -> None:
        self.block_id = block_id
        self.options = options
        self._file = file

    @classmethod
    def create(cls, block_id: str, options: MemfdOptions, *, name: str = MEMFD_NAME) -> Self:
        """Make a memfd of zeros, sized and then sealed.

        Raises MemfdError: the size is no multiple of the huge page size, or the kernel refuses.
        """
        try:
            file = _own(os.memfd_create(name, _create_flags(options)), block_id)
            with contextlib.ExitStack() as undo:
                undo.callback(file.close)
                _check_multiple(options.size_bytes, _page_size_bytes(file.fileno()))
                os.ftruncate(file.fileno(), options.size_bytes)
                if options.seal:
                    fcntl.fcntl(file.fileno(), fcntl.F_ADD_SEALS, RAM_SEALS)
                undo.pop_all()
        except OSError as error:
            raise MemfdError(
                f"memfd '{block_id}' of {options.size_bytes:#x} bytes cannot be created: "
                f"{error.strerror}{_huge_page_hint(options)}"
            ) from error
        return cls(file, block_id, options)

    @classmethod
    def adopt(cls, fd: int, block_id: str, options: MemfdOptions, identity: MemfdIdentity) -> Self:
        """Take over an fd that another process made; the fd is consumed, also on failure.

        Raises IdentityError: it is not an open read-write memfd, not the one that `identity`
        promises, or not one that `options` would have made.
        """
        try:
            file = _own(fd, block_id)
        except (OSError, ValueError) as error:
            raise IdentityError(f"memfd '{block_id}': fd {fd} is unusable: {error}") from error
        with contextlib.ExitStack() as undo:
            undo.callback(file.close)
            _check_kind(fd, block_id)
            _check_promise(fd, block_id, identity)
            _check_options(fd, block_id, options)
            undo.pop_all()
        return cls(file, block_id, options)

    @property
    def share(self) -> bool:
        """Whether `map` is MAP_SHARED; only then do the pages survive the process."""
        return self.options.share

    @property
    def closed(self) -> bool:
        """Whether the fd is gone."""
        return self._file.closed

    def fileno(self) -> int:
        """Return the fd number, still owned by this object. Raises MemfdError when closed."""
        if self._file.closed:
            raise MemfdError(f"memfd '{self.block_id}' is closed")
        return self._file.fileno()

    def identity(self) -> MemfdIdentity:
        """Return what to promise to the process that will adopt this fd."""
        return _identity(self.fileno())

    def map(self) -> mmap.mmap:
        """Map the whole block read-write; the mapping is the caller's to close.

        Raises MemfdError; a shortage of huge pages is found here, and the message counts them.
        """
        flags = mmap.MAP_SHARED if self.share else mmap.MAP_PRIVATE
        if not self.options.hugetlb:
            # Huge pages are reserved now instead: a shortage must not become SIGBUS at first touch.
            flags |= _MAP_NORESERVE
        try:
            return mmap.mmap(self.fileno(), self.options.size_bytes, flags=flags)
        except (OSError, ValueError) as error:
            raise MemfdError(
                f"memfd '{self.block_id}' of {self.options.size_bytes:#x} bytes cannot be mapped: "
                f"{error}{_huge_page_hint(self.options)}"
            ) from error

    def close(self) -> None:
        """Close the fd; idempotent. Mappings stay."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def _own(fd: int, block_id: str) -> io.FileIO:
    """Give `fd` an owner that closes it once, sets CLOEXEC and warns when it is forgotten.

    Raises OSError or ValueError when it is not an open file.
    """
    return io.FileIO(f"memfd:{block_id}", "r+", opener=lambda _path, _flags: fd)


def _create_flags(options: MemfdOptions) -> int:
    flags = os.MFD_CLOEXEC
    if options.seal:
        flags |= os.MFD_ALLOW_SEALING
    if options.hugetlb:
        flags |= os.MFD_HUGETLB
    if options.hugetlb_size_bytes is not None:
        flags |= (options.hugetlb_size_bytes.bit_length() - 1) << os.MFD_HUGE_SHIFT
    return flags


def _identity(fd: int) -> MemfdIdentity:
    status = os.fstat(fd)
    seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    return MemfdIdentity(status.st_dev, status.st_ino, status.st_size, seals)


def _page_size_bytes(fd: int) -> int:
    """Return the huge page size of a hugetlb memfd, the normal page size of any other."""
    return os.fstatvfs(fd).f_bsize


def _check_multiple(size_bytes: int, page_size_bytes: int) -> None:
    if size_bytes % page_size_bytes:
        raise MemfdError(
            f"memory backend size {size_bytes:#x} must be a multiple of the page size "
            f"{page_size_bytes:#x}"
        )


def _check_huge_page_size(size_bytes: int, *, hugetlb: bool) -> None:
    if not hugetlb:
        raise MemfdError(f"hugetlbsize={size_bytes} is given, but hugetlb is off; set hugetlb=on")
    if size_bytes <= PAGE_SIZE_BYTES or size_bytes.bit_count() != 1:
        raise MemfdError(
            f"hugetlbsize={size_bytes} must be a power of two larger than {PAGE_SIZE_BYTES}"
        )


def _check_kind(fd: int, block_id: str) -> None:
    """Require a file with seals that is open for reading and writing."""
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        raise IdentityError(
            f"memfd '{block_id}': the fd must be a memfd, got file type {stat.S_IFMT(mode):#o}"
        )
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise IdentityError(
            f"memfd '{block_id}': the fd must be a memfd, got a file without seals"
        ) from error
    access = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    if access != os.O_RDWR:
        raise IdentityError(
            f"memfd '{block_id}': the fd must be open for reading and writing (access mode "
            f"{os.O_RDWR}), got access mode {access}"
        )


def _check_promise(fd: int, block_id: str, promised: MemfdIdentity) -> None:
    found = _identity(fd)
    if (found.dev, found.ino) != (promised.dev, promised.ino):
        raise IdentityError(
            f"memfd '{block_id}': promised was inode {promised.ino} on device {promised.dev}, got "
            f"inode {found.ino} on device {found.dev}; another file was passed under this name"
        )
    if found.size_bytes != promised.size_bytes:
        raise IdentityError(
            f"memfd '{block_id}': promised size was {promised.size_bytes:#x}, got "
            f"{found.size_bytes:#x}; the file was resized on the way"
        )
    if found.seals != promised.seals:
        raise IdentityError(
            f"memfd '{block_id}': promised seals were {promised.seals:#x}, got {found.seals:#x}"
        )


def _check_options(fd: int, block_id: str, options: MemfdOptions) -> None:
    if not options.share:
        raise IdentityError(
            f"memfd '{block_id}': 'share' option is off, so its RAM is private to the process that "
            "wrote it and cannot be adopted; start both processes with share=on"
        )
    found = _identity(fd)
    if found.size_bytes != options.size_bytes:
        raise IdentityError(
            f"memfd '{block_id}': 'size' option is {options.size_bytes:#x}, the memfd that came "
            f"has {found.size_bytes:#x}; start both processes with the same size"
        )
    wanted_seals = RAM_SEALS if options.seal else 0
    if found.seals & SIZE_SEALS != wanted_seals & SIZE_SEALS or found.seals & _WRITE_SEALS:
        raise IdentityError(
            f"memfd '{block_id}': 'seal' option is {'on' if options.seal else 'off'}, which means "
            f"seals {wanted_seals:#x}, the memfd that came has {found.seals:#x}"
        )
    _check_page_size(_page_size_bytes(fd), block_id, options)


def _check_page_size(found_bytes: int, block_id: str, options: MemfdOptions) -> None:
    is_huge = found_bytes != PAGE_SIZE_BYTES
    wanted_bytes = options.hugetlb_size_bytes or found_bytes
    if is_huge != options.hugetlb or found_bytes != wanted_bytes:
        raise IdentityError(
            f"memfd '{block_id}': 'hugetlb' option is {'on' if options.hugetlb else 'off'} with "
            f"'hugetlbsize' {options.hugetlb_size_bytes}, the memfd that came has pages of "
            f"{found_bytes:#x} bytes"
        )


def _huge_page_hint(options: MemfdOptions) -> str:
    """How many huge pages there are, when that is likely to be the reason of a failure."""
    if not options.hugetlb:
        return ""
    pools = ", ".join(
        f"{(pool / 'free_hugepages').read_text().strip()} free of "
        f"{(pool / 'nr_hugepages').read_text().strip()} of {pool.name.removeprefix('hugepages-')}"
        for pool in sorted(_HUGE_PAGE_POOLS.glob("hugepages-*"))
    )
    return f"; huge pages: {pools or 'none'}; add some with vm.nr_hugepages or use hugetlb=off"
