"""States that no device can have are refused when they are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from vmm.devices.virtio.net_state import FRAME_SIZE_MAX_BYTES, NetState, RxFilter
from vmm.devices.virtio.virtio_state import QueueState, TransportState

QUEUE = QueueState.disabled(256)
TRANSPORT = TransportState.power_on((256,))
NET = NetState(
    transport=TRANSPORT,
    mac=bytes(6),
    link_up=True,
    announce_pending=False,
    rx_filter=RxFilter(),
    held_frame=b"",
)

IMPOSSIBLE: dict[str, Callable[[], object]] = {
    "queue too large": lambda: replace(QUEUE, size=0x8001),
    "ready queue of an odd size": lambda: replace(QUEUE, size=7, ready=True),
    "negative index": lambda: replace(QUEUE, next_avail=-1),
    "index of 17 bits": lambda: replace(QUEUE, next_used=0x1_0000),
    "status bit that does not exist": lambda: replace(TRANSPORT, status=0x10),
    "interrupt cause that does not exist": lambda: replace(TRANSPORT, interrupt_status=4),
    "short MAC": lambda: replace(NET, mac=bytes(5)),
    "held frame too long": lambda: replace(NET, held_frame=bytes(FRAME_SIZE_MAX_BYTES + 1)),
    "short MAC in the table": lambda: RxFilter(unicast=(bytes(5),)),
    "too many MACs": lambda: RxFilter(multicast=(bytes(6),) * 65),
}


@pytest.mark.parametrize("make", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_impossible_state_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"expected|power of two"):
        make()


@pytest.mark.parametrize(
    ("changes", "broadcast", "group", "other", "own"),
    [
        ({}, True, False, False, True),
        ({"all_multicast": True}, True, True, False, True),
        ({"all_unicast": True}, True, False, True, True),
        ({"no_broadcast": True}, False, False, False, True),
        ({"no_unicast": True, "all_unicast": True}, True, False, False, False),
        ({"no_multicast": True, "all_multicast": True}, True, False, False, True),
    ],
)
def test_filter_modes_decide_by_class_of_address(
    changes: dict[str, bool], broadcast: bool, group: bool, other: bool, own: bool
) -> None:
    wanted = replace(RxFilter(promiscuous=False), **changes)  # type: ignore[arg-type] # only bools
    mine = bytes.fromhex("525400123456")
    answers = [
        wanted.accepts(bytes.fromhex(mac), mine)
        for mac in ("ffffffffffff", "01005e000001", "525400999999", "525400123456")
    ]
    assert answers == [broadcast, group, other, own]
