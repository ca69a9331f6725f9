"""The run lease: at most one process ever runs the guest (promise P2), and the kernel enforces it.

During a live update two processes map the same RAM and both could run it. Good manners are not
enough: either side can be killed, stopped or wrong between any two instructions. Two kernel facts
decide instead.

**A lock says who may run.** `RunLease` is an exclusive *open file description* lock (F_OFD_SETLK)
on the RAM memfd. The kernel drops it when its holder dies, however it dies, and before a pidfd of
the holder polls readable; a holder that hangs keeps it. It belongs to the description, so:

* Each process opens a description of its own through /proc/self/fd/N. A description that came by
  SCM_RIGHTS is the *same* one as the sender's: the lock would be held by both, that is, by nobody.
  The successor may have another uid: the mode of a memfd lets whoever has an fd open it again.
* A classic POSIX lock (F_SETLK) will not do. It belongs to the process and vanishes when *any* fd
  of that file is closed there, and RAM fds are duplicated and closed all the time.
* A forked child shares the description until it execs (it is CLOEXEC) or exits. A parent that dies
  in between leaves the lock with the child, so a VMM must not keep forked children that do not
  exec. The Python object knows its process: in a forked child it holds nothing and refuses to act.

**An epoch says whose CPU state is the newest.** The lock alone cannot tell a returning process
whether somebody else ran the guest in the meantime, and CPU state older than RAM must never be
run. An epoch is one interval in which the guest ran: whoever holds the lease raises the counter
*before* it starts vCPUs (boot, cont, rollback, take-over). A saved CPU state belongs to the epoch
at which the vCPUs stopped and may be run only while the counter still says so. A crash between the
raise and the first instruction errs on the safe side: the state counts as old though nothing ran.

Use: `acquire()`, `check_epoch(epoch_of_my_state)`, `enter()`, run. Check after acquiring and not
before: only while we hold the lease can nobody else raise the epoch.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import struct
from typing import Self

from guestram.errors import EpochMovedError, LeaseBusyError, LeaseError
from guestram.layout import PAGE_SIZE_BYTES
from guestram.memfd import MemfdIdentity, MemfdOptions, RamMemfd

CONTROL_MEMFD_NAME = "cpr-run-epoch"
_CONTROL_OPTIONS = MemfdOptions(size_bytes=PAGE_SIZE_BYTES)


class ControlPage:
    """One shared page that holds the epoch, sealed and passed on like RAM. Owns its memfd.

    Made by `create` or `adopt` only.
    """

    def __init__(self, memfd: RamMemfd) -> None:
        self._memfd = memfd
        with contextlib.ExitStack() as undo:
            undo.callback(memfd.close)
            area = undo.enter_context(memfd.map())
            # A native "Q" item is one aligned 8-byte store, so no reader sees half of an epoch.
            self._words = undo.enter_context(memoryview(area).cast("Q"))
            self._owned = undo.pop_all()

    @classmethod
    def create(cls) -> Self:
        """Make a fresh page; its epoch is 0: no guest has run. Raises MemfdError."""
        return cls(RamMemfd.create(CONTROL_MEMFD_NAME, _CONTROL_OPTIONS, name=CONTROL_MEMFD_NAME))

    @classmethod
    def adopt(cls, fd: int, identity: MemfdIdentity) -> Self:
        """Take over a page that another process made; consumes `fd`. Raises IdentityError."""
        return cls(RamMemfd.adopt(fd, CONTROL_MEMFD_NAME, _CONTROL_OPTIONS, identity))

    @property
    def epoch(self) -> int:
        """How many times the guest was entered so far, by any process. Raises MemfdError."""
        self.fileno()
        return self._words[0]

    def raise_epoch(self) -> int:
        """Begin the next epoch and return it; only for the holder of the run lease."""
        epoch = self.epoch + 1
        self._words[0] = epoch
        return epoch

    def fileno(self) -> int:
        """Return the fd to pass on, still owned here. Raises MemfdError when closed."""
        return self._memfd.fileno()

    def identity(self) -> MemfdIdentity:
        """Return what to promise to the process that will adopt the fd."""
        return self._memfd.identity()

    def close(self) -> None:
        """Unmap and close; idempotent."""
        self._owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


class RunLease:
    """The right to run the guest whose RAM is behind `ram_fd`; not held at first.

    Opens its own description, so `ram_fd` is only borrowed for the call; `control` is borrowed for
    life. Every process must name the same memfd (the first RAM block). Raises LeaseError when the
    memfd cannot be opened again.
    """

    def __init__(self, ram_fd: int, control: ControlPage) -> None:
        self._control = control
        self._held = False
        self._pid = os.getpid()
        try:
            self._file = io.FileIO(f"/proc/self/fd/{ram_fd}", "r+")  # O_RDWR | O_CLOEXEC
        except OSError as error:
            raise LeaseError(
                f"the RAM memfd (fd {ram_fd}) cannot be opened again through /proc for the run "
                f"lease: {error.strerror}; /proc must be mounted"
            ) from error

    @property
    def held(self) -> bool:
        """Whether this process holds the lease; False in a forked child."""
        return self._held and self._pid == os.getpid()

    @property
    def epoch(self) -> int:
        """The present epoch, whoever raised it."""
        return self._control.epoch

    def acquire(self) -> None:
        """Take the lease without waiting; idempotent.

        Raises LeaseBusyError when another process holds it, and LeaseError when the lease is closed
        or was made by another process, that is, before a fork.
        """
        if self._pid != os.getpid():
            raise LeaseError(
                f"this run lease was made by process {self._pid}; a forked child shares its lock "
                "and must not use it: open a lease of its own"
            )
        self._lock(fcntl.F_WRLCK)
        self._held = True

    def release(self) -> None:
        """Give the lease up; idempotent, and nothing happens in a forked child."""
        if self.held:
            self._lock(fcntl.F_UNLCK)
            self._held = False

    def enter(self) -> int:
        """Begin an epoch; returns it. To be called before EVERY start of the vCPUs.

        Raises LeaseError when the lease is not held.
        """
        if not self.held:
            raise LeaseError(
                "the guest may only be entered by the process that holds its run lease"
            )
        return self._control.raise_epoch()

    def check_epoch(self, expected: int) -> None:
        """Make sure that CPU state stopped at epoch `expected` is still the newest.

        Raises EpochMovedError when the guest was entered since.
        """
        if self.epoch != expected:
            raise EpochMovedError(
                f"the CPU state is of epoch {expected}, but the guest is at epoch {self.epoch}: "
                "another process ran it since, and this state is older than its RAM"
            )

    def close(self) -> None:
        """Release and close; idempotent. In a forked child the parent's lock stays."""
        self.release()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _lock(self, kind: int) -> None:
        """Set or drop the lock on the whole file, without waiting."""
        # struct flock: type, whence, start, length (0 = to the end), pid (must be 0 for OFD locks)
        request = struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0)
        if self._file.closed:
            raise LeaseError("the run lease is closed")
        try:
            fcntl.fcntl(self._file.fileno(), fcntl.F_OFD_SETLK, request)
        except OSError as error:
            raise self._refusal(error) from error

    def _refusal(self, error: OSError) -> LeaseError:
        inode = os.fstat(self._file.fileno()).st_ino
        if error.errno in {errno.EAGAIN, errno.EACCES}:
            return LeaseBusyError(
                f"another process holds the run lease (memfd inode {inode}) and owns the guest"
            )
        return LeaseError(f"the run lease (memfd inode {inode}) is unusable: {error.strerror}")
