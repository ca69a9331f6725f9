"""`-pidfile`: the process id in a file that no two live processes share."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from vmm.errors import ConfigError

_MODE = 0o600


class Pidfile:
    """Holds a lock on the file while the process lives; removes it on a clean exit.

    A successor may be given its predecessor's path: the lock then belongs to the old process until
    it quits, so the name is replaced by a new file instead of being shared.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._fd: int | None = None

    def __enter__(self) -> Self:
        if self._path is None:
            return self
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            self._fd = os.open(temporary, os.O_CREAT | os.O_RDWR | os.O_TRUNC | os.O_CLOEXEC, _MODE)
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(self._fd, f"{os.getpid()}\n".encode())
            temporary.replace(self._path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            self._close()
            raise ConfigError(f"cannot create PID file {self._path}: {error.strerror}") from error
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if self._path is None or self._fd is None:
            return
        ours = os.fstat(self._fd).st_ino
        if self._path.exists() and self._path.stat().st_ino == ours:
            self._path.unlink()
        self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)
