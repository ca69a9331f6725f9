"""Starts the processes of a pair or a chain and gives each its sockets.

One `Launcher` owns one run directory (sockets and logs) and every process it started; leaving its
context ends them all and removes the directory, whatever happened in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tools.lab.argv import (
    Build,
    Guest,
    Incoming,
    SerialSocket,
    migrate_channels,
    vmm_argv,
)
from tools.lab.child import PLAIN_CHILD, ChildSetup
from tools.lab.errors import OptionError
from tools.lab.heartbeat import HeartbeatReader
from tools.lab.process import VmmProcess, listen_unix

# sun_path has 108 bytes with its terminating zero; the longest name that we make is this long.
SUN_PATH_MAX_BYTES = 107
_LONGEST_NAME = "main-000000.sock"


@dataclass(frozen=True, slots=True)
class Sockets:
    """Where one process can be reached; `cpr` and `main` only for a successor."""

    qmp: Path
    cpr: Path | None = None
    main: Path | None = None

    def migrate_arguments(self) -> dict[str, object]:
        """Arguments of the predecessor's `migrate` towards this process."""
        if self.cpr is None or self.main is None:
            raise OptionError("this process was not started to receive an update")
        return migrate_channels(self.cpr, self.main)


@dataclass(frozen=True, slots=True)
class Launched:
    """A process and its sockets."""

    process: VmmProcess
    sockets: Sockets


class Launcher:
    """Owns a run directory and the processes in it."""

    def __init__(
        self,
        guest: Guest,
        *,
        extra: Sequence[str] = (),
        first: ChildSetup = PLAIN_CHILD,
        successor: ChildSetup = PLAIN_CHILD,
    ) -> None:
        self.guest = guest
        self._first, self._successor = first, successor
        self._extra = tuple(extra)
        self._directory = tempfile.TemporaryDirectory(prefix="cpr-")
        self.run_dir = Path(self._directory.name)
        if len(str(self.run_dir / _LONGEST_NAME)) > SUN_PATH_MAX_BYTES:
            self._directory.cleanup()
            raise OptionError(
                f"the temporary directory {self.run_dir.parent} is too long for unix sockets "
                f"({SUN_PATH_MAX_BYTES} bytes); set TMPDIR to a shorter one"
            )
        if successor.uid is not None:
            os.chown(self.run_dir, successor.uid, successor.uid)  # it binds its main socket there
        self._processes: list[VmmProcess] = []
        self._serial: HeartbeatReader | None = None
        self._count = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        try:
            ends = [process.terminate() for process in self._processes]
            failures = await asyncio.gather(*ends, return_exceptions=True)
        finally:
            if self._serial is not None:
                self._serial.close()
            self._directory.cleanup()
        for failure in failures:
            if failure is not None:
                raise failure

    async def start_first(self, build: Build) -> tuple[Launched, HeartbeatReader]:
        """Start the process that boots the guest, its serial port already connected."""
        path = self.run_dir / "serial.sock"
        with contextlib.ExitStack() as unused:
            serial = unused.enter_context(listen_unix(path))
            self._serial = await HeartbeatReader.connect(path)
            endpoint = SerialSocket(path, serial.fileno())
            launched = await self._launch(build, serial=endpoint, inherited=[serial])
            return launched, self._serial

    async def start_plain(self, build: Build, extra: Sequence[str] = ()) -> Launched:
        """Start a process that boots the guest; `extra` says where its serial port goes."""
        return await self._launch(build, extra=extra)

    async def start_successor(self, build: Build, extra: Sequence[str] = ()) -> Launched:
        """Start a process that waits for the guest; COM1 is the one of `start_first`, if any."""
        number = self._count
        cpr_path = self.run_dir / f"cpr-{number}.sock"
        main_path = self.run_dir / f"main-{number}.sock"
        serial = None if self._serial is None else SerialSocket(self.run_dir / "serial.sock")
        with listen_unix(cpr_path) as listener:
            incoming = Incoming(cpr_fd=listener.fileno(), main_path=main_path)
            return await self._launch(
                build,
                serial=serial,
                incoming=incoming,
                inherited=[listener],
                sockets=(cpr_path, main_path),
                extra=extra,
            )

    def remove_sockets(self, launched: Launched) -> None:
        """Remove the sockets that the launcher itself made for one process."""
        for path in (launched.sockets.qmp, launched.sockets.cpr):
            if path is not None:
                path.unlink(missing_ok=True)

    def leftover_sockets(self) -> tuple[str, ...]:
        """Names of socket files in the run directory, without the serial port's."""
        return tuple(
            sorted(
                path.name
                for path in self.run_dir.iterdir()
                if path.is_socket() and path.name != "serial.sock"
            )
        )

    async def _launch(
        self,
        build: Build,
        *,
        serial: SerialSocket | None = None,
        incoming: Incoming | None = None,
        inherited: Sequence[socket.socket] = (),
        sockets: tuple[Path, Path] | None = None,
        extra: Sequence[str] = (),
    ) -> Launched:
        number = self._count
        self._count += 1
        name = f"gen{number}"
        qmp_path = self.run_dir / f"qmp-{number}.sock"
        with listen_unix(qmp_path) as qmp:
            argv = vmm_argv(
                build,
                self.guest,
                name=name,
                qmp_fd=qmp.fileno(),
                serial=serial,
                incoming=incoming,
                extra=(*extra, *self._extra),
            )
            process = await VmmProcess.launch(
                argv,
                name=name,
                qmp_path=qmp_path,
                inherited=[qmp, *inherited],
                log_path=self.run_dir / f"{name}.log",
                child=self._first if incoming is None else self._successor,
            )
        self._processes.append(process)
        cpr, main = sockets or (None, None)
        return Launched(process, Sockets(qmp_path, cpr, main))
