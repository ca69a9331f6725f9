"""Real `vmm` processes around one guest: boot it, update it, look at its RAM, speak to its port.

Options are those of the real command line, given to every process of the chain. COM1 (or whatever
`ports` says) is on a unix socket whose other end is `Rig.line`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.framework.serial_line import SerialLine
from tools.lab.argv import migrate_channels
from tools.lab.deadlines import UPDATE_MS, within
from tools.lab.process import Event, VmmProcess, listen_unix
from tools.lab.ramview import RamView
from tools.lab.update import EVENTS_ON, UpdateResult, live_update

MIB = 1 << 20
RAM_BYTES = 16 * MIB
VMM = (sys.executable, "-m", "vmm")
COM1 = ("-serial", "chardev:line")


def memory(size_bytes: int = RAM_BYTES, machine: str = "cpr-1.0") -> tuple[str, ...]:
    """Options of a machine whose RAM is one memfd."""
    return (
        *("-machine", f"{machine},memory-backend=ram0,aux-ram-share=on"),
        *("-object", f"memory-backend-memfd,id=ram0,size={size_bytes},share=on"),
        *("-m", f"{size_bytes // MIB}M"),
    )


@dataclass(frozen=True, slots=True)
class Successor:
    """A process that waits for the guest, and where."""

    process: VmmProcess
    cpr_path: Path
    main_path: Path

    @property
    def migrate_arguments(self) -> dict[str, object]:
        """Arguments of the predecessor's `migrate`."""
        return migrate_channels(self.cpr_path, self.main_path)


class Rig:
    """Owns a directory, the processes in it and the line; `vmm` is the process with the guest."""

    vmm: VmmProcess
    line: SerialLine

    def __init__(
        self,
        accel: str,
        *options: str,
        ram: tuple[str, ...] | None = None,
        ports: tuple[str, ...] = COM1,
        command: tuple[str, ...] = VMM,
    ) -> None:
        self.accel = accel
        self.command = command
        self.options = (*(memory() if ram is None else ram), *ports, *options)
        self._directory = tempfile.TemporaryDirectory(prefix="cpr-", dir="/tmp")
        self.run_dir = Path(self._directory.name)
        self._processes: list[VmmProcess] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        try:
            for process in self._processes:
                await process.terminate()
        finally:
            if hasattr(self, "line"):
                self.line.close()
            self._directory.cleanup()

    async def boot(self, *extra: str) -> VmmProcess:
        """Start the guest, its line connected before it says anything."""
        path = self.run_dir / "line.sock"
        with contextlib.ExitStack() as unused:
            listener = unused.enter_context(listen_unix(path))
            self.line = await SerialLine.connect(path)
            chardev = f"socket,id=line,fd={listener.fileno()},server=on,wait=on"
            self.vmm = await self.launch("-chardev", chardev, *extra, inherited=[listener])
        return self.vmm

    async def successor(
        self, *extra: str, options: Sequence[str] | None = None, defer: bool = False
    ) -> Successor:
        """Start a process that can take the guest over; `options` in place of the rig's own."""
        number = len(self._processes)
        cpr_path = self.run_dir / f"cpr{number}.sock"
        main_path = self.run_dir / f"main{number}.sock"
        with listen_unix(cpr_path) as listener:
            address = {"transport": "socket", "type": "fd", "str": str(listener.fileno())}
            process = await self.launch(
                *("-incoming", "defer" if defer else f"unix:{main_path}"),
                *("-incoming", json.dumps({"channel-type": "cpr", "addr": address})),
                *("-global", "migration.x-events=on"),
                *("-chardev", f"socket,id=line,path={self.run_dir}/line.sock,server=on,wait=off"),
                *extra,
                inherited=[listener],
                options=options,
            )
        return Successor(process, cpr_path, main_path)

    async def update(self, *extra: str) -> UpdateResult:
        """Live-update the running guest; `vmm` is the successor then. The old process stays."""
        new = await self.successor(*extra)
        result = await live_update(self.vmm, new.process, new.migrate_arguments)
        self.vmm = new.process
        return result

    async def migrate(self, new: Successor) -> None:
        """Begin an update; the rest is events."""
        await self.vmm.execute("migrate-set-capabilities", EVENTS_ON)
        await self.vmm.execute("migrate-set-parameters", {"mode": "cpr-transfer"})
        await self.vmm.execute("migrate", new.migrate_arguments)

    async def launch(
        self,
        *extra: str,
        inherited: Sequence[socket.socket] = (),
        options: Sequence[str] | None = None,
    ) -> VmmProcess:
        """Start a process with the rig's options, its QMP connected."""
        name = f"gen{len(self._processes)}"
        qmp_path = self.run_dir / f"{name}.qmp"
        with listen_unix(qmp_path) as qmp:
            argv = [*self.command, "-name", name, "-accel", self.accel, "-nodefaults"]
            argv += ["-display", "none"]
            argv += ["-chardev", f"socket,id=qmp,fd={qmp.fileno()},server=on,wait=off"]
            argv += ["-mon", "chardev=qmp,mode=control"]
            # Options may name chardevs, which therefore come first.
            argv += [*extra, *(self.options if options is None else options)]
            process = await VmmProcess.launch(
                argv,
                name=name,
                qmp_path=qmp_path,
                inherited=[qmp, *inherited],
                log_path=self.run_dir / f"{name}.log",
            )
        self._processes.append(process)
        return process

    def ram(self, size_bytes: int = RAM_BYTES) -> RamView:
        """The guest's RAM from outside."""
        return RamView(self.vmm.pid, size_bytes, 1)


async def next_event(process: VmmProcess, name: str, **data: object) -> Event:
    """Wait for the event `name` whose data has all of `data`; earlier events are dropped."""

    async def wait() -> Event:
        while True:
            event = await process.next_event()
            if event["event"] == name and data.items() <= event.get("data", {}).items():
                return event

    return await within(UPDATE_MS, f"{process.name}: {name} {data or ''}", wait())


async def runstate(process: VmmProcess) -> str:
    """Its `query-status`."""
    return str((await process.execute("query-status"))["status"])


async def query_migrate(process: VmmProcess) -> dict[str, Any]:
    """Its `query-migrate`."""
    info: dict[str, Any] = await process.execute("query-migrate")
    return info


async def exit_status(process: VmmProcess) -> int:
    """Wait for its end."""
    return await within(UPDATE_MS, f"{process.name}: exit", asyncio.shield(process.wait_exit()))
