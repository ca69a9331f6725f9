"""When a monitor client's output is sent: once for each turn of the loop, and never too late."""

from __future__ import annotations

import asyncio

from tests.unit.qmp.fakes import FakeVmm
from vmm.qmp.client import MonitorClient, QmpClient
from vmm.qmp.server import MonitorServer


class RecordingTransport(asyncio.Transport):
    """Takes everything at once."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []
        self.ended = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.ended
        self.sent.append(bytes(data))

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.ended

    def close(self) -> None:
        self.ended = True


async def connected() -> tuple[MonitorClient, RecordingTransport]:
    vmm = FakeVmm()
    client, transport = (
        QmpClient(MonitorServer(vmm.config, vmm), pretty=False),
        RecordingTransport(),
    )
    client.connection_made(transport)
    client.data_received(b'{"execute": "qmp_capabilities"}')
    await next_turn()
    transport.sent.clear()
    return client, transport


async def next_turn() -> None:
    turn = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(turn.set_result, None)
    await turn


async def test_what_is_told_in_one_turn_wakes_the_client_once() -> None:
    client, transport = await connected()
    for name in ("STOP", "MIGRATION", "RESUME"):
        client.emit(name, None, 0)
    assert transport.sent == []
    await next_turn()
    (sent,) = transport.sent
    lines = sent.splitlines()
    assert [b"STOP" in lines[0], b"MIGRATION" in lines[1], b"RESUME" in lines[2]] == [True] * 3


async def test_the_last_words_come_before_the_end() -> None:
    client, transport = await connected()
    client.emit("SHUTDOWN", None, 0)
    client.close()
    assert b"SHUTDOWN" in transport.sent[0]
    assert transport.ended
    await next_turn()
    assert len(transport.sent) == 1


async def test_a_client_that_is_gone_is_told_nothing_more() -> None:
    client, transport = await connected()
    client.emit("STOP", None, 0)
    transport.ended = True
    await next_turn()
    client.connection_lost(None)
    client.emit("RESUME", None, 0)
    client.close()
    await next_turn()
    assert transport.sent == []
