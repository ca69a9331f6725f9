"""One connected monitor client: an asyncio protocol around a pure session.

A client can hurt only itself: what it sends is taken in small turns, what it does not read is
bounded, and when it vanishes its running command simply has nobody to answer to.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol, cast

from vmm.errors import VmmError
from vmm.qapi import to_wire
from vmm.qmp import hmp
from vmm.qmp.control import VmmControl
from vmm.qmp.results import version_info
from vmm.qmp.schema import Registry
from vmm.qmp.session import Call, Message, QmpError, Session

# QEMU's request queue holds 8; reading stops until one is answered.
MAX_QUEUED_MESSAGES = 8
# Work for one client in one turn of the loop, so that a flood takes a millisecond or two before
# everybody else has a turn: messages, and bytes looked at (the worst bytes take 0.5 us each).
MAX_MESSAGES_PER_TURN = 32
MAX_BYTES_PER_TURN = 4096
# Unread output after which a client is disconnected. All events of an update are below 2 KiB, the
# largest reply (the schema) below 64 KiB.
MAX_UNREAD_BYTES = 1 << 20
MAX_HMP_LINE_BYTES = 4096


class MonitorHost(Protocol):
    """What a client needs from its server."""

    @property
    def control(self) -> VmmControl:
        """What commands act on."""
        ...

    @property
    def registry(self) -> Registry:
        """The commands there are."""
        ...

    def joined(self, client: MonitorClient) -> bool:
        """Whether there is room for one more client."""
        ...

    def left(self, client: MonitorClient) -> None:
        """The client is gone."""
        ...

    def report_bug(self, what: str, error: BaseException) -> None:
        """Tell the operator about an exception that nobody foresaw."""
        ...


class MonitorClient(asyncio.Protocol):
    """What both kinds of monitor share: a bounded output and a clean end."""

    def __init__(self, host: MonitorHost) -> None:
        self.host = host
        self._loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self._transport: asyncio.Transport | None = None
        self._unsent: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet, or turn away when the server is full."""
        self._transport = cast("asyncio.Transport", transport)
        if self.host.joined(self):
            self._greet()
        else:
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client."""
        self._transport = None
        self.host.left(self)
        if not self.closed.done():
            self.closed.set_result(None)

    def write(self, data: bytes) -> None:
        """Send at the end of this turn of the loop, with all else that is written in it.

        Each send wakes the client, which on a busy machine takes the processor of a vCPU; an update
        has several events to tell at once.
        """
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(data)

    def _flush(self) -> None:
        """Send, or disconnect a client that does not read."""
        data = b"".join(self._unsent)
        self._unsent.clear()
        if not data or self._transport is None or self._transport.is_closing():
            return
        self._transport.write(data)
        if self._transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            self._transport.abort()

    def close(self) -> None:
        """End the connection once the output is written."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End the connection now."""
        if self._transport is not None:
            self._transport.abort()

    def emit(self, name: str, data: Mapping[str, Any] | None, timestamp_ns: int) -> None:
        """Tell an event; only QMP clients hear them."""

    def _greet(self) -> None:
        raise NotImplementedError

    def _read_more(self, wanted: bool) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        with contextlib.suppress(RuntimeError):  # already in that state
            if wanted:
                transport.resume_reading()
            else:
                transport.pause_reading()


