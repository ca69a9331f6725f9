"""The monitors of a process: sockets, standard input and output, their clients and the events.

In a process that waits for an update they come up before anything else, so that it can be asked and
told things from its first millisecond; in one that boots a guest, as soon as there is a machine.
Several clients may use one socket.
"""

from __future__ import annotations

import asyncio
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any

from vmm.config import Chardev, ChardevKind, Monitor, MonitorMode, VmmConfig
from vmm.errors import ConfigError
from vmm.qmp.client import HmpClient, MonitorClient, QmpClient
from vmm.qmp.commands import REGISTRY
from vmm.qmp.control import VmmControl
from vmm.qmp.listener import MonitorSocket
from vmm.qmp.schema import Registry
from vmm.qmp.stdio import StdioTransport

# More clients than any orchestrator, debugger and person together use on one process.
MAX_CLIENTS = 64
# A client that does not read its last replies must not keep the process from ending.
FLUSH_DEADLINE_MS = 500
_MS_PER_S = 1000


class MonitorServer:
    """All monitors of one configuration; `start`, then `emit` events, then `close`."""

    def __init__(
        self, config: VmmConfig, control: VmmControl, registry: Registry = REGISTRY
    ) -> None:
        self._config = config
        self._control = control
        self._registry = registry
        self._sockets: list[MonitorSocket] = []
        self._servers: list[asyncio.Server] = []
        self._clients: dict[MonitorClient, None] = {}  # in order of arrival
        self._first_client = asyncio.Event()

    @property
    def control(self) -> VmmControl:
        """What commands act on."""
        return self._control

    @property
    def registry(self) -> Registry:
        """The commands there are."""
        return self._registry

    @property
    def client_count(self) -> int:
        """Clients connected now."""
        return len(self._clients)

    async def start(self) -> None:
        """Open every monitor. With `wait=on` (QEMU's default) this waits for the first client.

        Raises ConfigError when an address cannot be used.
        """
        by_id = {chardev.id: chardev for chardev in self._config.chardevs}
        for monitor in self._config.monitors:
            await self._open(monitor, by_id[monitor.chardev])

    async def _open(self, monitor: Monitor, chardev: Chardev) -> None:
        match chardev.kind:
            case ChardevKind.NULL:
                return
            case ChardevKind.STDIO:
                StdioTransport(self._new_client(monitor), asyncio.get_running_loop())
            case ChardevKind.SOCKET if chardev.server or chardev.fd is not None:
                await self._serve(monitor, chardev)
            case ChardevKind.SOCKET:
                await self._connect(monitor, chardev)
            case ChardevKind.FILE | ChardevKind.PTY:
                raise ConfigError(
                    f"chardev '{chardev.id}': a monitor needs a socket or stdio, "
                    f"not '{chardev.kind.value}'"
                )

    async def _serve(self, monitor: Monitor, chardev: Chardev) -> None:
        loop = asyncio.get_running_loop()
        opened = MonitorSocket.open(chardev)
        self._sockets.append(opened)
        if not opened.is_listening:
            await loop.connect_accepted_socket(lambda: self._new_client(monitor), opened.sock)
            return
        self._servers.append(
            await loop.create_unix_server(lambda: self._new_client(monitor), sock=opened.sock)
        )
        if chardev.server and chardev.wait:
            self._first_client.clear()
            await self._first_client.wait()

    async def _connect(self, monitor: Monitor, chardev: Chardev) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_unix_connection(lambda: self._new_client(monitor), str(chardev.path))
        except OSError as error:
            raise ConfigError(f"Failed to connect to '{chardev.path}': {error.strerror}") from error

    def _new_client(self, monitor: Monitor) -> MonitorClient:
        if monitor.mode is MonitorMode.CONTROL:
            return QmpClient(self, pretty=monitor.pretty)
        return HmpClient(self)

    def joined(self, client: MonitorClient) -> bool:
        """A client connected; False when there is no room."""
        if len(self._clients) >= MAX_CLIENTS:
            return False
        self._clients[client] = None
        self._first_client.set()
        return True

    def left(self, client: MonitorClient) -> None:
        """A client is gone."""
        self._clients.pop(client, None)

    def emit(
        self, name: str, data: Mapping[str, Any] | None = None, timestamp_ns: int | None = None
    ) -> None:
        """Send an event to every QMP client; `timestamp_ns` (CLOCK_REALTIME) if not now."""
        when_ns = time.time_ns() if timestamp_ns is None else timestamp_ns
        for client in tuple(self._clients):
            client.emit(name, data, when_ns)

    def report_bug(self, what: str, error: BaseException) -> None:
        """Put an unexpected exception on stderr; the VM goes on."""
        trace = "".join(traceback.format_exception(error))
        print(f"vmm: internal error in {what}\n{trace}", file=sys.stderr, flush=True)  # noqa: T201 - a CLI's voice

    async def close(self) -> None:
        """Stop listening, let clients have their last replies, remove our socket files."""
        for opened in self._sockets:
            opened.remove_file()
        for server in self._servers:
            server.close()
        clients = tuple(self._clients)
        for client in clients:
            client.close()
        if clients:
            _done, late = await asyncio.wait(
                [client.closed for client in clients], timeout=FLUSH_DEADLINE_MS / _MS_PER_S
            )
            for client in clients:
                if client.closed in late:
                    client.abort()
            await asyncio.gather(*(client.closed for client in clients))
        await self._cancel_commands(clients)
        for opened in self._sockets:
            opened.sock.close()

    @staticmethod
    async def _cancel_commands(clients: tuple[MonitorClient, ...]) -> None:
        """End commands that still wait for something; nobody is left to hear their result."""
        tasks = [
            client.task
            for client in clients
            if isinstance(client, QmpClient) and client.task is not None
        ]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
