"""One VMM process, owned: started, spoken to over QMP, watched, and ended for certain.

The process lives in a session of its own, dies with the launcher (pdeathsig) and is watched through
a pidfd, so its end is an event. Its QMP socket is a listening socket that the launcher bound before
the start; if the process dies, the socket dies with it and the client sees the end of file.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qemu.qmp import EventListener, ExecuteError, QMPClient, QMPError
from qemu.qmp.qmp_client import NegotiationError

from tools.lab.child import PLAIN_CHILD, ChildSetup
from tools.lab.deadlines import EXIT_MS, LAUNCH_MS, QMP_REPLY_MS, within
from tools.lab.errors import CheckFailedError, LabError, LaunchError
from tools.lab.procfs import ProcessCounters, read_counters

# One client at a time connects before the process accepts; more than that is slack.
LISTEN_BACKLOG = 8
LOG_TAIL_LINES = 5
# qemu.qmp 0.0.6 takes an event that overtakes the reply to qmp_capabilities for that reply and
# gives up; a successor sends such events, so the session is tried again.
NEGOTIATION_TRIES = 3
Event = Mapping[str, Any]


def listen_unix(path: Path) -> socket.socket:
    """Make a listening unix socket, CLOEXEC and non-inheritable until a process is given it."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.bind(str(path))
        listener.listen(LISTEN_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


class VmmProcess:
    """A running VMM. Made by `launch`; `terminate` is idempotent and must be awaited at the end."""

    def __init__(self, popen: subprocess.Popen[bytes], name: str, log_path: Path) -> None:
        self.name = name
        self.pid = popen.pid
        self.log_path = log_path
        self._popen = popen
        self._client = QMPClient(name)
        self._listener = EventListener()
        self._client.register_listener(self._listener)
        self._loop = asyncio.get_running_loop()
        self._exit: asyncio.Future[int] = self._loop.create_future()
        self._pidfd = os.pidfd_open(popen.pid)
        self._loop.add_reader(self._pidfd, self._ended)

    @classmethod
    async def launch(
        cls,
        argv: Sequence[str],
        *,
        name: str,
        qmp_path: Path,
        inherited: Sequence[socket.socket],
        log_path: Path,
        child: ChildSetup = PLAIN_CHILD,
    ) -> VmmProcess:
        """Start `argv` and wait until it answers on `qmp_path`; closes the `inherited` sockets.

        The QMP listener is one of `inherited`; its path is free to be removed afterwards. Raises
        LaunchError with the end of the process's stderr.
        """
        try:
            popen = _spawn(argv, [sock.fileno() for sock in inherited], log_path, child)
        except OSError as error:
            raise LaunchError(f"{name}: cannot start {argv[0]!r}: {error.strerror}") from error
        except subprocess.SubprocessError as error:  # all that is known of a failed preexec_fn
            raise LaunchError(f"{name}: cannot enter its namespace or become its user") from error
        finally:
            for sock in inherited:
                sock.close()
        process = cls(popen, name, log_path)
        try:
            await within(LAUNCH_MS, f"{name}: QMP greeting", process._connect(qmp_path))
        except BaseException:
            await process.terminate()
            raise
        return process

    async def _connect(self, qmp_path: Path) -> None:
        for tries_left in reversed(range(NEGOTIATION_TRIES)):
            try:
                await self._client.connect(str(qmp_path))
            except QMPError as error:
                overtaken = isinstance(error.__cause__, NegotiationError) and self.alive
                if not (tries_left and overtaken):
                    raise LaunchError(
                        f"{self.name}: no QMP session ({error}); stderr ends with: "
                        f"{self.log_tail()}"
                    ) from error
            else:
                return

    # ---- talking --------------------------------------------------------------------------------

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """One QMP command; ExecuteError when the server refuses it, LabError when it is gone."""
        try:
            return await within(
                QMP_REPLY_MS,
                f"{self.name}: reply to {command}",
                self._client.execute(command, arguments),
            )
        except ExecuteError:
            raise
        except QMPError as error:
            raise LabError(
                f"{self.name}: the QMP session broke during {command} ({error}); stderr ends "
                f"with: {self.log_tail()}"
            ) from error

    async def next_event(self) -> Event:
        """Return the next QMP event in order of arrival; waits without a deadline of its own."""
        return await self._listener.get()

    def forget_events(self) -> None:
        """Drop the events that came so far, so that the next update sees only its own."""
        self._listener.clear()

    # ---- watching -------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether the process has not ended yet."""
        return not self._exit.done()

    async def wait_exit(self) -> int:
        """Exit status as in subprocess (negative: signal); may be awaited by several at once."""
        return await asyncio.shield(self._exit)

    async def must_not_exit(self, when: str) -> None:
        """Raise LabError when the process ends; never returns."""
        status = await self.wait_exit()
        raise LabError(f"{self.name} exited with status {status} {when}")

    def counters(self) -> ProcessCounters:
        """Count what it holds now."""
        return read_counters(self.pid)

    def log_tail(self) -> str:
        """Return the last lines of its stderr, on one line."""
        lines = self.log_path.read_text(errors="replace").splitlines()
        return " | ".join(lines[-LOG_TAIL_LINES:]) or "(nothing)"

    # ---- ending ---------------------------------------------------------------------------------

    async def quit(self) -> int:
        """QMP `quit`; returns the exit status."""
        with contextlib.suppress(QMPError, LabError):  # it may end before it answers
            await self.execute("quit")
        status = await within(EXIT_MS, f"{self.name}: exit after quit", self.wait_exit())
        await self.hang_up()
        return status

    async def quit_cleanly(self) -> None:
        """`quit`; raises CheckFailedError when the process ends with another status than 0."""
        status = await self.quit()
        if status != 0:
            raise CheckFailedError(
                f"{self.name}: exit status {status} after quit; stderr: {self.log_tail()}"
            )

    async def terminate(self) -> None:
        """End the process and everything it started: SIGTERM, then SIGKILL for the group."""
        if self.alive:
            self._popen.terminate()
            try:
                await within(EXIT_MS, f"{self.name}: exit after SIGTERM", self.wait_exit())
            except LabError:
                self._kill_group()
        self._kill_group()
        await within(EXIT_MS, f"{self.name}: exit after SIGKILL", self.wait_exit())
        await self.hang_up()

    def _kill_group(self) -> None:
        """Kill what is left of the group; the leader may be gone and its children not."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    async def hang_up(self) -> None:
        """End the QMP session and leave the socket to others; harmless the second time."""
        with contextlib.suppress(QMPError, OSError, EOFError):
            await self._client.disconnect()

    def _ended(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._exit.set_result(self._popen.wait())


def _spawn(
    argv: Sequence[str], fds: Sequence[int], log_path: Path, child: ChildSetup
) -> subprocess.Popen[bytes]:
    """Start a process in its own session, stderr and stdout to `log_path`, `fds` inherited."""
    with log_path.open("wb") as log:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=fds,
            start_new_session=True,
            preexec_fn=child.apply,  # noqa: PLW1509 - a few system calls, and no other way to them
        )
