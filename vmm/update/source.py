"""The old side's story: offer, hand over fds, rehearse, stop, send, commit, or roll back.

`cpr.handshake` decides what happens next; this file does it. Read `perform` top to bottom: the
actions stand in the order of a successful update. Everything before `_stop_guest` happens while the
guest runs. From `_stop_guest` to `_send_commit` is our half of the blackout: nothing there
allocates what could have been made before, writes an event, or waits.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from cpr.channel import Channel
from cpr.driver import Driver
from cpr.errors import CprError
from cpr.handshake import TRANSITIONS, Action, Event, Handshake, Phase, Role
from cpr.messages import (
    FDS_PER_FRAME_MAX,
    NONCE_SIZE_BYTES,
    Abort,
    Accept,
    Commit,
    Fds,
    MainHeader,
    Message,
    Rehearsal,
    Running,
    State,
)
from cpr.unixsocket import connect_unix
from cpr.vmstate import Section
from guestram.errors import LeaseBusyError, LeaseError
from vmm.config import ChannelType, MigrationAddress, MigrationChannel, SocketUnix
from vmm.errors import MigrationError, VmmError
from vmm.machine import SectionEncoder, StopTimes
from vmm.migration.status import MigrationStatus
from vmm.migration.transport import connect, connect_reason, send_main_header
from vmm.runstate import RunState
from vmm.update.faults import injector_of
from vmm.update.inventory import CPUID, FdInventory, chosen_protocol, describe_machine, offer
from vmm.update.netfds import PASSED_FDS, kept_fds, passed_fds
from vmm.update.priority import stay_in_background
from vmm.update.quiet import begin_quiet, end_quiet
from vmm.update.wakeful import Wakefulness

if TYPE_CHECKING:
    from vmm.machine import Machine
    from vmm.process import Vmm

# While the user can still take the update back; afterwards the successor may own the guest.
_CANCELLABLE = frozenset(
    phase
    for phase, row in TRANSITIONS[Role.SOURCE].items()
    if Event.CANCEL in row and row[Event.CANCEL].next is not phase
)


class SourceUpdate:
    """One outgoing update. Made by `migrate`, ends in status completed, failed or cancelled."""

    def __init__(self, vmm: Vmm, machine: Machine, channels: tuple[MigrationChannel, ...]) -> None:
        self._vmm = vmm
        self._machine = machine
        addresses = {channel.type: channel.address for channel in channels}
        self._main_address: MigrationAddress = addresses[ChannelType.MAIN]
        self._cpr_address: MigrationAddress = addresses[ChannelType.CPR]
        self._driver = Driver(
            Handshake(Role.SOURCE), self.perform, vmm.deadlines(), asyncio.get_running_loop()
        )
        self._nonce = secrets.token_bytes(NONCE_SIZE_BYTES)
        self._inventory: FdInventory | None = None
        self._sections: tuple[Section, ...] = ()
        self._encoder = SectionEncoder()
        self._wakefulness = Wakefulness()
        self._runstate = RunState.RUNNING
        self._resumed = False
        self._cancelled = False
        self._connecting: asyncio.Future[socket.socket] | None = None
        self._channel: Channel | None = None
        self.stopped_ns = 0
        self._stop_times: StopTimes | None = None
        self._stopped_wall_ns = 0
        self.marks: list[tuple[int, str]] = []
        self._actions: Mapping[Action, Callable[[Message | None], None]] = {
            Action.SEND_HELLO: self._send_hello,
            Action.SEND_FDS: self._send_fds,
            Action.CONNECT_MAIN: self._connect_main,
            Action.REHEARSE: self._rehearse,
            Action.STOP_GUEST: self._stop_guest,
            Action.SEND_STATE: self._send_state,
            Action.RELEASE_LEASE: self._release_lease,
            Action.SEND_COMMIT: self._send_commit,
            Action.COMPLETE: self._complete,
            Action.RECLAIM_LEASE: self._reclaim_lease,
            Action.SEND_ABORT: self._send_abort,
            Action.RESUME_GUEST: self._resume_guest,
            Action.REPORT: self._report,
        }

    @property
    def timeline(self) -> list[tuple[int, str]]:
        """(CLOCK_MONOTONIC ns, what) of every step so far, in order."""
        steps = [
            (t_ns, f"{event.name}->{phase.name}") for t_ns, event, phase in self._driver.record
        ]
        return sorted(steps + self.marks)

    async def start(self) -> None:
        """Connect to the successor and say HELLO; returns with the update under way.

        Raises MigrationError when the connection cannot be made (status is `failed` by then).
        """
        self._vmm.set_status(MigrationStatus.SETUP)
        for warning in kept_fds(self._vmm.config):
            self._vmm.warn(warning)
        deadline_ms = self._vmm.deadlines().connect_ms
        try:
            self._connecting = asyncio.ensure_future(connect_unix(self._unix_path(), deadline_ms))
            sock = await self._connecting
        except (CprError, VmmError, OSError) as error:
            reason = connect_reason(self._cpr_address, error)
            self._vmm.set_status(MigrationStatus.FAILED, reason)
            raise MigrationError(reason) from error
        except asyncio.CancelledError:
            raise MigrationError("the update was cancelled while connecting") from None
        finally:
            self._connecting = None
        self._channel = Channel(
            sock, asyncio.get_running_loop(), allowed_uids=self._vmm.parameters.allowed_uids()
        )
        self._driver.steps = injector_of(self._vmm.parameters.take_fault(Role.SOURCE))
        self._driver.attach(self._channel)
        self._driver.feed(Event.START)
        if self._driver.handshake.phase is Phase.ABORTED:
            raise MigrationError(self._driver.reason)

    def cancel(self) -> None:
        """`migrate_cancel`: take the update back if the successor does not own the guest yet."""
        if self._driver.handshake.phase not in _CANCELLABLE:
            return
        self._cancelled = True
        self._vmm.set_status(MigrationStatus.CANCELLING)
        if self._connecting is not None:
            self._connecting.cancel()
            self._vmm.set_status(MigrationStatus.CANCELLED)
        else:
            self._driver.reason = "the update was cancelled by a migrate_cancel on the source"
            self._driver.feed(Event.CANCEL)

    def resume_switchover(self) -> None:
        """`migrate-continue pre-switchover`."""
        self._vmm.events.hold()
        self._save()

    def retry(self) -> str | None:
        """Ask the kernel again who owns the guest (undecided updates only).

        Returns why the guest cannot run here, or None when the question is settled.
        """
        if self._driver.handshake.phase is Phase.UNDECIDED:
            self._driver.feed(Event.RETRY)
        if self._driver.handshake.phase is Phase.UNDECIDED:
            return "the successor holds the run lease and has not said that it runs"
        return None

    def close(self) -> None:
        """Release the channel and everything held for the update."""
        self._wakefulness.end()
        self._vmm.placement.end()
        self._driver.close()
        if self._inventory is not None:
            self._inventory.close()
            self._inventory = None

    def perform(self, action: Action, message: Message | None) -> None:
        """Do one action of the handshake table."""
        self._actions[action](message)

    # ---- while the guest runs -------------------------------------------------------------------

    def _send_hello(self, _message: Message | None) -> None:
        begin_quiet()
        machine = self._machine
        self._vmm.placement.begin(machine.parts.chassis.threads.ids)
        config = self._vmm.config
        dead = [name for name, netdev in machine.parts.netdevs.items() if not netdev.is_live]
        passed = passed_fds(config, migrate_fds=self._vmm.parameters.passes_fds, dead=dead)
        self._inventory = FdInventory.of_machine(machine, passed)
        described = describe_machine(config) | ({PASSED_FDS: passed} if passed else {})
        if (cpuid := machine.parts.chassis.cpu_description) is not None:
            described[CPUID] = cpuid
        self._send(
            offer(
                described,
                machine.section_types(),
                self._inventory.offers(),
                user_paced=self._vmm.capabilities.pause_before_switchover,
                nonce=self._nonce,
            )
        )

    def _send_fds(self, message: Message | None) -> None:
        assert isinstance(message, Accept)
        assert self._inventory is not None
        assert self._channel is not None
        self._channel.protocol = chosen_protocol(message)
        names = self._inventory.names
        fds = self._inventory.filenos()
        for start in range(0, len(names), FDS_PER_FRAME_MAX):
            chunk = slice(start, start + FDS_PER_FRAME_MAX)
            more = start + FDS_PER_FRAME_MAX < len(names)
            self._send(Fds(names=names[chunk], more=more), fds[chunk])

    def _connect_main(self, _message: Message | None) -> None:
        self._vmm.spawn(self._connect_main_task(), "connect the main channel")

    async def _connect_main_task(self) -> None:
        assert self._channel is not None
        protocol, deadline_ms = self._channel.protocol, self._vmm.deadlines().main_ms
        header = MainHeader(
            nonce=self._nonce,
            machine_type=self._vmm.config.machine.type_name,
            ram_blocks=tuple(
                (block.id, block.size_bytes) for block in self._machine.parts.ram.layout.blocks
            ),
        )
        try:
            with await connect(self._main_address, deadline_ms) as sock:
                await send_main_header(sock, header, protocol, deadline_ms)
        except Exception as error:  # whatever it is: the guest runs here, and goes on
            self._driver.fail(connect_reason(self._main_address, error) or repr(error))
            return
        if self._driver.handshake.phase is Phase.CONNECTING:
            self._driver.feed(Event.MAIN_SENT)

    def _rehearse(self, _message: Message | None) -> None:
        """Go once through everything the blackout does, so that none of it is cold.

        The guest pauses for a moment that is shorter than the blackout to come; the successor loads
        this state as it will load the real one, so a state it cannot load is found now.
        """
        if self._wakefulness.begin():
            self._mark(time.monotonic_ns(), "processors stay awake")
        machine = self._machine
        was_running = machine.running
        if was_running:
            machine.stop()
        try:
            states = machine.capture()
        finally:
            if was_running:
                machine.start()
        self._send(Rehearsal(sections=self._encoder.encode(states)))

    # ---- the blackout ---------------------------------------------------------------------------

    def _stop_guest(self, _message: Message | None) -> None:
        vmm = self._vmm
        vmm.events.hold()
        self._runstate = vmm.runstate
        self.stopped_ns = time.monotonic_ns()
        if self._machine.running:
            self._stop_times = self._machine.stop()
            self._stopped_wall_ns = time.time_ns()
        if vmm.capabilities.pause_before_switchover:
            self._driver.disarm()
            self._tell_stop()
            vmm.set_status(MigrationStatus.PRE_SWITCHOVER)
            vmm.events.release()
        else:
            self._save()

    def _save(self) -> None:
        self._sections = self._encoder.encode(self._machine.capture())
        self._mark(time.monotonic_ns(), "saved")
        self._driver.feed(Event.SAVED)

    def _send_state(self, _message: Message | None) -> None:
        self._send(
            State(
                sections=self._sections,
                runstate=self._runstate.value,
                epoch=self._machine.state_epoch,
                stopped_ns=self.stopped_ns,
            )
        )
        self._mark(time.monotonic_ns(), "state-sent")
        # While the successor loads there is time to write down what happened.
        self._tell_stop()
        self._vmm.set_status(MigrationStatus.DEVICE)
        self._vmm.emit_pass(2)

    def _tell_stop(self) -> None:
        """Run state, status and events of the stop, once; an event keeps the time it happened."""
        vmm = self._vmm
        if vmm.runstate is RunState.FINISH_MIGRATE:
            return
        vmm.set_runstate(RunState.FINISH_MIGRATE)
        if self._stop_times is not None:
            self._mark(self._stop_times.kicked_ns, "kick")
            self._mark(self._stop_times.vcpus_stopped_ns, "vcpus-stopped")
            vmm.events.emit("STOP", timestamp_ns=self._stopped_wall_ns)
        vmm.emit_pass(1)
        vmm.set_status(MigrationStatus.ACTIVE)

    def _release_lease(self, _message: Message | None) -> None:
        self._machine.parts.lease.release()

    def _send_commit(self, _message: Message | None) -> None:
        self._send(Commit())

    # ---- how it ends ----------------------------------------------------------------------------

    def _complete(self, message: Message | None) -> None:
        """The successor ran: this process can never run the guest again."""
        resumed_ns = message.resumed_ns if isinstance(message, Running) else time.monotonic_ns()
        vmm = self._vmm
        vmm.migration.transferred_bytes = sum(len(section.payload) for section in self._sections)
        vmm.migration.set_downtime(resumed_ns - self.stopped_ns)
        vmm.set_runstate(RunState.POSTMIGRATE)
        vmm.set_status(MigrationStatus.COMPLETED)
        stay_in_background()
        self._finish()

    def _reclaim_lease(self, _message: Message | None) -> None:
        """COMMIT is out and no RUNNING came: ask the kernel and the epoch who owns the guest."""
        machine = self._machine
        try:
            machine.claim()
        except LeaseBusyError:
            self._driver.feed(Event.EPOCH_MOVED if machine.was_overtaken() else Event.LEASE_BUSY)
        except LeaseError:
            self._driver.feed(Event.EPOCH_MOVED)
        else:
            self._driver.feed(Event.RECLAIMED)

    def _send_abort(self, _message: Message | None) -> None:
        if self._channel is None:
            return
        reason = self._driver.reason or "the source gave the update up"
        try:
            self._channel.send(Abort(reason=reason, cancelled=self._cancelled))
        except CprError:
            return  # the peer is gone: there is nobody left to tell

    def _resume_guest(self, _message: Message | None) -> None:
        vmm = self._vmm
        self._tell_stop()
        if self._runstate is RunState.RUNNING:
            self._machine.start()
            self._resumed = True
        if vmm.runstate is RunState.FINISH_MIGRATE:
            vmm.set_runstate(self._runstate)

    def _report(self, _message: Message | None) -> None:
        vmm = self._vmm
        vmm.events.release()
        self._machine.keep_backends()
        if self._cancelled:
            self._emit_resume()
            vmm.set_status(MigrationStatus.CANCELLED)
        else:
            vmm.set_status(MigrationStatus.FAILED, self._driver.reason)
            self._emit_resume()
        self._finish()

    # ---- helpers --------------------------------------------------------------------------------

    def _emit_resume(self) -> None:
        if self._resumed:
            self._vmm.events.emit("RESUME")

    def _finish(self) -> None:
        """Give back everything the update held; never before the guest runs somewhere."""
        end_quiet()
        self._vmm.events.release()
        self.close()

    def _send(self, message: Message, fds: tuple[int, ...] = ()) -> None:
        assert self._channel is not None
        self._channel.send(message, fds)

    def _mark(self, t_ns: int, what: str) -> None:
        self.marks.append((t_ns, what))

    def _unix_path(self) -> str:
        if not isinstance(self._cpr_address, SocketUnix):
            raise MigrationError("bad cpr channel address; must be unix")
        return self._cpr_address.path
