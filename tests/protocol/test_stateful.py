"""The same model, walked at random, beside two real Handshake objects."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cpr.handshake import Handshake
from tools.lab.model.explore import ALL_SETUPS
from tools.lab.model.steps import Walker
from tools.lab.model.world import Setup, Who, owners


class TwoProcesses(RuleBasedStateMachine):
    """Each rule is one step of the world; whatever a side is told, its Handshake is told too."""

    @initialize(setup=st.sampled_from(ALL_SETUPS[:2]))
    def begin(self, *, setup: Setup) -> None:
        self.setup = setup
        self.walker = Walker(setup)
        self.world = setup.start()
        self.handshakes = {who: Handshake(who.role) for who in (Who.SOURCE, Who.TARGET)}

    @rule(choice=st.integers(0, 1 << 16))
    def something_happens(self, choice: int) -> None:
        possible = list(self.walker.steps(self.world))
        if not possible:
            return  # the end of this story
        step = possible[choice % len(possible)]
        self.world = step.world
        if step.told is not None:
            assert step.who is not None
            actions = self.handshakes[step.who].receive(step.told)
            assert self.world.procs[step.who].todo == actions

    @invariant()
    def the_handshakes_are_where_the_model_is(self) -> None:
        for who, handshake in self.handshakes.items():
            assert handshake.phase is self.world.procs[who].phase

    @invariant()
    def nobody_shares_the_guest(self) -> None:
        assert len(owners(self.world, paused=self.setup.paused)) <= 1


TestTwoProcesses = TwoProcesses.TestCase
TestTwoProcesses.settings = settings(
    max_examples=60, stateful_step_count=80, deadline=None, derandomize=True
)
