"""File descriptors with one owner and a name.

A bare number exists only at a system call and at `detach()`. Everything between is an OwnedFd: it
is closed once, by whoever holds it, and a lost one is a ResourceWarning. What the peer sends is put
in an FdTable under its name and claimed once; what nobody claims is closed and named.
"""

from __future__ import annotations

import fcntl
import os
import re
import warnings
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from cpr.errors import FdError

# A name is for people and for log lines; QEMU's ids are limited to about as much.
FD_NAME_SIZE_MAX = 255
_NAME = re.compile(r"(?P<kind>[a-z][a-z0-9-]*):(?P<owner>[A-Za-z0-9_.#/-]+):(?P<index>0|[1-9]\d*)")


@dataclass(frozen=True, slots=True)
class FdName:
    """`kind:owner:index`: `ram:ram0:0`, `lease:epoch:0`, `chardev:serial0:0`.

    `kind` says what the fd is for, `owner` is the id of the object that uses it, `index` counts the
    fds of one owner.
    """

    kind: str
    owner: str
    index: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """The parts of a name; FdError when it is not one."""
        match = _NAME.fullmatch(text) if len(text) <= FD_NAME_SIZE_MAX else None
        if match is None:
            raise FdError(
                f"fd name {text[:FD_NAME_SIZE_MAX]!r} is not 'kind:owner:index' (lower-case kind, "
                f"id of the owner, number; at most {FD_NAME_SIZE_MAX} characters)"
            )
        return cls(match["kind"], match["owner"], int(match["index"]))

    def __str__(self) -> str:
        return f"{self.kind}:{self.owner}:{self.index}"


class OwnedFd:
    """An open file descriptor that this object closes; `name` is for messages and tables."""

    __slots__ = ("_fd", "name")

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self.name = name

    @classmethod
    def adopt(cls, fd: int, name: str) -> Self:
        """Take over `fd` from outside (inherited, or received) and make it close-on-exec.

        Raises FdError when it is not open.
        """
        try:
            os.set_inheritable(fd, False)
        except OSError as error:
            raise FdError(f"fd '{name}': number {fd} cannot be used: {error.strerror}") from error
        return cls(fd, name)

    @classmethod
    def duplicate_of(cls, fd: int, name: str) -> Self:
        """A close-on-exec duplicate of `fd`, which stays with its owner."""
        return cls(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0), name)

    @property
    def closed(self) -> bool:
        """Whether the fd was closed or given away."""
        return self._fd < 0

    def fileno(self) -> int:
        """The number; FdError once closed or given away."""
        if self._fd < 0:
            raise FdError(f"fd '{self.name}' was used after it was closed or given away")
        return self._fd

    def detach(self) -> int:
        """Give the number away: the caller owns the file now."""
        fd = self.fileno()
        self._fd = -1
        return fd

    def close(self) -> None:
        """Close; again is harmless."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        fd = getattr(self, "_fd", -1)
        if fd >= 0:
            self.close()  # first: a warning may be an exception
            warnings.warn(
                f"fd '{self.name}' ({fd}) was lost before it was closed",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    def __repr__(self) -> str:
        return f"<OwnedFd {self.name} {'closed' if self.closed else self._fd}>"


class FdTable:
    """The fds of one update by name: offered by the channel, claimed by the machine's builder."""

    def __init__(self) -> None:
        self._offered: dict[str, OwnedFd] = {}
        self._claimed: set[str] = set()

    @property
    def names(self) -> tuple[str, ...]:
        """What was offered and not yet claimed, in order of arrival."""
        return tuple(self._offered)

    def offer(self, name: str, fd: OwnedFd) -> None:
        """Put `fd` in; a name that is no FdName or was offered before is an FdError.

        The table owns `fd` in either case: a refused one is closed.
        """
        try:
            FdName.parse(name)
            if name in self._offered or name in self._claimed:
                raise FdError(f"fd '{name}' came twice")
        except FdError:
            fd.close()
            raise
        self._offered[name] = fd

    def claim(self, name: str) -> OwnedFd:
        """Take `name` out; FdError when it is not there: nothing replaces a missing fd."""
        fd = self._offered.pop(name, None)
        if fd is not None:
            self._claimed.add(name)
            return fd
        if name in self._claimed:
            raise FdError(f"fd '{name}' was already claimed; every fd has one user")
        raise FdError(
            f"fd '{name}' was not received; received: {', '.join(self._offered) or 'none'}"
        )

    def close_unclaimed(self) -> tuple[str, ...]:
        """Close what nobody claimed and return its names."""
        names = tuple(self._offered)
        for fd in self._offered.values():
            fd.close()
        self._offered.clear()
        return names
