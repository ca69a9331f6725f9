"""Socket back-ends: real unix sockets, real clients."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from functools import partial
from pathlib import Path

import pytest

from tests.unit.devices.chardev_tools import (
    Frontend,
    connect,
    duplicates,
    hang_up,
    next_turn,
    received_count,
    run,
    socket_config,
)
from vmm.config import Chardev, ChardevKind
from vmm.devices.chardev import adopt_chardev, open_chardev
from vmm.errors import DeviceError


def test_socket_server_carries_bytes_both_ways(socket_dir: Path) -> None:
    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        config = socket_config(socket_dir, wait=True)
        backend = open_chardev(config, loop)
        frontend = Frontend()
        backend.attach(frontend)
        assert config.path is not None
        reader, writer = await connect(config.path)
        await backend.wait_connected()
        backend.start()
        assert backend.write(b"from guest") == 10
        assert await reader.readexactly(10) == b"from guest"
        writer.write(b"to guest")
        await frontend.until(lambda: frontend.received == b"to guest")
        await hang_up(writer)
        backend.close()
        assert not config.path.exists()

    run(scenario)


def test_client_that_vanishes_is_replaced_and_output_between_is_discarded(socket_dir: Path) -> None:
    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        config = socket_config(socket_dir)
        backend = open_chardev(config, loop)
        frontend = Frontend()
        backend.attach(frontend)
        backend.start()
        assert backend.write(b"nobody there") == 12
        assert config.path is not None
        for count in (1, 2):
            reader, writer = await connect(config.path)
            writer.write(b"!")
            await frontend.until(partial(received_count, frontend, count))
            assert backend.write(b"hello") == 5
            assert await reader.readexactly(5) == b"hello"
            await hang_up(writer)
            assert backend.write(b"gone") == 4
        backend.close()

    run(scenario)


def test_nothing_is_read_beyond_the_front_ends_room_nor_while_stopped(socket_dir: Path) -> None:
    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        config = socket_config(socket_dir)
        backend = open_chardev(config, loop)
        frontend = Frontend(room=4)
        backend.attach(frontend)
        backend.start()
        assert config.path is not None
        _, writer = await connect(config.path)
        writer.write(b"0123456789")
        await frontend.until(lambda: frontend.received == b"0123")
        for _ in range(5):
            await next_turn(loop)
        assert frontend.received == b"0123"
        frontend.room = 3
        backend.receive_more()
        await frontend.until(lambda: frontend.received == b"0123456")
        backend.stop()
        frontend.room = 100
        backend.receive_more()
        for _ in range(5):
            await next_turn(loop)
        assert frontend.received == b"0123456"
        backend.start()
        await frontend.until(lambda: frontend.received == b"0123456789")
        await hang_up(writer)
        backend.close()

    run(scenario)


def test_slow_client_refuses_bytes_and_loses_none(socket_dir: Path) -> None:
    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        config = socket_config(socket_dir)
        backend = open_chardev(config, loop)
        frontend = Frontend()
        backend.attach(frontend)
        backend.start()
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(config.path))
        client.setblocking(False)
        client.send(b"!")
        await frontend.until(lambda: frontend.received == b"!")
        sent = 0
        while taken := backend.write(b"y" * 4096):
            sent += taken
        received = 0
        while received < sent:
            received += len(await loop.sock_recv(client, 1 << 16))
        await frontend.until(lambda: frontend.writable_calls > 0)
        assert backend.write(b"z") == 1
        assert await loop.sock_recv(client, 10) == b"z"
        client.close()
        backend.close()

    run(scenario)


def test_client_notices_nothing_of_an_update(socket_dir: Path) -> None:
    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        config = socket_config(socket_dir)
        assert config.path is not None
        old, old_front = open_chardev(config, loop), Frontend()
        old.attach(old_front)
        old.start()
        reader, writer = await connect(config.path)
        writer.write(b"A")
        await old_front.until(lambda: old_front.received == b"A")
        assert [(fd.number, fd.kind) for fd in old.fds()] == [(0, "socket-listener"), (1, "socket")]
        old.hold_fds()
        new, new_front = adopt_chardev(config, duplicates(old), loop), Frontend()
        new.attach(new_front)
        old.stop()
        writer.write(b"B")
        second_reader, second = await connect(config.path)
        new.start()
        await new_front.until(lambda: new_front.received == b"B")
        new.write(b"from new")
        assert await reader.readexactly(8) == b"from new"
        old.close()
        assert config.path.exists()
        await hang_up(writer)
        second.write(b"C")
        await new_front.until(lambda: new_front.received == b"BC")
        new.write(b"again")
        assert await second_reader.readexactly(5) == b"again"
        await hang_up(second)
        new.close()
        assert not config.path.exists()

    run(scenario)


def test_update_that_fails_leaves_the_old_side_serving(socket_dir: Path) -> None:
    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        config = socket_config(socket_dir)
        assert config.path is not None
        old, front = open_chardev(config, loop), Frontend()
        old.attach(front)
        old.start()
        _, first = await connect(config.path)
        first.write(b"1")
        await front.until(lambda: front.received == b"1")
        old.hold_fds()
        new = adopt_chardev(config, duplicates(old), loop)
        await hang_up(first)
        for _ in range(5):
            await next_turn(loop)
        assert len(old.fds()) == 2
        new.close()
        assert config.path.exists()
        old.release_fds()
        _, second = await connect(config.path)
        second.write(b"2")
        await front.until(lambda: front.received == b"12")
        await hang_up(second)
        old.close()

    run(scenario)


def test_socket_client_connects_and_its_connection_is_passed_on(socket_dir: Path) -> None:
    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        config = socket_config(socket_dir, server=False)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(config.path))
        listener.listen()
        old = open_chardev(config, loop)
        peer, _ = listener.accept()
        assert [(fd.number, fd.kind) for fd in old.fds()] == [(0, "socket")]
        new = adopt_chardev(config, duplicates(old), loop)
        old.close()
        new.start()
        new.write(b"hi")
        assert peer.recv(2) == b"hi"
        new.close()
        assert peer.recv(1) == b""
        peer.close()
        listener.close()
        assert config.path is not None
        assert config.path.exists()

    run(scenario)


def test_inherited_listening_socket_is_used_and_a_wrong_one_refused(socket_dir: Path) -> None:
    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        path = socket_dir / "inherited"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        fd = os.dup(listener.fileno())
        config = Chardev("c", ChardevKind.SOCKET, fd=fd, server=True, wait=False)
        backend, frontend = open_chardev(config, loop), Frontend()
        backend.attach(frontend)
        backend.start()
        _, writer = await connect(path)
        writer.write(b"x")
        await frontend.until(lambda: frontend.received == b"x")
        await hang_up(writer)
        backend.close()
        assert path.exists()
        wrong = Chardev("c", ChardevKind.SOCKET, fd=listener.fileno())
        with pytest.raises(DeviceError, match="expected a connected unix stream socket"):
            open_chardev(wrong, loop)
        listener.close()

    run(scenario)


def test_socket_errors_have_qemus_texts(socket_dir: Path) -> None:
    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        with pytest.raises(DeviceError, match=r"Failed to connect to '.*': No such file"):
            open_chardev(socket_config(socket_dir, server=False), loop)
        too_long = Chardev("c", ChardevKind.SOCKET, path=socket_dir / ("x" * 200), server=True)
        with pytest.raises(DeviceError, match=r"Failed to bind socket to .*too long"):
            open_chardev(too_long, loop)
        with pytest.raises(DeviceError, match="one of 'path' and 'fd' must be given"):
            open_chardev(Chardev("c", ChardevKind.SOCKET, server=True), loop)

    run(scenario)


def test_socket_file_of_a_later_process_is_left_alone(socket_dir: Path) -> None:
    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        config = socket_config(socket_dir)
        first = open_chardev(config, loop)
        second = open_chardev(config, loop)
        first.close()
        assert config.path is not None
        assert stat.S_ISSOCK(config.path.stat().st_mode)
        second.close()
        assert not config.path.exists()

    run(scenario)
