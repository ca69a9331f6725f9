"""Which cases there are: derived from the handshake table, so that no step is forgotten; pure."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass

from cpr.handshake import TRANSITIONS, Action, Event, Phase, Role
from tools.lab.errors import OptionError
from vmm.update.faults import Fault, FaultPlan, When

# What happens in an update in which nothing goes wrong, in order.
_SUCCESS = {
    Role.SOURCE: (
        Event.START, Event.ACCEPT, Event.LISTENING, Event.MAIN_SENT, Event.CONNECTED,
        Event.PREPARED, Event.PREPARED, Event.SAVED, Event.LOADED, Event.RUNNING,
    ),
    Role.TARGET: (
        Event.HELLO, Event.ACCEPTABLE, Event.FDS, Event.BUILT, Event.MAIN_CHECKED, Event.REHEARSAL,
        Event.REHEARSED, Event.STATE, Event.STATE_LOADED, Event.COMMIT, Event.LEASE_TAKEN,
    ),
}  # fmt: skip

# At every step: the process dies, hangs until after the deadline, hangs for a moment, or loses the
# channel in one of three ways.
_EVERYWHERE = (Fault.KILL, Fault.HANG, Fault.EOF, Fault.HALF_CLOSE, Fault.RESET)
_FRAMES = (Fault.SHORT, Fault.FLIP, Fault.DUPLICATE)


@dataclass(frozen=True, slots=True)
class Case:
    """One fault in one update; `wakes` says that a hung process goes on before anybody gives up."""

    plan: FaultPlan
    wakes: bool = False

    @property
    def name(self) -> str:
        """ROLE/WHEN/ACTION/FAULT, which is also how it is asked for."""
        role, when, action = self.plan.role.value, self.plan.when.value, self.plan.action.name
        return f"{role}/{when}/{action}/{self.fault}"

    @property
    def fault(self) -> str:
        """The last part of the name."""
        return "pause" if self.wakes else self.plan.fault.value


def successful_actions(role: Role) -> tuple[Action, ...]:
    """Every action of an update without a fault, each once, in order of the table."""
    phase, actions = Phase.IDLE, dict[Action, None]()
    for event in _SUCCESS[role]:
        transition = TRANSITIONS[role][phase][event]
        actions.update(dict.fromkeys(transition.actions))
        phase = transition.next
    assert phase is Phase.DONE, phase
    return tuple(actions)


def all_cases() -> tuple[Case, ...]:
    """The whole matrix."""
    cases: list[Case] = []
    for role in Role:
        for action in successful_actions(role):
            for when in When:
                cases += _at(role, when, action)
            before = FaultPlan(role, When.BEFORE, action, Fault.FLIP)
            if before.sends_frame:
                cases += [Case(FaultPlan(role, When.BEFORE, action, fault)) for fault in _FRAMES]
    cases += [
        Case(FaultPlan(Role.SOURCE, When.BEFORE, Action.SEND_FDS, fault))
        for fault in (Fault.FD_MISSING, Fault.FD_WRONG)
    ]
    lacking = (
        (Role.SOURCE, When.BEFORE, Action.SEND_HELLO),
        (Role.SOURCE, When.BEFORE, Action.CONNECT_MAIN),
        (Role.SOURCE, When.BEFORE, Action.REHEARSE),
        (Role.SOURCE, When.BEFORE, Action.STOP_GUEST),
        (Role.TARGET, When.AFTER, Action.SEND_ACCEPT),
        (Role.TARGET, When.BEFORE, Action.BUILD),
        (Role.TARGET, When.BEFORE, Action.LOAD_REHEARSAL),
        (Role.TARGET, When.BEFORE, Action.LOAD_STATE),
    )
    cases += [
        Case(FaultPlan(*step, fault))
        for step in lacking
        for fault in (Fault.NO_FDS, Fault.NO_MEMORY)
    ]
    return tuple(cases)


def _at(role: Role, when: When, action: Action) -> list[Case]:
    cases = [Case(FaultPlan(role, when, action, fault)) for fault in _EVERYWHERE]
    return [*cases, Case(FaultPlan(role, when, action, Fault.HANG), wakes=True)]


def chosen_cases(text: str) -> tuple[Case, ...]:
    """`all`, or names and shell patterns with commas: `target/*/LOAD_STATE/*,*/kill`.

    Raises OptionError for a pattern that fits nothing.
    """
    cases = all_cases()
    if text == "all":
        return cases
    chosen: dict[Case, None] = {}
    for pattern in text.split(","):
        fitting = [case for case in cases if fnmatch.fnmatchcase(case.name, pattern)]
        if not fitting:
            raise OptionError(
                f"--faults {pattern}: no such case; 'cpr-drill --faults list' names all "
                f"{len(cases)}"
            )
        chosen.update(dict.fromkeys(fitting))
    return tuple(chosen)
