"""What can happen next in the world: a move of a process, or something that breaks.

Bytes: a frame of which any part is missing has not come. So a split frame is a late one, and a cut
leaves any number of whole frames in each direction; one direction may be cut alone (half-close).
"""

from __future__ import annotations

from collections.abc import Iterator

from cpr.handshake import Event, Phase
from cpr.phases import TERMINAL_PHASES
from tools.lab.model.process import check_wait, moves
from tools.lab.model.world import (
    Fault,
    Guard,
    Kind,
    ModelError,
    Move,
    Setup,
    Step,
    View,
    Who,
    World,
    may_have_to_run,
    other,
    owners,
)


class Walker:
    """Gives the steps of worlds of one setup; a process's moves are worked out once per view."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self._moves: dict[tuple[Who, View], tuple[Move, ...]] = {}

    def steps(self, world: World) -> Iterator[Step]:
        """Everything that can happen next. Raises ModelError when that must not be."""
        for number, proc in enumerate(world.procs):
            if proc.alive:
                who = Who(number)
                view = view_of(world, who)
                known = self._moves.get((who, view))
                if known is None:
                    known = tuple(moves(self.setup, who, view))
                    self._moves[who, view] = known
                for move in known:
                    if move.told is Event.LOST:
                        self._check_loss(world, who)
                    yield Step(
                        Who(who), move.label, move.kind, apply(world, who, view, move), move.told
                    )
        yield from self._accidents(world)

    def _check_loss(self, world: World, who: Who) -> None:
        """Who gives an update up says so, with the reason: only what breaks goes without a word."""
        setup = self.setup
        told = world.procs[who].phase in TERMINAL_PHASES | {Phase.RECLAIMING, Phase.UNDECIDED}
        deaf = world.procs[who].deaf  # a word would not have been heard
        if not (told or deaf or world.broken or setup.lies or who is Who.THIRD):
            raise ModelError(f"the peer of {who.name} hung up without a word")

    def _accidents(self, world: World) -> Iterator[Step]:
        for who, proc in enumerate(world.procs):
            uninteresting = proc.closed and not proc.running and world.lease != who
            if Fault.DEATH in self.setup.faults and proc.alive and not uninteresting:
                yield Step(Who(who), "dies", Kind.FAULT, self.crash(world, Who(who)))
        for who in (Who.SOURCE, Who.TARGET) if Fault.CUT in self.setup.faults else ():
            if not world.cut[who] and world.procs[who].alive:
                for kept in range(len(world.to[who]) + 1):
                    broken = _link(world, who, world.to[who][:kept], cut=True)
                    label = f"link to {who.name} cut, {kept} of {len(world.to[who])} messages come"
                    yield Step(
                        None, label, Kind.FAULT, broken._replace(broken=True, disturbed=True)
                    )

    def crash(self, world: World, who: Who) -> World:
        """The process dies: its lease is freed, what it had sent still comes."""
        paused = self.setup.paused
        rest = [one for one in Who if one < len(world.procs) and one is not who]
        excused = world.excused or not any(
            may_have_to_run(world, one, paused=paused) for one in rest
        )
        phase = world.procs[who].phase
        dead = type(world.procs[who])(phase=phase, alive=False, closed=True, lost=True)
        procs = tuple(dead if one == who else proc for one, proc in enumerate(world.procs))
        lease = (
            None
            if world.lease is who and Guard.DEATH_FREES in self.setup.subject.guards
            else world.lease
        )
        world = world._replace(procs=procs, lease=lease, excused=excused)
        return (
            world
            if who is Who.THIRD
            else _hang_up(world, who)._replace(broken=True, disturbed=True)
        )

    def check(self, world: World) -> None:
        """The properties of every world. Raises ModelError."""
        for who in owners(world, paused=self.setup.paused):
            if world.lease is not who:
                raise ModelError(f"{who.name} has the guest without the lease")
        for number, proc in enumerate(world.procs):
            who = Who(number)
            check_wait(self.setup, who, proc)
            if not proc.alive or proc.todo or proc.queue:
                continue
            _check_lease(world, who)
            _check_end(world, who)
        if len(owners(world, paused=self.setup.paused)) > 1:
            raise ModelError("two processes have the guest")


def _check_lease(world: World, who: Who) -> None:
    """The lease agrees with the table."""
    phase = world.procs[who].phase.name
    holds = world.lease is who
    may, must = _LEASE[who.role]
    if holds and phase not in may:
        raise ModelError(f"{who.name} holds the lease in {phase}")
    if not holds and phase in must:
        raise ModelError(f"{who.name} does not hold the lease in {phase}")


_HAS_GUEST = {
    "IDLE", "HELLO_SENT", "FDS_SENT", "CONNECTING", "MAIN_WAIT", "REHEARSING", "REHEARSING_AGAIN",
    "STOPPING", "STATE_SENT", "ABORTED",
}  # fmt: skip
# role -> phases in which the lease may be held between two events, and those in which it must be.
_LEASE = {
    Who.SOURCE.role: (_HAS_GUEST | {"RECLAIMING", "COMMITTED", "UNDECIDED"}, _HAS_GUEST),
    Who.TARGET.role: ({"TAKING", "ORPHANED", "ORPHAN_LAST", "DONE"}, {"DONE"}),
}


def _check_end(world: World, who: Who) -> None:
    """Who is through has told the user once, and in one word with its phase."""
    proc = world.procs[who]
    said = None if proc.said is None else proc.said.name
    expected = {"DONE": "COMPLETE", "ABORTED": "REPORT"}.get(proc.phase.name)
    if said != expected:
        raise ModelError(f"{who.name} is in {proc.phase.name} and told the user {said}")


def view_of(world: World, who: int) -> View:
    """What the process sees."""
    me = world.procs[who]
    if who == Who.THIRD:
        inbox: tuple[()] = ()
        alive = world.procs[Who.SOURCE].alive
        return View(
            me, inbox, True, True, alive, world.lease, world.epoch, world.ran, False, (0, 0)
        )
    peer = 1 - who
    return View(
        me,
        world.to[who],
        world.cut[who],
        world.cut[peer],
        world.procs[peer].alive,
        world.lease,
        world.epoch,
        world.ran,
        world.main_sent,
        world.sent,
    )


def apply(world: World, who: int, before: View, move: Move) -> World:
    """The world after the move."""
    after = move.after
    procs = (*world.procs[:who], after.me, *world.procs[who + 1 :])
    if who == Who.THIRD:
        return world._replace(procs=procs, lease=after.lease, epoch=after.epoch, ran=after.ran)
    to = world.to
    if move.messages or after.inbox is not before.inbox:
        sent = (*to[1 - who], *move.messages)
        to = (after.inbox, sent) if who == 0 else (sent, after.inbox)
    world = World(
        procs, to, world.cut, after.lease, after.epoch, after.ran, after.main_sent, after.sent,
        world.excused, world.broken, world.disturbed or move.disturbs,
    )  # fmt: skip
    if after.me.closed and not before.me.closed:
        return _hang_up(world, Who(who))
    return world


def _hang_up(world: World, who: Who) -> World:
    """Nobody reads at `who` any more, and nothing comes from there after what was sent."""
    peer = other(who)
    return _link(_link(world, who, (), cut=True), peer, world.to[peer], cut=True)


def _link(world: World, to: Who, messages: tuple[Event, ...], *, cut: bool) -> World:
    if to is Who.SOURCE:
        return world._replace(to=(messages, world.to[1]), cut=(cut, world.cut[1]))
    return world._replace(to=(world.to[0], messages), cut=(world.cut[0], cut))
