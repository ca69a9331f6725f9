"""A monitor on the process's own standard input and output.

asyncio's pipe transports refuse regular files and /dev/null, which are ordinary standard streams;
this transport takes whatever is there. When input ends the client is gone, the process stays.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

_READ_SIZE_BYTES = 64 << 10


class StdioTransport(asyncio.Transport):
    """Fds 0 and 1 as one transport. Both get back their blocking mode at the end."""

    def __init__(
        self,
        protocol: asyncio.Protocol,
        loop: asyncio.AbstractEventLoop,
        input_fd: int = 0,
        output_fd: int = 1,
    ) -> None:
        super().__init__()
        self._protocol = protocol
        self._loop = loop
        self._input_fd = input_fd
        self._output_fd = output_fd
        self._modes = {fd: os.get_blocking(fd) for fd in (input_fd, output_fd)}
        self._output = bytearray()
        self._closing = False
        self._ended = False
        self._paused = True
        self._watchable = True  # regular files cannot be watched; they are always readable
        for fd in self._modes:
            os.set_blocking(fd, False)
        protocol.connection_made(self)
        self.resume_reading()

    def resume_reading(self) -> None:
        """Watch the input; what cannot be watched (a regular file) is read at once."""
        if self._ended or self._closing or not self._paused:
            return
        self._paused = False
        try:
            self._loop.add_reader(self._input_fd, self._readable)
        except PermissionError:
            self._watchable = False
            self._loop.call_soon(self._readable)

    def pause_reading(self) -> None:
        """Leave the input alone."""
        self._paused = True
        self._loop.remove_reader(self._input_fd)

    def _readable(self) -> None:
        if self._closing or self._paused:
            return
        try:
            data = os.read(self._input_fd, _READ_SIZE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(error)
            return
        if not data:
            self.close()
            return
        self._protocol.data_received(data)
        if not self._watchable:
            self._loop.call_soon(self._readable)

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Send what the output takes now, keep the rest."""
        if self._ended or self._closing:
            return
        idle = not self._output
        self._output += data
        if idle:
            self._flush()

    def _flush(self) -> None:
        try:
            while self._output:
                written = os.write(self._output_fd, self._output)
                del self._output[:written]
        except BlockingIOError:
            self._loop.add_writer(self._output_fd, self._flush)
            return
        except OSError as error:
            self._end(error)
            return
        self._loop.remove_writer(self._output_fd)
        if self._closing:
            self._end(None)

    def get_write_buffer_size(self) -> int:
        """Bytes not written yet."""
        return len(self._output)

    def is_closing(self) -> bool:
        """Whether the end has begun."""
        return self._closing or self._ended

    def close(self) -> None:
        """End once everything is written."""
        if self._closing:
            return
        self._closing = True
        self._loop.remove_reader(self._input_fd)
        if not self._output:
            self._loop.call_soon(self._end, None)

    def abort(self) -> None:
        """End now."""
        self._closing = True
        self._end(None)

    def _end(self, error: Exception | None) -> None:
        if self._ended:
            return
        self._ended = self._closing = True
        self._loop.remove_reader(self._input_fd)
        self._loop.remove_writer(self._output_fd)
        for fd, blocking in self._modes.items():
            os.set_blocking(fd, blocking)
        self._protocol.connection_lost(error)
