from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from vmm.events import EventLog

DEADLINE_S = 30.0


class Sink:
    def __init__(self) -> None:
        self.sent: list[tuple[str, Mapping[str, Any] | None, int]] = []
        self.arrived = asyncio.Event()
        self.log = EventLog(self.send, asyncio.get_running_loop())

    def send(self, name: str, data: Mapping[str, Any] | None, timestamp_ns: int) -> None:
        self.sent.append((name, data, timestamp_ns))
        self.arrived.set()

    @property
    def names(self) -> list[str]:
        return [name for name, _data, _time in self.sent]


async def test_event_is_sent_at_once_when_not_held() -> None:
    sink = Sink()
    sink.log.emit("STOP")
    assert sink.names == ["STOP"]


async def test_held_events_keep_their_time_and_order() -> None:
    sink = Sink()
    sink.log.hold()
    sink.log.emit("STOP")
    sink.log.emit("MIGRATION", {"status": "active"})
    assert sink.names == []
    sink.log.release()
    assert sink.names == ["STOP", "MIGRATION"]
    assert sink.sent[1][1] == {"status": "active"}
    assert sink.sent[0][2] <= sink.sent[1][2]
    sink.log.emit("RESUME")
    assert sink.names[-1] == "RESUME"


async def test_hold_ends_by_itself_so_that_a_hung_peer_hides_nothing() -> None:
    sink = Sink()
    sink.log.hold()
    sink.log.hold()
    sink.log.emit("STOP")
    await asyncio.wait_for(sink.arrived.wait(), DEADLINE_S)
    assert sink.names == ["STOP"]


async def test_release_without_hold_does_nothing() -> None:
    sink = Sink()
    sink.log.release()
    assert sink.names == []
