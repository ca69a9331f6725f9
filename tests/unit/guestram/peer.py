"""A second process that uses the run lease on command, for tests that need a real one.

The parent side is `Peer`; `python -m tests.unit.guestram.peer` is the child. They speak lines of
JSON over a socket pair: {"do": name, …} one way, {"result": value} or {"error": class, "text": …}
back.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from guestram.errors import RamError
from guestram.lease import ControlPage, RunLease
from guestram.memfd import MemfdIdentity

DEADLINE_S = 30.0
_ROOT = Path(__file__).parents[3]


def try_lock(fd: int) -> bool:
    """Take the lock as RunLease does, but through the very description behind `fd`."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
    except BlockingIOError:
        return False
    return True


def wait_until_dead(pidfd: int) -> None:
    """Return as soon as the pidfd says that the process died (it need not be reaped); closes it."""
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        assert poller.poll(DEADLINE_S * 1000), "the process is still alive"
    finally:
        os.close(pidfd)


class Peer:
    """The other process; killed and reaped on exit from the with block."""

    def __init__(self, ram_fd: int, control: ControlPage, *extra_fds: int) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(DEADLINE_S)
        self._lines = self._socket.makefile("r")
        with theirs:
            fds = (theirs.fileno(), ram_fd, control.fileno())
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tests.unit.guestram.peer",
                    *(str(fd) for fd in fds),
                    json.dumps(control.identity().to_map()),
                ],
                pass_fds=(*fds, *extra_fds),
                cwd=_ROOT,
            )
        self.pid = self._process.pid

    def do(self, what: str, *, pass_fd: int | None = None, **arguments: object) -> Any:
        """Let the peer do something; its RamError comes back as (class name, text).

        `pass_fd` goes along by SCM_RIGHTS, behind the command.
        """
        self._socket.sendall(json.dumps({"do": what, **arguments}).encode() + b"\n")
        if pass_fd is not None:
            socket.send_fds(self._socket, [b"#"], [pass_fd])
        answer = json.loads(self._lines.readline())
        return answer["result"] if "result" in answer else (answer["error"], answer["text"])

    def kill(self) -> None:
        """SIGKILL, and wait for the death but not for the reaping."""
        self._process.kill()
        wait_until_dead(os.pidfd_open(self.pid))

    def stop(self) -> None:
        """SIGSTOP, and wait until the kernel says that it is stopped."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._lines.close()
        self._socket.close()
        self._process.kill()
        self._process.wait(DEADLINE_S)


class _Child:
    """What the peer can do; each method is a command."""

    def __init__(self, channel: socket.socket, ram_fd: int, control: ControlPage) -> None:
        self.channel = channel
        self.ram_fd = ram_fd
        self.control = control
        self.lease = RunLease(ram_fd, control)

    def acquire(self) -> bool:
        self.lease.acquire()
        return self.lease.held

    def release(self) -> bool:
        self.lease.release()
        return self.lease.held

    def enter(self) -> int:
        return self.lease.enter()

    def epoch(self) -> int:
        return self.lease.epoch

    def lock_passed_description(self) -> bool:
        """Fetch the fd behind the command and lock through that very description."""
        _data, fds, _flags, _address = socket.recv_fds(self.channel, 1, 1)
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, fds[0])
            return try_lock(fds[0])

    def become_nobody(self) -> int:
        """Give up root and open the lease anew, as an unprivileged successor does."""
        self.lease.close()
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        self.lease = RunLease(self.ram_fd, self.control)
        return os.getuid()

    def fork_until_eof(self, pipe: int) -> int:
        """Fork a child that does nothing until `pipe` ends; returns its pid."""
        pid = os.fork()
        if pid == 0:
            os.read(pipe, 1)
            os._exit(0)
        return pid

    def report_from_forked_child(self) -> dict[str, Any]:
        """What a forked child of the holder sees and may do."""
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            report: dict[str, Any] = {"held": self.lease.held}
            try:
                self.lease.acquire()
            except RamError as error:
                report["acquire"] = type(error).__name__
            try:
                self.lease.enter()
            except RamError as error:
                report["enter"] = type(error).__name__
            self.lease.release()
            self.lease.close()
            os.write(write_end, json.dumps(report).encode())
            os._exit(0)
        os.close(write_end)
        with open(read_end, "rb") as pipe:  # noqa: PTH123 -- an fd, not a path
            report = json.load(pipe)
        os.waitpid(pid, 0)
        return report


def main() -> None:
    """Answer commands until the socket ends."""
    channel_fd, ram_fd, control_fd = (int(argument) for argument in sys.argv[1:4])
    identity = MemfdIdentity.from_map(json.loads(sys.argv[4]))
    with socket.socket(fileno=channel_fd) as channel:
        child = _Child(channel, ram_fd, ControlPage.adopt(control_fd, identity))
        # byte by byte: a buffered reader would swallow the byte that carries an fd
        for line in iter(lambda: _read_line(channel), b""):
            command = json.loads(line)
            method: Callable[..., Any] = getattr(child, command.pop("do"))
            try:
                answer: dict[str, Any] = {"result": method(**command)}
            except RamError as error:
                answer = {"error": type(error).__name__, "text": str(error)}
            channel.sendall(json.dumps(answer).encode() + b"\n")
    os._exit(0)  # nothing to save: after become_nobody it could not be written either


def _read_line(channel: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        byte = channel.recv(1)
        if not byte:
            return b""
        line += byte
    return line


if __name__ == "__main__":
    main()
