"""Character back-ends on real files, pipes and terminals, and what all kinds share."""

from __future__ import annotations

import asyncio
import os
import pty
import termios
from pathlib import Path

import pytest

from tests.unit.devices.chardev_tools import (
    Frontend,
    duplicates,
    next_turn,
    open_fds,
    run,
    socket_config,
)
from vmm.config import Chardev, ChardevKind
from vmm.devices.chardev import adopt_chardev, open_chardev
from vmm.devices.chardev_basic import StdioBackend
from vmm.errors import DeviceError

# ---- all kinds


@pytest.mark.parametrize("kind", [ChardevKind.NULL, ChardevKind.FILE, ChardevKind.PTY])
def test_a_back_end_serves_one_front_end(socket_dir: Path, kind: ChardevKind) -> None:
    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        backend = open_chardev(Chardev("c0", kind, path=socket_dir / "out"), loop)
        backend.attach(Frontend())
        with pytest.raises(DeviceError, match="chardev 'c0' is already in use"):
            backend.attach(Frontend())
        await backend.wait_connected()
        backend.close()
        backend.close()

    run(scenario)


def test_null_accepts_everything_and_has_nothing_to_pass() -> None:
    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        backend = open_chardev(Chardev("n", ChardevKind.NULL), loop)
        assert backend.write(b"lost") == 4
        assert backend.fds() == ()
        backend.hold_fds()
        backend.release_fds()
        adopt_chardev(Chardev("n", ChardevKind.NULL), {}, loop).close()

    run(scenario)


@pytest.mark.parametrize(
    ("config", "numbers", "message"),
    [
        (Chardev("c", ChardevKind.NULL), [0], r"index \[0\] came but are not expected"),
        (Chardev("c", ChardevKind.STDIO), [0], r"index \[0\] came but are not expected"),
        (Chardev("c", ChardevKind.FILE), [], r"index \[0\] did not come"),
        (Chardev("c", ChardevKind.FILE), [0, 1], r"index \[1\] came but are not expected"),
        (Chardev("c", ChardevKind.PTY), [], r"index \[0\] did not come"),
        (Chardev("c", ChardevKind.PTY), [0], "not the master of a pseudo-terminal"),
        (Chardev("c", ChardevKind.SOCKET, server=True), [1], r"index \[0\] did not come"),
        (Chardev("c", ChardevKind.SOCKET), [1], r"index \[1\] came but are not expected"),
        (Chardev("c", ChardevKind.SOCKET, server=True), [0], "is not a socket"),
    ],
)
def test_adopting_wrong_fds_is_refused_and_closes_them(
    config: Chardev, numbers: list[int], message: str
) -> None:
    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        fds = {number: os.open("/dev/null", os.O_RDWR) for number in numbers}
        with pytest.raises(DeviceError, match=message):
            adopt_chardev(config, fds, loop)
        for fd in fds.values():
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fd)

    run(scenario)


# ---- file


@pytest.mark.parametrize(("append", "content"), [(False, b"new"), (True, b"old new")])
def test_file_is_truncated_or_appended_to(socket_dir: Path, append: bool, content: bytes) -> None:
    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        path = socket_dir / "log"
        path.write_bytes(b"old ")
        backend = open_chardev(Chardev("f", ChardevKind.FILE, path=path, append=append), loop)
        assert backend.write(b"new") == 3
        backend.close()
        assert path.read_bytes() == content

    run(scenario)


def test_file_goes_on_where_the_predecessor_stopped(socket_dir: Path) -> None:
    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        config = Chardev("f", ChardevKind.FILE, path=socket_dir / "log")
        old = open_chardev(config, loop)
        old.write(b"one ")
        new = adopt_chardev(config, duplicates(old), loop)
        old.write(b"two ")
        old.close()
        new.start()
        new.write(b"three")
        ((_, fd, kind),) = new.fds()
        assert kind == "file"
        assert not os.get_inheritable(fd)
        new.close()
        assert (socket_dir / "log").read_bytes() == b"one two three"

    run(scenario)


def test_file_errors_name_the_path(socket_dir: Path) -> None:
    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        with pytest.raises(DeviceError, match=r"Could not open '/.*/none/log': No such file"):
            open_chardev(Chardev("f", ChardevKind.FILE, path=socket_dir / "none" / "log"), loop)
        with pytest.raises(DeviceError, match="Parameter 'path' is missing"):
            open_chardev(Chardev("f", ChardevKind.FILE), loop)
        read_only = os.open("/dev/null", os.O_RDONLY)
        with pytest.raises(DeviceError, match="not open for writing"):
            adopt_chardev(Chardev("f", ChardevKind.FILE), {0: read_only}, loop)

    run(scenario)


