"""The monitor server with real sockets: several clients, hostile clients, files, order of events.

`qemu.qmp` is the independent peer: it was not written by us.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import ExecuteError, QMPClient

from tests.unit.qmp.fakes import FakeVmm
from vmm.config import Chardev, ChardevKind, Monitor, MonitorMode, VmmConfig
from vmm.errors import ConfigError, VmmError
from vmm.qmp import client as client_module
from vmm.qmp.client import MAX_UNREAD_BYTES
from vmm.qmp.server import MAX_CLIENTS, MonitorServer

DEADLINE_S = 20.0  # generous: other tests run beside this one

Scenario = Callable[[], Awaitable[None]]


def run(scenario: Scenario) -> None:
    """Run a test's coroutine with the one deadline that all waits share."""

    async def limited() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await scenario()

    asyncio.run(limited())


def config_for(path: Path, *, mode: MonitorMode = MonitorMode.CONTROL) -> VmmConfig:
    chardev = Chardev("qmp0", ChardevKind.SOCKET, path, server=True, wait=False)
    return VmmConfig(name="guest1", chardevs=(chardev,), monitors=(Monitor("qmp0", mode),))


class Lines:
    """A client by hand: raw bytes out, JSON lines in."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, path: Path, *, negotiate: bool = True, oob: bool = False) -> Lines:
        made = cls(*await asyncio.open_unix_connection(str(path)))
        assert "QMP" in await made.receive()
        if negotiate:
            arguments = {"enable": ["oob"]} if oob else {}
            made.send({"execute": "qmp_capabilities", "arguments": arguments})
            assert await made.receive() == {"return": {}}
        return made

    def send(self, message: Any) -> None:
        data = message if isinstance(message, bytes) else json.dumps(message).encode()
        self.writer.write(data)

    async def receive(self) -> Any:
        line = await self.reader.readline()
        if not line:
            raise EOFError
        return json.loads(line)

    async def ask(self, execute: str, **extra: Any) -> Any:
        self.send({"execute": execute, **extra})
        return await self.receive()

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


@asynccontextmanager
async def serving(config: VmmConfig, vmm: FakeVmm | None = None) -> AsyncIterator[MonitorServer]:
    server = MonitorServer(config, vmm or FakeVmm(config))
    try:
        await server.start()
        yield server
    finally:
        await server.close()


def test_the_independent_client_runs_its_dialogue_unchanged(socket_dir: Path) -> None:
    path = socket_dir / "qmp"

    async def scenario() -> None:
        vmm = FakeVmm(config_for(path))
        async with serving(vmm.config, vmm) as server:
            client = QMPClient("test")
            await client.connect(str(path))
            entry = {"capability": "events", "state": True}
            await client.execute("migrate-set-capabilities", {"capabilities": [entry]})
            await client.execute("migrate-set-parameters", {"mode": "cpr-transfer"})
            assert await client.execute("query-migrate") == {}
            with client.listener("MIGRATION") as events:
                server.emit("MIGRATION", {"status": "setup"})
                event = await events.get()
            assert event["data"] == {"status": "setup"}
            with pytest.raises(ExecuteError, match="has not been found"):
                await client.execute("no-such-command")
            assert await client.execute("query-status") == {"status": "running", "running": True}
            await client.disconnect()
        assert vmm.capabilities.events

    run(scenario)


def test_events_caused_by_a_command_precede_its_reply(socket_dir: Path) -> None:
    path = socket_dir / "qmp"

    async def scenario() -> None:
        vmm = FakeVmm(config_for(path))
        async with serving(vmm.config, vmm) as server:
            vmm_stop = vmm.stop

            def stop() -> None:
                vmm_stop()
                server.emit("STOP", timestamp_ns=5_000_001_000)

            vmm.stop = stop  # type: ignore[method-assign]
            client = await Lines.connect(path)
            client.send({"execute": "stop", "id": 1})
            assert await client.receive() == {
                "timestamp": {"seconds": 5, "microseconds": 1},
                "event": "STOP",
            }
            assert await client.receive() == {"return": {}, "id": 1}
            await client.close()

    run(scenario)


def test_events_go_to_every_client_that_has_negotiated(socket_dir: Path) -> None:
    path = socket_dir / "qmp"

    async def scenario() -> None:
        async with serving(config_for(path)) as server:
            first, second = await Lines.connect(path), await Lines.connect(path)
            shy = await Lines.connect(path, negotiate=False)
            server.emit("RESUME")
            assert (await first.receive())["event"] == "RESUME"
            assert (await second.receive())["event"] == "RESUME"
            assert await shy.ask("qmp_capabilities") == {"return": {}}
            for client in (first, second, shy):
                await client.close()

    run(scenario)


def test_commands_of_one_client_keep_their_order_while_others_go_on(socket_dir: Path) -> None:
    path = socket_dir / "qmp"

    async def scenario() -> None:
        vmm = FakeVmm(config_for(path))
        vmm.migrate_gate = asyncio.Event()
        async with serving(vmm.config, vmm):
            busy, other = await Lines.connect(path), await Lines.connect(path)
            busy.send({"execute": "migrate", "arguments": {"uri": "unix:/m"}, "id": 1})
            busy.send({"execute": "query-name", "id": 2})
            assert await other.ask("query-name") == {"return": {"name": "guest1"}}
            vmm.migrate_gate.set()
            assert await busy.receive() == {"return": {}, "id": 1}
            assert await busy.receive() == {"return": {"name": "guest1"}, "id": 2}
            await busy.close()
            await other.close()

    run(scenario)


def test_exec_oob_overtakes_a_command_that_waits(socket_dir: Path) -> None:
    path = socket_dir / "qmp"

    async def scenario() -> None:
        vmm = FakeVmm(config_for(path))
        vmm.migrate_gate = asyncio.Event()
        async with serving(vmm.config, vmm):
            client = await Lines.connect(path, oob=True)
            client.send({"execute": "migrate", "arguments": {"uri": "unix:/m"}, "id": 1})
            client.send({"execute": "query-name", "id": 2})
            client.send({"exec-oob": "migrate-pause", "id": 3})
            assert (await client.receive())["id"] == 3
            vmm.migrate_gate.set()
            assert [(await client.receive())["id"] for _ in range(2)] == [1, 2]
            await client.close()

    run(scenario)


def test_a_full_queue_stops_reading_and_nothing_is_lost(socket_dir: Path) -> None:
    path = socket_dir / "qmp"
    count = 200

    async def scenario() -> None:
        vmm = FakeVmm(config_for(path))
        vmm.migrate_gate = asyncio.Event()
        async with serving(vmm.config, vmm):
            client = await Lines.connect(path)
            client.send({"execute": "migrate", "arguments": {"uri": "unix:/m"}, "id": -1})
            for number in range(count):
                client.send({"execute": "query-name", "id": number})
            await client.writer.drain()
            vmm.migrate_gate.set()
            ids = [(await client.receive())["id"] for _ in range(count + 1)]
            assert ids == [-1, *range(count)]
            await client.close()

    run(scenario)


def test_errors_of_the_vmm_are_generic_errors_and_bugs_do_not_end_it(
    socket_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = socket_dir / "qmp"

    async def scenario() -> None:
        vmm = FakeVmm(config_for(path))
        async with serving(vmm.config, vmm):
            client = await Lines.connect(path)
            vmm.fails = VmmError("Migration is not finalized yet")
            assert (await client.ask("cont"))["error"] == {
                "class": "GenericError",
                "desc": "Migration is not finalized yet",
            }
            vmm.fails = RuntimeError("a bug")
            for name, arguments in (("stop", {}), ("migrate", {"uri": "unix:/m"})):
                reply = await client.ask(name, arguments=arguments)
                assert reply["error"]["desc"].startswith(f"internal error in {name}")
            vmm.fails = None
            assert await client.ask("stop") == {"return": {}}
            await client.close()

    run(scenario)
    assert "RuntimeError: a bug" in capsys.readouterr().err


HOSTILE = [
    pytest.param(b"a" * (100 << 20), id="100 MiB without a newline"),
    pytest.param(b"}" * (1 << 20), id="closing braces only"),
    pytest.param(b"{]" * (1 << 20), id="mistake after mistake"),
    pytest.param(b"[" * (1 << 20), id="nesting without end"),
    pytest.param(b'{"execute":"' + b"x" * (8 << 20), id="a string without end"),
    pytest.param(bytes(range(256)) * 4096, id="all bytes"),
]


@pytest.mark.parametrize("data", HOSTILE)
def test_a_client_that_sends_garbage_disturbs_nobody(socket_dir: Path, data: bytes) -> None:
    path = socket_dir / "qmp"

    async def scenario() -> None:
        async with serving(config_for(path)):
            good = await Lines.connect(path)
            bad = await Lines.connect(path)

            async def flood() -> None:
                try:
                    bad.send(data)
                    await bad.writer.drain()
                except ConnectionError:
                    pass  # it was disconnected, which is right for one that does not read

            flooding = asyncio.ensure_future(flood())
            while not flooding.done():
                assert "return" in await good.ask("query-status")
            await flooding
            assert "return" in await good.ask("query-status")
            bad.writer.transport.abort()
            await good.close()

    run(scenario)


def test_garbage_is_answered_in_place_and_the_client_may_go_on(socket_dir: Path) -> None:
    path = socket_dir / "qmp"

    async def scenario() -> None:
        async with serving(config_for(path)):
            client = await Lines.connect(path)
            client.send(b'{"execute"}\n{"execute":"query-name"}')
            assert "missing :" in (await client.receive())["error"]["desc"]
            assert await client.receive() == {"return": {"name": "guest1"}}
            await client.close()

    run(scenario)


def test_a_client_that_does_not_read_is_disconnected(socket_dir: Path) -> None:
    path = socket_dir / "qmp"

    async def scenario() -> None:
        async with serving(config_for(path)) as server:
            deaf = await Lines.connect(path)
            deaf.reader._transport.pause_reading()  # type: ignore[attr-defined]
            noise = {"text": "x" * 65536}
            sent_bytes = 0
            while server.client_count:
                server.emit("NOISE", noise)
                sent_bytes += 65536
                assert sent_bytes < 16 * MAX_UNREAD_BYTES
                turn = asyncio.get_running_loop().create_future()
                asyncio.get_running_loop().call_soon(turn.set_result, None)
                await turn
            deaf.writer.transport.abort()

    run(scenario)


def test_a_client_that_vanishes_in_the_middle_of_a_command_is_forgotten(
    socket_dir: Path,
) -> None:
    path = socket_dir / "qmp"

    async def scenario() -> None:
        vmm = FakeVmm(config_for(path))
        vmm.migrate_gate = asyncio.Event()
        async with serving(vmm.config, vmm) as server:
            gone = await Lines.connect(path)
            gone.send({"execute": "migrate", "arguments": {"uri": "unix:/m"}})
            gone.send(b'{"execute": "que')
            await gone.writer.drain()
            stays = await Lines.connect(path)
            await stays.ask("query-name")
            (client, *_others) = tuple(server._clients)
            gone.writer.transport.abort()
            await client.closed
            assert server.client_count == 1
            vmm.migrate_gate.set()
            assert await stays.ask("query-name") == {"return": {"name": "guest1"}}
            assert vmm.calls[0][0] == "migrate"
            await stays.close()

    run(scenario)


def test_closing_delivers_what_was_answered_and_ends_commands_that_wait(
    socket_dir: Path,
) -> None:
    path = socket_dir / "qmp"

    async def scenario() -> None:
        vmm = FakeVmm(config_for(path))
        vmm.migrate_gate = asyncio.Event()
        server = MonitorServer(vmm.config, vmm)
        await server.start()
        client = await Lines.connect(path)
        waiting = await Lines.connect(path)
        waiting.send({"execute": "migrate", "arguments": {"uri": "unix:/m"}})
        await waiting.writer.drain()
        assert await client.ask("query-name") == {"return": {"name": "guest1"}}
        client.send({"execute": "quit"})
        assert await client.receive() == {"return": {}}
        server.emit("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"})
        await server.close()
        assert (await client.receive())["event"] == "SHUTDOWN"
        assert await client.reader.read() == b""
        assert vmm.calls == ["quit"]
        await client.close()
        await waiting.close()

    run(scenario)


def test_a_deaf_client_does_not_keep_the_server_from_closing(socket_dir: Path) -> None:
    path = socket_dir / "qmp"

    async def scenario() -> None:
        server = MonitorServer(config_for(path), FakeVmm())
        await server.start()
        deaf = await Lines.connect(path)
        deaf.reader._transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(10):
            server.emit("NOISE", {"text": "x" * 65536})
        await server.close()
        assert server.client_count == 0
        deaf.writer.transport.abort()

    run(scenario)


def test_one_client_too_many_is_turned_away(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = socket_dir / "qmp"
    monkeypatch.setattr("vmm.qmp.server.MAX_CLIENTS", 2)
    assert MAX_CLIENTS > 2

    async def scenario() -> None:
        async with serving(config_for(path)):
            first, second = await Lines.connect(path), await Lines.connect(path)
            reader, writer = await asyncio.open_unix_connection(str(path))
            assert await reader.read() == b""
            writer.close()
            await first.close()
            await second.ask("query-name")
            await second.close()

    run(scenario)


def test_the_socket_file_goes_with_its_process_but_not_a_successors(socket_dir: Path) -> None:
    path = socket_dir / "qmp"

    async def scenario() -> None:
        old = MonitorServer(config_for(path), FakeVmm())
        await old.start()
        held = await Lines.connect(path)
        new = MonitorServer(config_for(path), FakeVmm(VmmConfig(name="successor")))
        await new.start()
        fresh = await Lines.connect(path)
        assert await held.ask("query-name") == {"return": {"name": "guest1"}}
        assert await fresh.ask("query-name") == {"return": {"name": "successor"}}
        await old.close()
        assert path.is_socket()
        await new.close()
        assert not path.exists()
        await held.close()
        await fresh.close()

    run(scenario)


def test_a_socket_file_that_somebody_removed_is_no_problem(socket_dir: Path) -> None:
    path = socket_dir / "qmp"

    async def scenario() -> None:
        async with serving(config_for(path)):
            path.unlink()

    run(scenario)


@pytest.mark.parametrize(
    ("path", "fragment"),
    [
        ("/nonexistent/x", "Failed to bind socket to /nonexistent/x: No such file or directory"),
        ("/" + "x" * 120, "is too long"),
    ],
)
def test_an_unusable_path_is_named(path: str, fragment: str) -> None:
    async def scenario() -> None:
        with pytest.raises(ConfigError, match=fragment):
            async with serving(config_for(Path(path))):
                pass

    run(scenario)


def test_a_file_that_is_no_socket_is_not_removed(socket_dir: Path) -> None:
    path = socket_dir / "precious"
    path.write_text("data")

    async def scenario() -> None:
        with pytest.raises(ConfigError, match="Address already in use"):
            async with serving(config_for(path)):
                pass

    run(scenario)
    assert path.read_text() == "data"


def fd_config(fd: int, *, server: bool = True) -> VmmConfig:
    chardev = Chardev("q", ChardevKind.SOCKET, fd=fd, server=server, wait=False)
    return VmmConfig(
        name="guest1", chardevs=(chardev,), monitors=(Monitor("q", MonitorMode.CONTROL),)
    )


def test_an_inherited_listening_socket_is_adopted_and_its_file_left_alone(
    socket_dir: Path,
) -> None:
    path = socket_dir / "qmp"

    async def scenario() -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        listener.listen()
        reader, writer = await asyncio.open_unix_connection(str(path))  # before anybody serves
        async with serving(fd_config(listener.detach())):
            early = Lines(reader, writer)
            assert "QMP" in await early.receive()
            late = await Lines.connect(path)
            await late.close()
            await early.close()
        assert path.is_socket()

    run(scenario)


def test_an_inherited_connected_socket_is_a_client_at_once() -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        async with serving(fd_config(theirs.detach(), server=False)):
            client = Lines(*await asyncio.open_connection(sock=ours))
            assert "QMP" in await client.receive()
            await client.close()

    run(scenario)


def test_an_fd_that_is_no_socket_is_refused_by_number() -> None:
    async def scenario() -> None:
        read_end, write_end = os.pipe()
        try:
            with pytest.raises(ConfigError, match=f"fd={read_end} is not a socket"):
                async with serving(fd_config(read_end)):
                    pass
        finally:
            os.close(read_end)
            os.close(write_end)

    run(scenario)


def test_with_wait_on_start_up_goes_on_when_the_first_client_is_there(socket_dir: Path) -> None:
    path = socket_dir / "qmp"
    chardev = Chardev("q", ChardevKind.SOCKET, path, server=True, wait=True)
    config = VmmConfig(chardevs=(chardev,), monitors=(Monitor("q", MonitorMode.CONTROL),))

    async def scenario() -> None:
        server = MonitorServer(config, FakeVmm())
        starting = asyncio.ensure_future(server.start())
        turn = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(turn.set_result, None)
        await turn
        assert not starting.done()
        client = await Lines.connect(path)
        await starting
        await client.close()
        await server.close()

    run(scenario)


def test_a_monitor_may_connect_to_somebody_who_listens(socket_dir: Path) -> None:
    path = socket_dir / "orchestrator"
    chardev = Chardev("q", ChardevKind.SOCKET, path)
    config = VmmConfig(chardevs=(chardev,), monitors=(Monitor("q", MonitorMode.CONTROL),))

    async def scenario() -> None:
        with pytest.raises(ConfigError, match=r"Failed to connect to '.*orchestrator'"):
            async with serving(config):
                pass
        greeting: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            greeting.set_result(json.loads(await reader.readline()))
            writer.close()

        listener = await asyncio.start_unix_server(accepted, str(path))
        async with serving(config):
            assert "QMP" in await greeting
        listener.close()
        await listener.wait_closed()

    run(scenario)


@pytest.mark.parametrize("kind", [ChardevKind.FILE, ChardevKind.PTY])
def test_a_monitor_on_something_else_is_refused(kind: ChardevKind) -> None:
    chardev = Chardev("q", kind, Path("x"))
    config = VmmConfig(chardevs=(chardev,), monitors=(Monitor("q", MonitorMode.CONTROL),))

    async def scenario() -> None:
        with pytest.raises(ConfigError, match="a monitor needs a socket or stdio"):
            async with serving(config):
                pass

    run(scenario)


def test_a_monitor_on_null_has_no_clients() -> None:
    chardev = Chardev("q", ChardevKind.NULL)
    config = VmmConfig(chardevs=(chardev,), monitors=(Monitor("q", MonitorMode.CONTROL),))

    async def scenario() -> None:
        async with serving(config) as server:
            assert server.client_count == 0
            server.emit("STOP")

    run(scenario)


def test_the_human_monitor_has_a_prompt_and_bounded_lines(socket_dir: Path) -> None:
    path = socket_dir / "hmp"

    async def scenario() -> None:
        vmm = FakeVmm(config_for(path, mode=MonitorMode.READLINE))
        async with serving(vmm.config, vmm) as server:
            reader, writer = await asyncio.open_unix_connection(str(path))
            banner = await reader.readuntil(b"(qemu) ")
            assert b"monitor - type 'help'" in banner
            server.emit("STOP")  # is not told here
            writer.write(b"info na")
            writer.write(b"me\r\nstop\n")
            assert await reader.readuntil(b"(qemu) ") == b"guest1\r\n(qemu) "
            assert await reader.readuntil(b"(qemu) ") == b"(qemu) "
            assert vmm.calls == ["stop"]
            writer.write(b"x" * (client_module.MAX_HMP_LINE_BYTES + 1))
            assert b"too long" in await reader.readuntil(b"(qemu) ")
            vmm.fails = RuntimeError("a bug")
            writer.write(b"\ncont\n")
            await reader.readuntil(b"(qemu) ")
            assert b"internal error: a bug" in await reader.readuntil(b"(qemu) ")
            writer.close()
            await writer.wait_closed()

    run(scenario)
