"""The same model, walked at random and deeper, beside two real Handshake objects."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cpr.handshake import Handshake, Role
from tests.protocol.model import initial, owners, side_of, steps


class TwoProcesses(RuleBasedStateMachine):
    """Each rule is one step of the world; whatever a side is told, its Handshake is told too."""

    @initialize(faults=st.integers(0, 8), paused=st.booleans())
    def begin(self, *, faults: int, paused: bool) -> None:
        self.world = initial(faults=faults, paused=paused)
        self.handshakes = {role: Handshake(role) for role in Role}

    @rule(choice=st.integers(0, 1 << 16))
    def something_happens(self, choice: int) -> None:
        possible = list(steps(self.world))
        if not possible:
            return  # the end of this story
        step = possible[choice % len(possible)]
        before, self.world = self.world, step.world
        if step.told is not None:
            role, event = step.told
            actions = self.handshakes[role].receive(event)
            assert side_of(self.world, role).todo[len(side_of(before, role).todo) :] == actions

    @invariant()
    def the_handshakes_are_where_the_model_is(self) -> None:
        for role, handshake in self.handshakes.items():
            assert handshake.phase is side_of(self.world, role).phase

    @invariant()
    def nobody_shares_the_guest(self) -> None:
        assert len(owners(self.world)) <= 1


TestTwoProcesses = TwoProcesses.TestCase
TestTwoProcesses.settings = settings(
    max_examples=60, stateful_step_count=80, deadline=None, derandomize=True
)