def test_full_disk_is_said_once_and_the_guest_goes_on(capfd: pytest.CaptureFixture[str]) -> None:
    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        backend = open_chardev(Chardev("f", ChardevKind.FILE, path=Path("/dev/full")), loop)
        backend.attach(Frontend())
        backend.start()
        for _ in range(3):
            assert backend.write(b"x") == 1
        lost = loop.create_future()
        loop.call_soon(lost.set_result, None)
        await lost
        assert backend.write(b"x") == 1
        backend.close()

    run(scenario)
    assert capfd.readouterr().err.count("writing to '/dev/full' failed") == 1


def test_full_fifo_refuses_and_says_when_there_is_room(socket_dir: Path) -> None:
    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        path = socket_dir / "fifo"
        os.mkfifo(path)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        backend = open_chardev(Chardev("f", ChardevKind.FILE, path=path), loop)
        frontend = Frontend()
        backend.attach(frontend)
        backend.start()
        sent = 0
        while taken := backend.write(b"x" * 4096):
            sent += taken
        assert frontend.writable_calls == 0
        received = 0
        while received < sent:
            received += len(os.read(reader, 1 << 16))
        await frontend.until(lambda: frontend.writable_calls > 0)
        assert backend.write(b"more") == 4
        backend.close()
        os.close(reader)

    run(scenario)


# ---- stdio


def test_stdio_on_pipes_carries_bytes_and_survives_their_end() -> None:
    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        in_read, in_write = os.pipe()
        out_read, out_write = os.pipe()
        backend, frontend = StdioBackend("s", loop, in_read, out_write), Frontend()
        backend.attach(frontend)
        backend.start()
        os.write(in_write, b"typed")
        await frontend.until(lambda: frontend.received == b"typed")
        assert backend.write(b"shown") == 5
        assert os.read(out_read, 10) == b"shown"
        assert os.get_blocking(out_write)
        while backend.write(b"x" * 4096):
            pass
        os.read(out_read, 1 << 20)
        await frontend.until(lambda: frontend.writable_calls > 0)
        os.close(in_write)
        os.close(out_read)
        for _ in range(5):
            await next_turn(loop)
            assert backend.write(b"nobody") == 6
        assert backend.fds() == ()
        backend.close()
        os.close(in_read)
        os.close(out_write)

    run(scenario)


@pytest.mark.parametrize("content", [b"", b"from a file"])
def test_stdio_from_a_file_is_read_to_its_end(socket_dir: Path, content: bytes) -> None:
    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        (socket_dir / "in").write_bytes(content)
        in_fd = os.open(socket_dir / "in", os.O_RDONLY)
        out_fd = os.open(socket_dir / "out", os.O_WRONLY | os.O_CREAT)
        backend, frontend = StdioBackend("s", loop, in_fd, out_fd), Frontend(room=4)
        backend.attach(frontend)
        backend.start()
        while frontend.received != content:
            frontend.room = 4
            backend.receive_more()
            await next_turn(loop)
        assert backend.write(b"y" * 10_000) == 10_000
        backend.close()
        os.close(in_fd)
        os.close(out_fd)
        assert (socket_dir / "out").stat().st_size == 10_000

    run(scenario)


def test_stdio_terminal_passes_single_keys_and_is_given_back_as_it_was() -> None:
    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        master, terminal = pty.openpty()
        before = termios.tcgetattr(terminal)
        backend, frontend = StdioBackend("s", loop, terminal, terminal), Frontend()
        local = termios.tcgetattr(terminal)[3]
        assert not local & (termios.ECHO | termios.ICANON)
        assert local & termios.ISIG
        backend.attach(frontend)
        backend.start()
        os.write(master, b"k")
        await frontend.until(lambda: frontend.received == b"k")
        assert backend.write(b"out") == 3
        shown = b""
        while len(shown) < 3:  # a terminal gets single bytes
            shown += os.read(master, 10)
        assert shown == b"out"
        backend.close()
        assert termios.tcgetattr(terminal) == before
        os.close(master)
        os.close(terminal)

    run(scenario)


def test_closing_everything_leaks_no_fd(socket_dir: Path) -> None:
    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        before = open_fds()
        for config in (
            Chardev("f", ChardevKind.FILE, path=socket_dir / "log"),
            socket_config(socket_dir),
            Chardev("p", ChardevKind.PTY),
        ):
            old = open_chardev(config, loop)
            new = adopt_chardev(config, duplicates(old), loop)
            new.close()
            old.close()
        assert open_fds() == before

    run(scenario)
