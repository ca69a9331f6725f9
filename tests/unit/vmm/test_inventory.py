from __future__ import annotations

import pytest

from cpr.messages import PROTOCOL_MAX, PROTOCOL_MIN, Accept
from vmm.errors import MigrationError
from vmm.update.inventory import chosen_protocol


def accept(protocol: int) -> Accept:
    return Accept(protocol, "cpr-vmm", "9.9.9", deferred=False)


def test_target_chooses_among_the_protocols_that_we_offered() -> None:
    assert chosen_protocol(accept(PROTOCOL_MIN)) == PROTOCOL_MIN


@pytest.mark.parametrize("protocol", [PROTOCOL_MIN - 1, PROTOCOL_MAX + 1, 1 << 40])
def test_target_that_chooses_another_is_told_what_there_is(protocol: int) -> None:
    with pytest.raises(
        MigrationError, match=f"chose protocol {protocol}; this process speaks 1..1"
    ):
        chosen_protocol(accept(protocol))