class QmpClient(MonitorClient):
    """A control-mode client. Its commands run one after the other; exec-oob overtakes."""

    def __init__(self, host: MonitorHost, *, pretty: bool) -> None:
        super().__init__(host)
        self._session = Session(host.registry.commands, pretty=pretty)
        self._unseen = memoryview(b"")  # read, but not yet given to the session
        self._queue: deque[Message] = deque()
        self._running: asyncio.Task[None] | None = None
        self._turn: asyncio.Handle | None = None

    def _greet(self) -> None:
        self.write(self._session.greeting(to_wire(version_info())))

    def data_received(self, data: bytes) -> None:
        """Take what the client sent."""
        self._unseen = memoryview(bytes(self._unseen) + data) if self._unseen else memoryview(data)
        if self._turn is None:
            self._pump()

    def connection_lost(self, exc: Exception | None) -> None:
        """Drop what the client still wanted; a command that already runs goes on."""
        self._queue.clear()
        self._unseen = memoryview(b"")
        if self._turn is not None:
            self._turn.cancel()
        super().connection_lost(exc)

    def emit(self, name: str, data: Mapping[str, Any] | None, timestamp_ns: int) -> None:
        """Tell an event to a client that has negotiated."""
        if self._session.negotiated:
            self.write(self._session.event(name, data, timestamp_ns))

    def _pump(self) -> None:
        """One turn: answer what can be answered, then say whether to read or to come back."""
        self._turn = None
        self._session.receive(bytes(self._unseen[:MAX_BYTES_PER_TURN]))
        self._unseen = self._unseen[MAX_BYTES_PER_TURN:]
        for _ in range(MAX_MESSAGES_PER_TURN):
            if self._transport is None or self._transport.is_closing():
                return
            if not self._step():
                break
        else:
            self._come_back()
            return
        if self._unseen and len(self._queue) < MAX_QUEUED_MESSAGES:
            self._come_back()
        else:
            self._read_more(len(self._queue) < MAX_QUEUED_MESSAGES)

    def _come_back(self) -> None:
        """Let others have their turn first."""
        self._read_more(False)
        self._turn = asyncio.get_running_loop().call_soon(self._pump)

    def _step(self) -> bool:
        """Handle one message if there is one to handle now."""
        if self._queue and self._running is None:
            self._answer(self._queue.popleft())
            return True
        if len(self._queue) >= MAX_QUEUED_MESSAGES:
            return False
        message = self._session.next_message()
        if message is None:
            return False
        if message.oob:
            self._answer_oob(message)
        else:
            self._queue.append(message)
        return True

    def _answer(self, message: Message) -> None:
        admitted = self._session.admit(message)
        if isinstance(admitted, bytes):
            self.write(admitted)
            return
        result = self._perform(admitted)
        if inspect.isawaitable(result):
            self._running = asyncio.ensure_future(self._finish(admitted, result))
        else:
            self.write(cast("bytes", result))

    def _answer_oob(self, message: Message) -> None:
        """Out-of-band commands never wait, so their reply is ready at once."""
        admitted = self._session.admit(message)
        reply = admitted if isinstance(admitted, bytes) else self._perform(admitted)
        assert isinstance(reply, bytes)
        self.write(reply)

    def _perform(self, call: Call) -> Any:
        """The reply, or an awaitable of the command's result."""
        try:
            result = call.command.handler(self.host.control, *call.arguments)
            if inspect.isawaitable(result):
                return result
            return self._reply(call, result)
        except Exception as error:  # a bug in a command must not end the VM
            return self._failure(call, error)

    async def _finish(self, call: Call, result: Any) -> None:
        try:
            reply = self._reply(call, await result)
        except Exception as error:  # as above
            reply = self._failure(call, error)
        self._running = None
        self.write(reply)
        if self._transport is not None and self._turn is None:
            self._pump()

    def _reply(self, call: Call, result: Any) -> bytes:
        return self._session.reply({} if result is None else to_wire(result), call.ident)

    def _failure(self, call: Call, error: Exception) -> bytes:
        if isinstance(error, QmpError):
            return self._session.error(error, call.ident)
        if isinstance(error, VmmError):
            return self._session.error(QmpError(str(error)), call.ident)
        self.host.report_bug(f"QMP command {call.command.name}", error)
        text = f"internal error in {call.command.name}: {type(error).__name__}: {error}"
        return self._session.error(QmpError(text), call.ident)

    @property
    def task(self) -> asyncio.Task[None] | None:
        """The command that runs now, if it is one that waits."""
        return self._running


class HmpClient(MonitorClient):
    """A readline-mode client: lines in, text and a prompt out."""

    def __init__(self, host: MonitorHost) -> None:
        super().__init__(host)
        self._line = b""

    def _greet(self) -> None:
        self.write(f"{hmp.banner()}{hmp.PROMPT}".encode())

    def data_received(self, data: bytes) -> None:
        """Run every complete line."""
        *lines, self._line = (self._line + data).replace(b"\r", b"").split(b"\n")
        for line in lines:
            self._run(line.decode(errors="replace"))
        if len(self._line) > MAX_HMP_LINE_BYTES:
            self._line = b""
            self.write(f"line is too long{hmp.NEWLINE}{hmp.PROMPT}".encode())

    def _run(self, line: str) -> None:
        try:
            output = hmp.run_line(self.host.control, line)
        except Exception as error:  # a bug in a command must not end the VM
            self.host.report_bug(f"monitor command {line!r}", error)
            output = f"internal error: {error}{hmp.NEWLINE}"
        self.write(f"{output}{hmp.PROMPT}".encode())
