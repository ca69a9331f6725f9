"""What QMP commands ask of the VMM; `vmm.process.Vmm` implements it, tests have a fake."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from vmm.config import MigrationAddress, MigrationChannel, VmmConfig
from vmm.migration.capabilities import MigrationCapabilities
from vmm.migration.parameters import MigrationParameters
from vmm.runstate import RunState


class VmmControl(Protocol):
    """Everything a command may touch. Methods raise VmmError with the text for the client."""

    config: VmmConfig
    parameters: MigrationParameters
    capabilities: MigrationCapabilities

    @property
    def runstate(self) -> RunState:
        """The run state as `query-status` tells it."""
        ...

    @property
    def accel_name(self) -> str | None:
        """The accelerator in use, once one is open."""
        ...

    def cpu_thread_ids(self) -> tuple[int, ...]:
        """Kernel thread ids of the vCPUs; empty before the machine is built."""
        ...

    def stop(self) -> None:
        """Stop the guest; in inmigrate clear autostart."""
        ...

    def cont(self) -> None:
        """Run the guest; in inmigrate set autostart."""
        ...

    def system_reset(self) -> None:
        """Power-on state."""
        ...

    def quit(self) -> None:
        """Cancel what can be cancelled, then end the process."""
        ...

    def migration_info(self) -> dict[str, Any]:
        """The value of query-migrate."""
        ...

    def update_timeline(self) -> Sequence[dict[str, Any]]:
        """Steps of the last update: {"t-ns": CLOCK_MONOTONIC, "what": name}."""
        ...

    async def migrate(
        self, channels: tuple[MigrationChannel, ...], *, uri_form: bool, resume: bool
    ) -> None:
        """Begin an outgoing migration; returns when it is under way."""
        ...

    async def migrate_incoming(self, address: MigrationAddress, *, exit_on_error: bool) -> None:
        """Listen on `address` for the main channel."""
        ...

    def migrate_cancel(self) -> None:
        """Cancel the migration, if there is one to cancel."""
        ...

    def migrate_continue(self, state: str) -> None:
        """Go on from `state`."""
        ...
