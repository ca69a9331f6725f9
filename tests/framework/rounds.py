"""The guests that count rounds: what must hold of their RAM and of what they said."""

from __future__ import annotations

from tests.framework.guest_rig import Rig
from tests.framework.serial_line import SerialLine

PAGE_BYTES = 4096
ROUNDS = 3
BYTE_VALUES = 256


async def goes_on(line: SerialLine) -> None:
    """The guest finishes more rounds, and never started a second time."""
    await line.more(b"B", ROUNDS)
    assert line.received.count(b"A") == 1
    assert set(line.received) == {ord("A"), ord("B")}


async def check_rounds(rig: Rig, counters: list[int]) -> None:
    """Stop the guest: no round was lost or done twice. `counters` are the pages' bytes, re-read.

    The guest adds one to each page in order: the first ones may be one round ahead of the rest. Of
    the rounds of the last one, the latest may not have been said yet, and the 'B' of the one before
    it may wait in the transmitter.
    """
    last = counters[-1]
    ahead = [(counter - last) % BYTE_VALUES for counter in counters]
    assert set(ahead) <= {0, 1}
    assert ahead == sorted(ahead, reverse=True)
    await rig.line.until(
        f"as many 'B's as rounds ({last} modulo {BYTE_VALUES})",
        lambda received: (last - received.count(b"B")) % BYTE_VALUES <= 2,
    )


async def read_counters(rig: Rig, start: int, pages: int, ram_bytes: int) -> list[int]:
    """Stop the guest and read the first byte of each of its pages."""
    await rig.vmm.execute("stop")
    with rig.ram(ram_bytes) as ram:
        return [ram.read(start + PAGE_BYTES * page, 1)[0] for page in range(pages)]
