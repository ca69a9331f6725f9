"""The new side's story: check, adopt, build, rehearse, load, take the lease, run.

The mirror of `vmm.update.source`; again `cpr.handshake` decides and this file does. Everything slow
is in `_build`, while the guest still runs in the old process. From `_load_state` to `_send_running`
is our half of the blackout.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from cpr.channel import Channel
from cpr.driver import Driver
from cpr.errors import CprError
from cpr.handshake import Action, Event, Handshake, Phase, Role
from cpr.messages import (
    Accept,
    Connected,
    Failed,
    Hello,
    Listening,
    Loaded,
    Message,
    Prepared,
    Refuse,
    Rehearsal,
    Running,
    State,
)
from guestram.errors import LeaseBusyError, LeaseError, RamError
from vmm.boot.plan import BootPlan
from vmm.build import adopt, section_types
from vmm.chassis import Chassis
from vmm.config import IncomingConfig, MigrationAddress
from vmm.errors import ConfigError, MigrationError, VmmError
from vmm.machine import EntryTime, Machine, VerifiedState
from vmm.migration.status import MigrationStatus
from vmm.migration.transport import Listener, receive_main_header
from vmm.runstate import RunState
from vmm.update.faults import injector_of
from vmm.update.inventory import CPUID, agreed_protocol, hello_problems, main_header_problem
from vmm.update.quiet import begin_quiet, end_quiet
from vmm.version import PRODUCT, VERSION

if TYPE_CHECKING:
    from vmm.process import Vmm


class TargetUpdate:
    """One incoming update: from listening on the cpr address to a running guest, or a reason."""

    def __init__(
        self, vmm: Vmm, chassis: Chassis, boot_plan: BootPlan, incoming: IncomingConfig
    ) -> None:
        main, cpr = incoming.main, incoming.cpr
        if cpr is None:
            raise ConfigError(
                "-incoming: this VMM receives cpr-transfer only; add a cpr channel, for example "
                "-incoming cpr,addr.transport=socket,addr.type=unix,addr.path=PATH"
            )
        self._vmm = vmm
        self._chassis = chassis
        self._boot_plan = boot_plan
        self._loop = asyncio.get_running_loop()
        self._cpr_listener = Listener.open(cpr)
        self._main_address: asyncio.Future[MigrationAddress] = self._loop.create_future()
        self._deferred = main is None
        if main is not None:
            self._main_address.set_result(main)
        self._main_listener: Listener | None = None
        self._driver = Driver(Handshake(Role.TARGET), self.perform, vmm.deadlines(), self._loop)
        self._channel: Channel | None = None
        self._hello: Hello | None = None
        self._refusals: tuple[str, ...] = ()
        self._runstate = RunState.RUNNING
        self._rehearsed = False
        self._verified: tuple[VerifiedState, int] | None = None
        self._resumed_ns = 0
        self._resumed_wall_ns = 0
        self.exit_on_error = True
        self.marks: list[tuple[int, str]] = []
        self._actions: Mapping[Action, Callable[[Message | None], None]] = {
            Action.CHECK_HELLO: self._check_hello,
            Action.SEND_ACCEPT: self._send_accept,
            Action.SEND_REFUSE: self._send_refuse,
            Action.BUILD: self._do_build,
            Action.SEND_LISTENING: self._send_listening,
            Action.SEND_CONNECTED: self._send_connected,
            Action.LOAD_REHEARSAL: self._load_rehearsal,
            Action.SEND_PREPARED: self._send_prepared,
            Action.LOAD_STATE: self._load_state,
            Action.SEND_LOADED: self._send_loaded,
            Action.TAKE_LEASE: self._take_lease,
            Action.RUN_GUEST: self._run_guest,
            Action.SEND_RUNNING: self._send_running,
            Action.COMPLETE: self._complete,
            Action.SEND_FAILED: self._send_failed,
            Action.REPORT: self._report,
        }

    @property
    def timeline(self) -> list[tuple[int, str]]:
        """(CLOCK_MONOTONIC ns, what) of every step so far, in order."""
        steps = [
            (t_ns, f"{event.name}->{phase.name}") for t_ns, event, phase in self._driver.record
        ]
        return sorted(steps + self.marks)

    @property
    def main_given(self) -> bool:
        """Whether the main address is known (by -incoming or by migrate-incoming)."""
        return self._main_address.done()

    def start(self) -> None:
        """Begin to wait for the old process."""
        self._vmm.spawn(self._accept(), "accept the source on the cpr channel")

    def set_main_address(self, address: MigrationAddress) -> None:
        """`migrate-incoming`: where to listen for the main channel.

        Raises MigrationError when the address cannot be listened on.
        """
        self._listen(address)
        self._main_address.set_result(address)

    def _listen(self, address: MigrationAddress) -> Listener:
        self._main_listener = Listener.open(address)
        self._vmm.migration.socket_addresses = (address,)
        self._vmm.set_status(MigrationStatus.SETUP)
        return self._main_listener

    def retry(self) -> str | None:
        """Ask the kernel again who owns the guest (undecided updates only).

        Returns why the guest cannot run here, or None when there was nothing to ask.
        """
        if self._driver.handshake.phase is not Phase.UNDECIDED:
            return None
        self._driver.feed(Event.RETRY)
        return None if self._driver.handshake.finished else self._driver.reason

    def close(self) -> None:
        """Release listeners and the channel."""
        self._driver.close()
        self._cpr_listener.close()
        if self._main_listener is not None:
            self._main_listener.close()

    def perform(self, action: Action, message: Message | None) -> None:
        """Do one action of the handshake table."""
        self._actions[action](message)

    # ---- while the guest runs in the old process -------------------------------------------------

    async def _accept(self) -> None:
        try:
            sock = await self._cpr_listener.accept()
        except OSError as error:
            reason = f"the source cannot be accepted: {error.strerror}"
            self._vmm.incoming_failed(reason, exit_on_error=self.exit_on_error)
            return
        self._cpr_listener.close()  # one update at a time: nobody else gets in
        self._channel = Channel(sock, self._loop, allowed_uids=self._vmm.parameters.allowed_uids())
        self._driver.deadlines = self._vmm.deadlines()  # the user may have changed them
        self._driver.steps = injector_of(self._vmm.parameters.take_fault(Role.TARGET))
        self._driver.attach(self._channel)

    def _check_hello(self, message: Message | None) -> None:
        assert isinstance(message, Hello)
        begin_quiet()
        self._hello = message
        config, chassis = self._vmm.config, self._chassis
        self._refusals = (
            *hello_problems(message, config, section_types(chassis)),
            *chassis.cpu_problems(message.machine.get(CPUID)),
        )
        self._driver.feed(Event.UNACCEPTABLE if self._refusals else Event.ACCEPTABLE)

    def _send_accept(self, _message: Message | None) -> None:
        assert self._hello is not None
        assert self._channel is not None
        protocol = self._channel.protocol = agreed_protocol(self._hello)
        self._send(
            Accept(
                protocol=protocol,
                product=PRODUCT,
                product_version=VERSION,
                deferred=self._deferred,
            )
        )

    def _send_refuse(self, _message: Message | None) -> None:
        self._driver.reason = "; ".join(self._refusals)
        self._send(Refuse(reasons=self._refusals))

    def _do_build(self, _message: Message | None) -> None:
        self._vmm.spawn(self._build(), "build the machine")

    async def _build(self) -> None:
        """Adopt, map, prefault, create devices, and listen on main."""
        try:
            assert self._hello is not None
            fds = self._driver.received_fds
            self._vmm.take_machine(await adopt(self._chassis, self._boot_plan, fds, self._hello))
            leftover = fds.close_unclaimed()
            if leftover:
                raise MigrationError(f"received fd(s) {', '.join(leftover)} were never claimed")
            address = await self._main_address
            listener = self._main_listener or self._listen(address)
        except (CprError, VmmError, RamError, OSError) as error:
            self._driver.fail(str(error))
            return
        if self._driver.handshake.phase is not Phase.BUILDING:
            return  # the update ended while we built
        self._vmm.spawn(self._accept_main(listener), "accept the main channel")
        self._driver.feed(Event.BUILT)

    async def _accept_main(self, listener: Listener) -> None:
        assert self._hello is not None
        try:
            with await listener.accept() as sock:
                self._vmm.set_status(MigrationStatus.ACTIVE)
                header = await receive_main_header(sock, self._vmm.deadlines().main_ms)
            problem = main_header_problem(header, self._vmm.config, self._hello.nonce)
            if problem is not None:
                raise MigrationError(problem)
        except (CprError, VmmError, OSError) as error:
            self._driver.fail(str(error))
            return
        finally:
            listener.close()
        if self._driver.handshake.phase is Phase.LISTENING:
            self._driver.feed(Event.MAIN_CHECKED)

    def _load_rehearsal(self, message: Message | None) -> None:
        assert isinstance(message, Rehearsal)
        machine = self._machine
        if not self._rehearsed:
            self._vmm.background.leave()
            self._vmm.placement.begin(machine.parts.chassis.threads.ids)
            machine.rehearse()
            self._rehearsed = True
        machine.load(message.sections, epoch=machine.state_epoch)
        self._driver.feed(Event.REHEARSED)

    def _send_prepared(self, _message: Message | None) -> None:
        assert self._hello is not None
        if self._hello.user_paced:
            self._driver.disarm()
        self._send(Prepared())

    # ---- the blackout ---------------------------------------------------------------------------

    def _load_state(self, message: Message | None) -> None:
        assert isinstance(message, State)
        self._vmm.events.hold()
        self._mark("state-received")
        self._runstate = RunState(message.runstate)
        self._verified = (self._machine.verify(message.sections), message.epoch)
        self._mark("verified")
        self._driver.feed(Event.STATE_LOADED)

    def _apply(self) -> None:
        """Put the verified state into CPUs and devices; the second call finds nothing to do."""
        if self._verified is not None:
            self._machine.apply(*self._verified)
            self._verified = None  # not before: what failed half-way is done again, whole
            self._mark("loaded")

    def _take_lease(self, _message: Message | None) -> None:
        self._apply()  # a source that is gone got no LOADED
        try:
            self._machine.claim()
        except LeaseBusyError:
            self._driver.reason = "the source holds the run lease of the guest"
            moved = self._machine.was_overtaken()
            self._driver.feed(Event.EPOCH_MOVED if moved else Event.LEASE_BUSY)
        except LeaseError as error:
            self._driver.reason = str(error)
            self._driver.feed(Event.EPOCH_MOVED)
        else:
            self._driver.feed(Event.LEASE_TAKEN)

    def _run_guest(self, _message: Message | None) -> None:
        if self._runstate is RunState.RUNNING and self._vmm.autostart:
            try:
                entered = self._machine.start()
            except Exception as error:
                # Our death frees the lease: with the epoch not moved the source takes it back.
                self._vmm.finish_with(error)
                raise
        else:
            entered = EntryTime.now()
        self._resumed_ns, self._resumed_wall_ns = entered.monotonic_ns, entered.wall_ns
        self.marks.append((self._resumed_ns, "running"))

    def _send_running(self, _message: Message | None) -> None:
        runstate = RunState.RUNNING if self._machine.running else RunState.PAUSED
        try:
            self._send(Running(resumed_ns=self._resumed_ns, runstate=runstate.value))
        except CprError:
            return  # the source is gone; the guest runs here, and the epoch tells anybody who asks

    # ---- how it ends ----------------------------------------------------------------------------

    def _complete(self, _message: Message | None) -> None:
        vmm = self._vmm
        if self._machine.running:
            vmm.set_runstate(RunState.RUNNING)
            vmm.events.emit("RESUME", timestamp_ns=self._resumed_wall_ns)
        elif self._runstate is RunState.RUNNING:
            vmm.set_runstate(RunState.PAUSED)
        else:
            vmm.set_runstate(self._runstate)
        vmm.set_status(MigrationStatus.COMPLETED)
        self._finish()

    def _send_failed(self, _message: Message | None) -> None:
        with contextlib.suppress(CprError):  # a source that is gone needs no reason
            self._send(Failed(reason=self._driver.reason))

    def _report(self, _message: Message | None) -> None:
        self._finish()
        self._vmm.incoming_failed(self._driver.reason, exit_on_error=self.exit_on_error)

    # ---- helpers --------------------------------------------------------------------------------

    @property
    def _machine(self) -> Machine:
        assert self._vmm.machine is not None
        return self._vmm.machine

    def _finish(self) -> None:
        end_quiet()
        self._vmm.placement.end_soon()
        self._vmm.events.release()
        self.close()

    def _send(self, message: Message) -> None:
        assert self._channel is not None
        self._channel.send(message)

    def _mark(self, what: str) -> None:
        self.marks.append((time.monotonic_ns(), what))

    def _send_listening(self, _message: Message | None) -> None:
        self._send(Listening())

    def _send_connected(self, _message: Message | None) -> None:
        self._send(Connected())

    def _send_loaded(self, _message: Message | None) -> None:
        """Say it as soon as it is certain: the registers are set while the word travels.

        What could still fail has been done twice in the rehearsals; it would be told as FAILED, and
        the source takes the lease back.
        """
        self._send(Loaded())
        self._apply()
