"""Replays a trace of the model with real processes, and compares after every step.

The conductor stands between the two of an update: it holds each frame back until the trace
delivers it (in two pieces), cuts one direction or both, kills, lets deadlines pass, and lets each
step of each action happen when the trace says so. A process that the trace does not move hangs.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from cpr.handshake import Event
from cpr.ownedfd import OwnedFd
from guestram.errors import LeaseBusyError
from guestram.layout import PAGE_SIZE_BYTES
from guestram.lease import ControlPage, RunLease
from guestram.memfd import MemfdOptions, RamMemfd
from tools.lab.errors import LabError
from tools.lab.model.explore import label_of
from tools.lab.model.puppet import REPORT_SIZE_MAX_BYTES, Puppet
from tools.lab.model.world import Setup, Step, Who, World

REPORT_TIMEOUT_S = 20.0  # a forked process answers in microseconds; a loaded machine is slow
_FRAME_SIZE_MAX_BYTES = 1 << 16
_GARBAGE = bytes(64)
_LOCAL = {
    Event.START, Event.CANCEL, Event.RETRY, Event.MAIN_SENT, Event.SAVED, Event.RECLAIMED,
    Event.ACCEPTABLE, Event.UNACCEPTABLE, Event.BUILT, Event.MAIN_CHECKED, Event.REHEARSED,
    Event.STATE_LOADED, Event.LEASE_TAKEN, Event.EPOCH_MOVED, Event.LEASE_BUSY,
}  # fmt: skip


class ConformanceError(LabError):
    """A real process did something else than the model."""


@dataclass
class _Side:
    pid: int
    link: socket.socket  # the conductor's end
    control: socket.socket
    death: int  # closed when the peer's death is told
    frames: list[bytes] = field(default_factory=list)  # on their way to this side

    def report(self) -> str:
        return self.control.recv(REPORT_SIZE_MAX_BYTES).decode()

    def order(self, what: str) -> None:
        self.control.send(what.encode())


class Replay:
    """The processes of a setup, made by `begin`; `step` moves them as the model moved."""

    def __init__(self, setup: Setup, rng: random.Random) -> None:
        self._setup = setup
        self._rng = rng
        options = MemfdOptions(size_bytes=PAGE_SIZE_BYTES)
        self._ram = RamMemfd.create("replay", options, name="replay")
        self._page = ControlPage.create()
        self._sides: dict[Who, _Side] = {}

    def begin(self) -> None:
        """Start them; the source holds the lease."""
        for who in Who if self._setup.third else (Who.SOURCE, Who.TARGET):
            self._sides[who] = self._fork(who)
            self._expect(who, "ready")

    def _fork(self, who: Who) -> _Side:
        ours, theirs = socket.socketpair()
        control, controlled = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        death, dies = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                for open_elsewhere in (ours, control):
                    open_elsewhere.close()
                os.close(dies)
                for side in self._sides.values():
                    side.link.close()
                    side.control.close()
                    os.close(side.death)
                fd = OwnedFd(death, "death:peer:0")
                Puppet(
                    self._setup, who, theirs, controlled, fd, self._ram.fileno(), self._page
                ).run()
                status = 0
            finally:
                os._exit(status)
        theirs.close()
        controlled.close()
        os.close(death)
        control.settimeout(REPORT_TIMEOUT_S)
        return _Side(pid, ours, control, dies)

    def close(self) -> None:
        """Kill and reap whoever lives, and release everything."""
        for side in self._sides.values():
            self._kill(side)
            if side.death >= 0:
                os.close(side.death)
            side.link.close()
            side.control.close()
        self._page.close()
        self._ram.close()

    @staticmethod
    def _kill(side: _Side) -> None:
        if side.pid:
            os.kill(side.pid, signal.SIGKILL)
            os.waitpid(side.pid, 0)
            side.pid = 0

    # ---- one step --------------------------------------------------------------------------------

    def step(self, before: World, step: Step) -> None:
        """Do in reality what `step` does in the model. Raises ConformanceError."""
        after = step.world
        if step.who is None:
            for who in (Who.SOURCE, Who.TARGET):
                self._sides[who].frames = self._sides[who].frames[: len(after.to[who])]
        elif step.label == "dies":
            self._kill(self._sides[step.who])
            self._sides[step.who].frames.clear()
        elif step.told is not None:
            self._tell(before, step, step.who, step.told)
        elif before.procs[step.who].todo:
            self._perform(before, step, step.who)
        elif step.label == "closes":
            self._sides[step.who].order("close")
            self._expect(step.who, "done")
            self._sides[step.who].frames.clear()
        self._cut(before, after)

    def _cut(self, before: World, after: World) -> None:
        """Make sending fail where nothing arrives any more; the end of file is told later."""
        for to in (Who.SOURCE, Who.TARGET):
            sender = self._sides[Who(1 - to)]
            if after.cut[to] and not before.cut[to] and sender.pid:
                with contextlib.suppress(OSError):  # its own end is closed already
                    sender.link.shutdown(socket.SHUT_RD)

    def _tell(self, before: World, step: Step, who: Who, event: Event) -> None:
        side, proc = self._sides[who], before.procs[who]
        if not proc.queue:
            if event is Event.DEADLINE:
                side.order("wait")
            elif event is Event.FAILURE:
                side.order("fail")
            elif event in _LOCAL:
                side.order(f"feed {event.name}")
            elif event is Event.PEER_DIED:
                os.close(side.death)
                side.death = -1
            elif event is Event.LOST:
                side.link.shutdown(socket.SHUT_WR)
            elif event is Event.VIOLATION:
                side.link.send(_GARBAGE)
            else:
                self._deliver(side, side.frames.pop(0))
        self._expect(who, f"told {event.name} {step.world.procs[who].phase.name}")

    def _deliver(self, side: _Side, frame: bytes) -> None:
        """A frame in two pieces."""
        middle = self._rng.randrange(len(frame))
        for piece in (frame[:middle], frame[middle:]):
            if piece:
                side.link.send(piece)

    def _perform(self, before: World, step: Step, who: Who) -> None:
        side, proc = self._sides[who], before.procs[who]
        action = proc.todo[0]
        self._expect(who, f"at {action.name}")
        failed = proc.queue != step.world.procs[who].queue and "fails" in step.label
        if failed and not step.label.startswith("sends"):
            side.order("fail")
            return
        if "in vain" in step.label and not (proc.lost or proc.deaf):
            for frame in side.frames:  # what the peer had said is read before its loss is told
                side.link.send(frame)
            side.frames.clear()
        side.order("fail-after" if failed else "go")
        self._expect(who, "done")
        if step.label.startswith("sends") and "in vain" not in step.label:
            self._sides[Who(1 - who)].frames.append(side.link.recv(_FRAME_SIZE_MAX_BYTES))

    def _expect(self, who: Who, what: str) -> None:
        try:
            report = self._sides[who].report()
        except TimeoutError:
            report = "nothing"
        if report != what:
            raise ConformanceError(f"{who.name}: expected '{what}', came '{report or 'its end'}'")

    # ---- the end ---------------------------------------------------------------------------------

    def owners(self) -> list[Who]:
        """Who runs the guest in reality, and holds its lease."""
        found: list[Who] = []
        for who, side in self._sides.items():
            if side.pid:
                side.order("status")
                _phase, held, running = side.report().split()
                if running == "1" and held != "1":
                    raise ConformanceError(f"{who.name} runs the guest without the lease")
                if running == "1":
                    found.append(who)
        return found

    def compare(self, world: World) -> list[Who]:
        """The owner; lease, epoch and owner are those of the model. Raises ConformanceError."""
        with RunLease(self._ram.fileno(), self._page) as lease:
            try:
                lease.acquire()
                free = True
            except LeaseBusyError:
                free = False
        if free != (world.lease is None):
            raise ConformanceError(f"the lease is {'free' if free else 'held'}: {world}")
        if self._page.epoch != world.epoch:
            raise ConformanceError(f"the epoch is {self._page.epoch}: {world}")
        mine = [who for who in self._sides if world.procs[who].running]
        found = self.owners()
        if found != mine:
            raise ConformanceError(f"{found} run the guest: {world}")
        return found


@contextlib.contextmanager
def replaying(setup: Setup, rng: random.Random) -> Iterator[Replay]:
    """Processes that are gone afterwards."""
    replay = Replay(setup, rng)
    try:
        replay.begin()
        yield replay
    finally:
        replay.close()


def conform(setup: Setup, story: Sequence[Step], rng: random.Random) -> list[Who]:
    """Replay one trace; returns who owned the guest in reality at its end.

    Raises ConformanceError, with the story up to the difference.
    """
    world = setup.start()
    told: list[str] = []
    with replaying(setup, rng) as replay:
        try:
            for step in story:
                told.append(label_of(step))
                replay.step(world, step)
                world = step.world
            if any(proc.alive and proc.todo for proc in world.procs):
                return []  # in the middle of an action nobody can be asked
            return replay.compare(world)
        except ConformanceError as error:
            raise ConformanceError("\n  ".join([str(error), *told])) from None


def conform_to_one_owner(setup: Setup, story: Sequence[Step], rng: random.Random) -> None:
    """Replay one trace that is played out. Raises ConformanceError unless one process is owner."""
    found = conform(setup, story, rng)
    if len(found) != 1:
        names = ", ".join(who.name for who in found) or "nobody"
        raise ConformanceError("\n  ".join([f"{names} owns the guest", *map(label_of, story)]))
