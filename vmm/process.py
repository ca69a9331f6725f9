"""One VMM process: its run state, its guest, its monitors, and the updates that begin or end it.

`Vmm` is what QMP commands call. It owns the machine; an update borrows it. Every status and run
state change goes through here, so that events, `query-status` and `query-migrate` agree.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Coroutine
from typing import Any

from cpr.handshake import Deadlines
from guestram.errors import EpochMovedError, LeaseBusyError
from vmm.accel import open_accel
from vmm.accel.base import StopReason, VcpuStop
from vmm.boot.image import plan_boot
from vmm.build import boot, section_types
from vmm.chassis import Chassis
from vmm.config import MigrationAddress, MigrationChannel, VmmConfig
from vmm.errors import MigrationError, RunstateError
from vmm.events import EventLog
from vmm.machine import Machine
from vmm.migration.capabilities import MigrationCapabilities
from vmm.migration.parameters import MigrationParameters
from vmm.migration.preflight import check_outgoing, ram_blockers
from vmm.migration.status import RUNNING, MigrationRecord, MigrationStatus
from vmm.qmp.server import MonitorServer
from vmm.runstate import RunState, RunstateMachine
from vmm.say import say
from vmm.update.placement import Placement
from vmm.update.priority import Background
from vmm.update.quiet import keep_heap, settle_heap
from vmm.update.source import SourceUpdate
from vmm.update.target import TargetUpdate
from vmm.update.warm import warm_chassis, warm_hello, warm_machine

EXIT_OK = 0


class Vmm:
    """The process. Everything runs on the loop's thread; only vCPUs have threads of their own."""

    def __init__(self, config: VmmConfig, background: Background) -> None:
        self.config = config
        self.background = background
        self.machine: Machine | None = None
        self.parameters = MigrationParameters.from_globals(config.migration_globals)
        self.capabilities = MigrationCapabilities.from_globals(config.migration_globals)
        self.migration = MigrationRecord(incoming=config.incoming is not None)
        self.placement = Placement(asyncio.get_running_loop())
        self.autostart = not config.start_paused
        self._loop = asyncio.get_running_loop()
        self._runstate = RunstateMachine(
            RunState.PRELAUNCH if config.incoming is None else RunState.INMIGRATE
        )
        self._monitors = MonitorServer(config, self)
        self.events = EventLog(self._monitors.emit, self._loop)
        self._chassis: Chassis | None = None
        self._source: SourceUpdate | None = None
        self._target: TargetUpdate | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._exit: asyncio.Future[int] = self._loop.create_future()

    # ---- life -----------------------------------------------------------------------------------

    async def run(self) -> int:
        """Serve until quit; returns the exit status. Raises VmmError when start-up fails."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._loop.add_signal_handler(number, self._terminate)
        starting = self._loop.create_task(self._start(), name="start")
        try:
            # A start may wait for a client of a chardev; a signal ends that wait.
            either: set[asyncio.Future[Any]] = {starting, self._exit}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
            return await self._exit
        finally:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            await self._close()

    async def _start(self) -> None:
        if self.config.incoming is None:
            await self._boot()
        else:
            plan = plan_boot(self.config)  # for resets; what can be made now is not made later
            chassis = self._make_chassis()
            settle_heap()
            await self._monitors.start()  # at once: a successor is talked to while it waits
            self._target = TargetUpdate(self, chassis, plan, self.config.incoming)
            self._target.start()

    async def _boot(self) -> None:
        """Make the machine, then answer QMP, so that no command can come before there is one."""
        machine = await boot(self._make_chassis())
        settle_heap()
        self.take_machine(machine)
        await self._monitors.start()
        if self.autostart and self.runstate is RunState.PRELAUNCH:  # a client may have been quick
            self._enter_guest()
            self.set_runstate(RunState.RUNNING)
            self.events.emit("RESUME")

    def _make_chassis(self) -> Chassis:
        accel, skipped = open_accel(self.config.accels)
        for reason in skipped:
            self.warn(reason)
        self._chassis = Chassis(self.config, accel, self._loop, self)
        planned = section_types(self._chassis)
        warm_chassis(self._chassis, planned.values())
        warm_hello(self.config, planned)
        self._monitors.registry.prepare()
        return self._chassis

    def take_machine(self, machine: Machine) -> None:
        """The machine is built and owns its chassis; the guest does not run here yet."""
        self.machine = machine
        keep_heap()
        warm_machine(machine)

    async def _close(self) -> None:
        self.placement.end()
        for update in (self._source, self._target):
            if update is not None:
                update.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.machine is not None:
            self.machine.close()
        elif self._chassis is not None:
            self._chassis.close()
        await self._monitors.close()

    def spawn(self, work: Coroutine[Any, Any, None], what: str) -> None:
        """Run `work` beside the loop; an error that it did not handle ends the process loudly."""
        task = self._loop.create_task(work, name=what)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.finish_with(error)

    def finish_with(self, error: BaseException) -> None:
        """End the process because of a bug or a failure nobody can repair."""
        if not self._exit.done():
            self._exit.set_exception(error)

    def warn(self, text: str) -> None:
        """One line on stderr."""
        say(f"warning: {text}", timestamps=self.config.timestamps)

    def _terminate(self) -> None:
        self._shutdown(guest=False, reason="host-signal", status=EXIT_OK)

    def _shutdown(self, *, guest: bool, reason: str, status: int) -> None:
        self.events.release()
        self.events.emit("SHUTDOWN", {"guest": guest, "reason": reason})
        if not self._exit.done():
            self._exit.set_result(status)

    # ---- run state ------------------------------------------------------------------------------

    @property
    def runstate(self) -> RunState:
        """The run state as `query-status` reports it."""
        return self._runstate.state

    @property
    def accel_name(self) -> str | None:
        """The accelerator in use, once one is open."""
        return self._chassis.accel.name if self._chassis is not None else None

    def set_runstate(self, state: RunState) -> None:
        """Move the run state; RunstateError on a move that does not exist."""
        self._runstate.set(state)

    def cpu_thread_ids(self) -> tuple[int, ...]:
        """Kernel thread ids of the vCPUs."""
        return self._chassis.threads.ids if self._chassis is not None else ()

    def stop(self) -> None:
        """`stop`: in inmigrate only autostart changes, as in QEMU."""
        if self.runstate is RunState.INMIGRATE:
            self.autostart = False
        elif self.runstate is RunState.RUNNING:
            assert self.machine is not None
            self.machine.stop()
            self.set_runstate(RunState.PAUSED)
            self.events.emit("STOP")

    def cont(self) -> None:
        """`cont`: run the guest if the kernel and the epoch say that it is ours to run.

        Raises RunstateError with the reason; after a successful update that is final.
        """
        if self.runstate is RunState.INMIGRATE:
            self.autostart = True
            reason = self._target.retry() if self._target is not None else None
            if reason is not None:
                raise RunstateError(reason)
            return
        if self.runstate is RunState.RUNNING:
            return
        if self.runstate is RunState.FINISH_MIGRATE:
            self._settle_undecided()
            return
        if self.runstate in (RunState.SHUTDOWN, RunState.INTERNAL_ERROR):
            raise RunstateError("Resetting the Virtual Machine is required")
        self._enter_guest()
        self.set_runstate(RunState.RUNNING)
        self.events.emit("RESUME")

    def _settle_undecided(self) -> None:
        reason = self._source.retry() if self._source is not None else None
        if reason is not None:
            raise RunstateError(reason)
        if self.runstate is RunState.FINISH_MIGRATE:
            raise RunstateError("Migration is not finalized yet")
        if self.runstate is RunState.POSTMIGRATE:
            self._enter_guest()  # raises: the successor ran

    def _enter_guest(self) -> None:
        assert self.machine is not None
        try:
            self.machine.start()
            self.machine.keep_backends()
        except LeaseBusyError as error:
            raise RunstateError(
                f"Another process holds the run lease of this guest's RAM and owns it: {error}"
            ) from error
        except EpochMovedError as error:
            raise RunstateError(
                "The successor ran the guest: this process's CPU state is older than the RAM and "
                f"can never run again ({error})"
            ) from error

    def system_reset(self) -> None:
        """`system_reset`: power-on state; the guest runs on if it ran."""
        if self.machine is None or self.runstate in (
            RunState.INMIGRATE,
            RunState.FINISH_MIGRATE,
            RunState.POSTMIGRATE,
        ):
            raise RunstateError(f"the guest cannot be reset in run state {self.runstate.value}")
        self._reset(guest=False, reason="host-qmp-system-reset")

    def _reset(self, *, guest: bool, reason: str) -> None:
        assert self.machine is not None
        if self.config.no_reboot:
            self._guest_shutdown(reason=reason, guest=guest)
            return
        was_running = self.machine.running
        if was_running:
            self.machine.stop()
        self.machine.reset()
        self.events.emit("RESET", {"guest": guest, "reason": reason})
        if was_running:
            self.machine.start()
        elif self.runstate in (RunState.SHUTDOWN, RunState.INTERNAL_ERROR):
            self.set_runstate(RunState.PAUSED)

    def _guest_shutdown(self, *, reason: str, guest: bool = True) -> None:
        if not self.config.no_shutdown:
            self._shutdown(guest=guest, reason=reason, status=EXIT_OK)
            return
        assert self.machine is not None
        if self.machine.running:
            self.machine.stop()
            self.events.emit("STOP")
        self.events.emit("SHUTDOWN", {"guest": guest, "reason": reason})
        self.set_runstate(RunState.SHUTDOWN)

    def quit(self) -> None:
        """`quit`: cancels an update that can still be cancelled, then ends the process."""
        self.migrate_cancel()
        self._shutdown(guest=False, reason="host-qmp-quit", status=EXIT_OK)

    # ---- what the guest or its devices cause ----------------------------------------------------

    def vcpu_stopped(self, index: int, stop: VcpuStop) -> None:
        """A vCPU stopped by itself (posted from its thread)."""
        if self.machine is None or not self.machine.running:
            return
        if stop.reason is StopReason.SHUTDOWN:
            self._reset(guest=True, reason="guest-reset")
            return
        self.warn(f"vCPU {index}: {stop.reason.value}: {stop.detail}")
        self.machine.stop()
        self.set_runstate(RunState.INTERNAL_ERROR)
        self.events.emit("STOP")

    def guest_exit(self, status: int) -> None:
        """The isa-debug-exit device was written."""
        self._shutdown(guest=True, reason="guest-shutdown", status=status)

    def guest_reset(self) -> None:
        """The guest asked for a reset (port 0x92 bit 0, …)."""
        if self.machine is not None and self.machine.running:
            self._reset(guest=True, reason="guest-reset")

    def guest_shutdown(self) -> None:
        """The guest switched its machine off (ACPI S5)."""
        if self.machine is not None and self.machine.running:
            self._guest_shutdown(reason="guest-shutdown")

    # ---- migration ------------------------------------------------------------------------------

    def deadlines(self) -> Deadlines:
        """The deadline of every phase, or x-cpr-timeout-ms for all of them."""
        override_ms = self.parameters.x_cpr_timeout_ms
        return Deadlines() if override_ms is None else Deadlines.uniform(override_ms)

    def migration_info(self) -> dict[str, Any]:
        """`query-migrate`."""
        return self.migration.describe(
            blocked_reasons=ram_blockers(self.config) if self.parameters.is_cpr else ()
        )

    def update_timeline(self) -> list[dict[str, Any]]:
        """`x-query-cpr-timeline`: what each step of the last update did, and when."""
        update = self._source or self._target
        if update is None:
            return []
        return [{"t-ns": t_ns, "what": what} for t_ns, what in update.timeline]

    async def migrate(
        self, channels: tuple[MigrationChannel, ...], *, uri_form: bool, resume: bool
    ) -> None:
        """`migrate`: returns when the successor is connected and has our HELLO."""
        check_outgoing(
            channels,
            uri_form=uri_form,
            resume=resume,
            parameters=self.parameters,
            capabilities=self.capabilities,
            runstate=self.runstate,
            status=self.migration.status,
            ram_blockers=ram_blockers(self.config),
        )
        assert self.machine is not None
        if not self.parameters.is_cpr:
            raise MigrationError(
                "mode 'normal' would copy RAM, which this VMM does not do; set the migration "
                "parameter mode to cpr-transfer"
            )
        self.migration = MigrationRecord()
        self._source = SourceUpdate(self, self.machine, channels)
        # A client that goes away meanwhile does not take the update with it.
        starting = self._loop.create_task(self._source.start(), name="migrate")
        starting.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.shield(starting)

    async def migrate_incoming(self, address: MigrationAddress, *, exit_on_error: bool) -> None:
        """`migrate-incoming`: where the main channel will arrive."""
        if self._target is None:
            raise MigrationError("'-incoming' was not specified on the command line")
        if self._target.main_given:
            raise MigrationError("The incoming migration has already been started")
        self._target.exit_on_error = exit_on_error
        self._target.set_main_address(address)

    def migrate_cancel(self) -> None:
        """`migrate_cancel`: a no-op when nothing can be cancelled, as in QEMU."""
        if self._source is not None and self.migration.status in RUNNING:
            self._source.cancel()

    def migrate_continue(self, state: str) -> None:
        """`migrate-continue`."""
        current = self.migration.status
        if current is not MigrationStatus.PRE_SWITCHOVER or state != current.value:
            raise MigrationError(f"Migration not in expected state: {current.value}")
        assert self._source is not None
        self._source.resume_switchover()

    def set_status(self, status: MigrationStatus, reason: str = "") -> None:
        """Move the migration status; emits MIGRATION when the client asked for events."""
        self.migration.move(status, reason, time.monotonic_ns())
        if self.capabilities.events:
            self.events.emit("MIGRATION", {"status": status.value})

    def emit_pass(self, number: int) -> None:
        """MIGRATION_PASS, as QEMU counts passes."""
        self.migration.passes = number
        if self.capabilities.events:
            self.events.emit("MIGRATION_PASS", {"pass": number})

    def incoming_failed(self, reason: str, *, exit_on_error: bool) -> None:
        """The incoming update ended without a guest here."""
        with contextlib.suppress(RunstateError):
            self.set_status(MigrationStatus.FAILED, reason)
        if exit_on_error:
            self.finish_with(MigrationError(f"load of migration failed: {reason}"))
