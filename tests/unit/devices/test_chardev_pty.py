"""Pseudo-terminal back-ends."""

from __future__ import annotations

import asyncio
import os

import pytest

from tests.unit.devices.chardev_tools import (
    Frontend,
    duplicates,
    next_turn,
    run,
)
from vmm.config import Chardev, ChardevKind
from vmm.devices.chardev import adopt_chardev, open_chardev
from vmm.devices.chardev_pty import PtyBackend


def test_pty_carries_bytes_both_ways_and_discards_without_a_reader(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async def scenario(loop: asyncio.AbstractEventLoop) -> str:
        config = Chardev("p", ChardevKind.PTY)
        backend = open_chardev(config, loop)
        assert isinstance(backend, PtyBackend)
        frontend = Frontend(room=3)
        backend.attach(frontend)
        backend.start()
        for _ in range(20):
            assert backend.write(b"x" * 1024) == 1024
        terminal = os.open(backend.terminal_path, os.O_RDWR | os.O_NOCTTY)
        os.write(terminal, b"keys\r")
        await frontend.until(lambda: frontend.received == b"key")
        frontend.room = 10
        backend.receive_more()
        await frontend.until(lambda: frontend.received == b"keys\r")
        assert backend.write(b"raw\n") == 4
        assert os.read(terminal, 100) == b"raw\n"
        os.close(terminal)
        assert backend.write(b"gone") == 4
        path = backend.terminal_path
        backend.close()
        return path

    path = run(scenario)
    assert capfd.readouterr().err == f"char device redirected to {path} (label p)\n"


def test_pty_without_a_reader_does_not_keep_the_loop_busy() -> None:
    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        backend = open_chardev(Chardev("p", ChardevKind.PTY), loop)
        assert isinstance(backend, PtyBackend)
        backend.attach(Frontend())
        backend.start()
        os.close(os.open(backend.terminal_path, os.O_RDWR | os.O_NOCTTY))  # come and go: hang-up
        reads = 0
        read_available = backend._read_available

        def counted() -> None:
            nonlocal reads
            reads += 1
            read_available()

        backend._read_available = counted  # type: ignore[method-assign]
        for _ in range(50):
            await next_turn(loop)
        assert reads <= 3
        backend.close()

    run(scenario)


def test_pty_keeps_its_name_and_its_user_over_an_update() -> None:
    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        config = Chardev("p", ChardevKind.PTY)
        old = open_chardev(config, loop)
        assert isinstance(old, PtyBackend)
        terminal = os.open(old.terminal_path, os.O_RDWR | os.O_NOCTTY)
        os.write(terminal, b"typed before")
        new, frontend = adopt_chardev(config, duplicates(old), loop), Frontend()
        assert isinstance(new, PtyBackend)
        assert new.terminal_path == old.terminal_path
        new.attach(frontend)
        old.close()
        new.start()
        await frontend.until(lambda: frontend.received == b"typed before")
        new.write(b"still here")
        assert os.read(terminal, 100) == b"still here"
        os.close(terminal)
        new.close()

    run(scenario)


def test_pty_that_nobody_empties_refuses_and_resumes() -> None:
    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        backend, frontend = open_chardev(Chardev("p", ChardevKind.PTY), loop), Frontend()
        assert isinstance(backend, PtyBackend)
        backend.attach(frontend)
        backend.start()
        terminal = os.open(backend.terminal_path, os.O_RDWR | os.O_NOCTTY)
        sent = 0
        while taken := backend.write(b"z" * 1024):
            sent += taken
        received = 0
        while received < sent:
            received += len(os.read(terminal, 4096))
        await frontend.until(lambda: frontend.writable_calls > 0)
        os.close(terminal)
        backend.close()

    run(scenario)
