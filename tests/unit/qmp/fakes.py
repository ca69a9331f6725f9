"""A VMM that records what commands ask of it."""

from __future__ import annotations

import asyncio
from typing import Any

from vmm.config import MigrationAddress, MigrationChannel, VmmConfig
from vmm.errors import VmmError
from vmm.migration.capabilities import MigrationCapabilities
from vmm.migration.parameters import MigrationParameters
from vmm.runstate import RunState


class FakeVmm:
    """Implements VmmControl. `calls` has every action in order; `fails` makes them raise."""

    def __init__(self, config: VmmConfig | None = None) -> None:
        self.config = config or VmmConfig(name="guest1")
        self.parameters = MigrationParameters()
        self.capabilities = MigrationCapabilities()
        self.runstate = RunState.RUNNING
        self.accel_name: str | None = "unicorn"
        self.calls: list[Any] = []
        self.info: dict[str, Any] = {}
        self.fails: Exception | None = None
        self.migrate_gate: asyncio.Event | None = None

    def _call(self, *what: Any) -> None:
        self.calls.append(what[0] if len(what) == 1 else what)
        if self.fails is not None:
            raise self.fails

    def cpu_thread_ids(self) -> tuple[int, ...]:
        return (101, 102)

    def stop(self) -> None:
        self._call("stop")
        self.runstate = RunState.PAUSED

    def cont(self) -> None:
        self._call("cont")
        self.runstate = RunState.RUNNING

    def system_reset(self) -> None:
        self._call("system_reset")

    def quit(self) -> None:
        self._call("quit")

    def migration_info(self) -> dict[str, Any]:
        return self.info

    def update_timeline(self) -> list[dict[str, Any]]:
        return [{"t-ns": 1, "what": "stop"}]

    async def migrate(
        self, channels: tuple[MigrationChannel, ...], *, uri_form: bool, resume: bool
    ) -> None:
        if self.migrate_gate is not None:
            await self.migrate_gate.wait()
        self._call("migrate", channels, uri_form, resume)

    async def migrate_incoming(self, address: MigrationAddress, *, exit_on_error: bool) -> None:
        self._call("migrate_incoming", address, exit_on_error)

    def migrate_cancel(self) -> None:
        self._call("migrate_cancel")

    def migrate_continue(self, state: str) -> None:
        self._call("migrate_continue", state)


__all__ = ["FakeVmm", "VmmError"]
