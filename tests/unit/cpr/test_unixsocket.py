from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import stat
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from cpr.errors import ChannelError
from cpr.unixsocket import PATH_SIZE_MAX, accept_unix, adopt_listener, connect_unix, listen_unix

DEADLINE_S = 30


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, DEADLINE_S))


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)  # a short name, whatever the test's directory is called
    return "sock"


async def begin_to_connect(path: str) -> asyncio.Task[socket.socket]:
    """A connect that found the backlog full and waits for its turn."""
    task = asyncio.create_task(connect_unix(path, 20_000))
    await asyncio.sleep(0)  # one turn of the loop
    assert not task.done()
    return task


@contextlib.contextmanager
def full(path: str) -> Iterator[tuple[socket.socket, list[socket.socket]]]:
    """A listener whose backlog is full, and the connections that fill it."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen_unix(path))
        waiting: list[socket.socket] = []
        while True:
            sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            sock.setblocking(False)
            try:
                sock.connect(path)
            except BlockingIOError:
                break
            waiting.append(sock)
        yield listener, waiting


def test_both_ends_are_connected_and_do_not_block(path: str) -> None:
    async def story() -> None:
        with (
            listen_unix(path) as listener,
            await connect_unix(path, 1000) as ours,
            await accept_unix(listener) as theirs,
        ):
            ours.send(b"hello")
            assert theirs.recv(9) == b"hello"
            assert not ours.getblocking()
            assert not theirs.getblocking()

    run(story())


@pytest.mark.parametrize(
    ("prepare", "error"),
    [
        (lambda path: None, FileNotFoundError),
        (lambda path: listen_unix(path).close(), ConnectionRefusedError),
    ],
)
def test_a_connect_that_fails_keeps_the_kernels_errno(
    path: str, prepare: Callable[[str], None], error: type[OSError]
) -> None:
    prepare(path)
    with pytest.raises(error):
        run(_connect(path))


async def _connect(path: str) -> None:
    (await connect_unix(path, 1000)).close()


@pytest.mark.parametrize("use", [lambda path: run(_connect(path)), listen_unix])
def test_a_path_that_the_kernel_cannot_take_is_named(use: Callable[[str], object]) -> None:
    with pytest.raises(ChannelError, match=f"has {PATH_SIZE_MAX + 1} bytes; the kernel allows 107"):
        use("x" * (PATH_SIZE_MAX + 1))


def test_a_full_backlog_is_waited_for_without_blocking_the_loop(path: str) -> None:
    async def story() -> None:
        with full(path) as (listener, waiting):
            connecting = await begin_to_connect(path)
            for _ in range(len(waiting)):
                (await accept_unix(listener)).close()
            with await connecting as ours, await accept_unix(listener) as theirs:
                assert not ours.getblocking()
                theirs.send(b"hello")
                assert ours.recv(9) == b"hello"

    run(story())


def test_a_backlog_that_stays_full_is_a_timeout_with_the_path(path: str) -> None:
    async def story() -> None:
        with full(path), pytest.raises(ChannelError, match="no answer from 'sock' within 20 ms"):
            await connect_unix(path, 20)

    run(story())


def test_a_listener_that_goes_away_ends_the_wait(path: str) -> None:
    async def story() -> None:
        with full(path) as (listener, _waiting):
            connecting = await begin_to_connect(path)
            listener.close()
            with pytest.raises(ConnectionRefusedError):
                await connecting

    run(story())


def test_a_cancelled_wait_leaves_nothing_open(path: str) -> None:
    async def story() -> None:
        with full(path) as (listener, waiting):
            connecting = await begin_to_connect(path)
            connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await connecting
            for _ in range(len(waiting)):
                (await accept_unix(listener)).close()
            with await accept_unix(listener) as late:  # the thread still connects, and hangs up
                assert await asyncio.get_running_loop().sock_recv(late, 1) == b""

    run(story())


def test_a_wait_cancelled_in_the_moment_of_success_leaves_nothing_open(path: str) -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        with full(path) as (listener, waiting):
            connecting = await begin_to_connect(path)

            def cancel_too(callback: Callable[..., object], *arguments: Any) -> asyncio.Handle:
                def both() -> None:
                    callback(*arguments)
                    connecting.cancel()

                return original(both)

            original = loop.call_soon_threadsafe
            loop.call_soon_threadsafe = cancel_too  # type: ignore[assignment,method-assign]
            for _ in range(len(waiting)):
                (await accept_unix(listener)).close()
            with pytest.raises(asyncio.CancelledError):
                await connecting
            with await accept_unix(listener) as late:
                assert await loop.sock_recv(late, 1) == b""

    run(story())


def test_an_error_after_the_wait_was_cancelled_is_dropped(path: str) -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        delivered = asyncio.Event()
        with full(path) as (listener, _waiting):
            connecting = await begin_to_connect(path)
            original = loop.call_soon_threadsafe

            def watched(callback: Callable[..., object], *arguments: Any) -> asyncio.Handle:
                handle = original(callback, *arguments)
                original(delivered.set)
                return handle

            loop.call_soon_threadsafe = watched  # type: ignore[assignment,method-assign]
            connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await connecting
            listener.close()
            await delivered.wait()

    run(story())


def test_a_loop_that_ends_before_the_connect_leaves_nothing_open(path: str) -> None:
    with full(path) as (listener, waiting):

        async def story() -> None:
            connecting = await begin_to_connect(path)
            connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await connecting

        run(story())
        listener.setblocking(True)
        for _ in range(len(waiting)):
            listener.accept()[0].close()
        with listener.accept()[0] as late:
            late.settimeout(DEADLINE_S)
            assert late.recv(1) == b""


def test_a_stale_socket_file_is_replaced(path: str) -> None:
    listen_unix(path).close()
    with listen_unix(path):
        assert Path(path).is_socket()


def test_a_file_that_is_no_socket_is_left_alone(path: str) -> None:
    Path(path).write_text("precious", "utf-8")
    with pytest.raises(OSError, match="in use"):
        listen_unix(path)
    assert Path(path).read_text("utf-8") == "precious"


def test_an_inherited_listener_is_adopted_close_on_exec(path: str) -> None:
    async def story() -> None:
        with listen_unix(path) as listener:
            fd = os.dup(listener.fileno())
        os.set_inheritable(fd, True)
        with adopt_listener(fd) as adopted:
            assert fcntl.fcntl(adopted.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
            with await connect_unix(path, 1000), await accept_unix(adopted):
                pass

    run(story())


def _pipe() -> int:
    reading, writing = os.pipe()
    os.close(writing)
    return reading


def _listening_inet() -> int:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.listen()
    return sock.detach()


def _closed() -> int:
    fd = _pipe()
    os.close(fd)
    return fd


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (_closed, "cannot be used: Bad file descriptor"),
        (_pipe, "is not a socket"),
        (_listening_inet, "is not a listening unix stream socket"),
        (lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach(), "is not a listening"),
        (lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).detach(), "bind and listen"),
    ],
)
def test_anything_else_is_not_adopted_and_closed(make: Callable[[], int], problem: str) -> None:
    fd = make()
    with pytest.raises(ChannelError, match=f"fd {fd} .*{problem}"):
        adopt_listener(fd)
    assert not Path(f"/proc/self/fd/{fd}").exists()


def test_a_listener_s_file_is_its_owner_s_alone(tmp_path: Path) -> None:
    path = tmp_path / "cpr.sock"
    before = os.umask(0)
    try:
        with listen_unix(str(path)):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(before)


@pytest.mark.parametrize(("mode", "safe"), [(0o777, False), (0o1777, True), (0o755, True)])
def test_a_directory_in_which_anybody_may_replace_the_socket_is_refused(
    tmp_path: Path, mode: int, safe: bool
) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    directory.chmod(mode)
    path = directory / "cpr.sock"
    if safe:
        listen_unix(str(path)).close()
        return
    with pytest.raises(ChannelError, match=r"anybody may replace a socket in .*mode 0777"):
        listen_unix(str(path))
    assert not path.exists()
