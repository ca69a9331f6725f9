"""A raw disk image: a file or block device, and the lock that keeps a second user away.

The lock is QEMU's, byte for byte, so that QEMU and this VMM respect each other: shared
open-file-description locks, at byte 100+p for each permission p that we use and at byte 200+p for
each that we do not let others use; then a look whether anybody's opposite byte is locked.

An update always hands over the *description* (SCM_RIGHTS), and with it the lock, which therefore is
never free in between: no third process can come first. Who of the two processes may use it says the
run lease. So a disk has no property `migrate-fds`: a successor that opened the image by name would
have to wait for the lock until the guest has stopped, and might not get it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable, Iterable, Sequence

from vmm.errors import DeviceError

SECTOR_SIZE_BYTES = 512
_IOV_MAX = 1024  # buffers of one preadv (limits.h)
_ZERO_CHUNK = bytes(1 << 20)
_FALLOC_KEEP_SIZE, _FALLOC_PUNCH_HOLE, _FALLOC_ZERO_RANGE = 0x01, 0x02, 0x10  # linux/falloc.h

_PERMISSION_BASE, _SHARED_BASE = 100, 200
_CONSISTENT_READ, _WRITE, _RESIZE = 0, 1, 3
_NAMES = {_CONSISTENT_READ: "consistent read", _WRITE: "write", _RESIZE: "resize"}
_NOT_SHARED = (_WRITE, _RESIZE)
_FLOCK = struct.Struct("hhqqi4x")  # l_type, l_whence, l_start, l_len, l_pid


class RawImage:
    """Owns one description of the image. Made by `open` or `adopt` only."""

    def __init__(self, fd: int, image_id: str, path: str, *, read_only: bool) -> None:
        self.id = image_id
        self.path = path
        self.read_only = read_only
        self._fd = fd
        self._locked = False
        try:
            self.size_bytes = self._checked_size()
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def open(cls, path: str, image_id: str, *, read_only: bool) -> RawImage:
        """Open by name, and lock. Raises DeviceError, with QEMU's text if it is locked."""
        flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC
        try:
            fd = os.open(path, flags)
        except OSError as error:
            raise DeviceError(f"Could not open '{path}': {error.strerror}") from error
        image = cls(fd, image_id, path, read_only=read_only)
        try:
            image.lock()
        except DeviceError:
            image.close()
            raise
        return image

    @classmethod
    def adopt(cls, fd: int, image_id: str, path: str, *, read_only: bool) -> RawImage:
        """Take over a predecessor's description, lock included; consumes `fd`. Raises DeviceError.

        `path` is for messages only.
        """
        access = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        wanted = os.O_RDONLY if read_only else os.O_RDWR
        if access != wanted:
            os.close(fd)
            raise DeviceError(
                f"drive '{image_id}': the fd that came has access mode {access}, expected {wanted}"
            )
        return cls(fd, image_id, path, read_only=read_only)

    def fileno(self) -> int:
        """The description to pass to a successor; still owned here. DeviceError when closed."""
        if self._fd < 0:
            raise DeviceError(f"drive '{self.id}' is closed")
        return self._fd

    # ---- lock ---------------------------------------------------------------------------

    def lock(self) -> None:
        """Take the image lock, or keep it; DeviceError with QEMU's text when it is taken."""
        if self._locked:
            return
        used = (_CONSISTENT_READ,) if self.read_only else (_CONSISTENT_READ, _WRITE)
        try:
            self._set(fcntl.F_RDLCK, (_PERMISSION_BASE + bit for bit in used))
            self._set(fcntl.F_RDLCK, (_SHARED_BASE + bit for bit in _NOT_SHARED))
            for bit in used:
                self._require_free(_SHARED_BASE + bit, f'"{_NAMES[bit]}"')
            for bit in _NOT_SHARED:
                self._require_free(_PERMISSION_BASE + bit, f'shared "{_NAMES[bit]}"')
        except BaseException:
            self._unlock()
            raise
        self._locked = True

    def _unlock(self) -> None:
        every = (base + bit for base in (_PERMISSION_BASE, _SHARED_BASE) for bit in range(4))
        self._set(fcntl.F_UNLCK, every)
        self._locked = False

    def _set(self, kind: int, at: Iterable[int]) -> None:
        for offset in at:
            request = _FLOCK.pack(kind, os.SEEK_SET, offset, 1, 0)
            fcntl.fcntl(self.fileno(), fcntl.F_OFD_SETLK, request)

    def _require_free(self, offset: int, what: str) -> None:
        probe = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0)
        answer = fcntl.fcntl(self.fileno(), fcntl.F_OFD_GETLK, probe)
        if _FLOCK.unpack(answer)[0] != fcntl.F_UNLCK:
            raise DeviceError(
                f"Failed to get {what} lock\nIs another process using the image [{self.path}]?"
            )

    # ---- contents: all raise OSError ----------------------------------------------------

    def read_into(self, views: Sequence[memoryview], offset: int) -> None:
        """Fill `views` from byte `offset`."""
        self._transfer(os.preadv, views, offset)

    def write_from(self, views: Sequence[memoryview], offset: int) -> None:
        """Write `views` at byte `offset`."""
        self._transfer(os.pwritev, views, offset)

    def flush(self) -> None:
        """Make every finished write durable."""
        os.fdatasync(self.fileno())

    def discard(self, offset: int, size_bytes: int) -> None:
        """Contents are not needed any more: a hint, which not every file system can take."""
        self._fallocate(_FALLOC_PUNCH_HOLE | _FALLOC_KEEP_SIZE, offset, size_bytes)

    def write_zeroes(self, offset: int, size_bytes: int, *, may_unmap: bool) -> None:
        """Zero a range, by the file system where it can."""
        mode = _FALLOC_PUNCH_HOLE if may_unmap else _FALLOC_ZERO_RANGE
        if self._fallocate(mode | _FALLOC_KEEP_SIZE, offset, size_bytes):
            return
        zeroes = memoryview(_ZERO_CHUNK)
        for start in range(0, size_bytes, len(zeroes)):
            self.write_from([zeroes[: size_bytes - start]], offset + start)

    def _transfer(
        self,
        operation: Callable[[int, list[memoryview], int], int],
        views: Sequence[memoryview],
        offset: int,
    ) -> None:
        left = list(views)
        while left:
            done = operation(self.fileno(), left[:_IOV_MAX], offset)
            if not done:
                raise OSError(errno.EIO, f"'{self.path}' is shorter than it was")
            offset += done
            while left and done >= len(left[0]):
                done -= len(left.pop(0))
            if done:
                left[0] = left[0][done:]

    def _fallocate(self, mode: int, offset: int, size_bytes: int) -> bool:
        """Return False where the file system has no such operation."""
        fallocate = ctypes.CDLL(None, use_errno=True).fallocate
        fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong]
        if fallocate(self.fileno(), mode, offset, size_bytes) == 0:
            return True
        code = ctypes.get_errno()
        if code in (errno.EOPNOTSUPP, errno.ENOSYS):
            return False
        raise OSError(code, os.strerror(code))

    def close(self) -> None:
        """Idempotent; the lock goes with the last copy of the description."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _checked_size(self) -> int:
        mode = os.fstat(self._fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise DeviceError(f"'{self.path}' is neither a regular file nor a block device")
        size = os.lseek(self._fd, 0, os.SEEK_END)
        if size % SECTOR_SIZE_BYTES:
            raise DeviceError(
                f"'{self.path}' has {size} bytes, expected a multiple of {SECTOR_SIZE_BYTES}: "
                "extend it with truncate"
            )
        return size
