from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

from vmm.qmp.stdio import StdioTransport

DEADLINE_S = 20.0


class Recorder(asyncio.Protocol):
    """Keeps what comes; `closed` is set at the end."""

    def __init__(self) -> None:
        self.data = b""
        self.arrived = asyncio.Event()
        self.closed = asyncio.Event()
        self.error: Exception | None = None

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.arrived.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.error = exc
        self.closed.set()


def test_pipes_carry_both_ways_and_get_their_mode_back() -> None:
    async def scenario() -> None:
        in_read, in_write = os.pipe()
        out_read, out_write = os.pipe()
        try:
            recorder = Recorder()
            loop = asyncio.get_running_loop()
            transport = StdioTransport(recorder, loop, in_read, out_write)
            os.write(in_write, b"hello")
            await recorder.arrived.wait()
            assert recorder.data == b"hello"
            transport.write(b"reply")
            assert os.read(out_read, 100) == b"reply"
            assert transport.get_write_buffer_size() == 0
            transport.pause_reading()
            transport.resume_reading()
            os.close(in_write)
            await recorder.closed.wait()
            assert transport.is_closing()
            assert recorder.error is None
            assert os.get_blocking(in_read)
            assert os.get_blocking(out_write)
            transport.write(b"too late")
            transport.close()
            transport.abort()
        finally:
            for fd in (in_read, out_read, out_write):
                os.close(fd)

    asyncio.run(asyncio.wait_for(scenario(), DEADLINE_S))


def test_output_that_nobody_reads_waits_and_is_written_before_the_end() -> None:
    async def scenario() -> None:
        in_read, in_write = os.pipe()
        out_read, out_write = os.pipe()
        try:
            recorder = Recorder()
            loop = asyncio.get_running_loop()
            transport = StdioTransport(recorder, loop, in_read, out_write)
            data = b"x" * (1 << 20)
            transport.write(data)
            assert transport.get_write_buffer_size() > 0
            transport.close()
            received = b""
            os.set_blocking(out_read, False)
            readable = asyncio.Event()
            loop.add_reader(out_read, readable.set)
            while len(received) < len(data):
                await readable.wait()
                readable.clear()
                with contextlib.suppress(BlockingIOError):
                    received += os.read(out_read, 1 << 20)
            loop.remove_reader(out_read)
            await recorder.closed.wait()
            assert received == data
        finally:
            for fd in (in_read, in_write, out_read, out_write):
                os.close(fd)

    asyncio.run(asyncio.wait_for(scenario(), DEADLINE_S))


def test_a_regular_file_is_read_to_its_end(tmp_path: Path) -> None:
    source, sink = tmp_path / "in", tmp_path / "out"
    source.write_bytes(b"from a file")

    async def scenario() -> None:
        recorder = Recorder()
        with source.open("rb") as in_file, sink.open("wb") as out_file:
            loop = asyncio.get_running_loop()
            transport = StdioTransport(recorder, loop, in_file.fileno(), out_file.fileno())
            transport.write(b"to a file")
            await recorder.closed.wait()
        assert recorder.data == b"from a file"

    asyncio.run(asyncio.wait_for(scenario(), DEADLINE_S))
    assert sink.read_bytes() == b"to a file"


def test_a_reader_that_goes_away_ends_the_client() -> None:
    async def scenario() -> None:
        in_read, in_write = os.pipe()
        out_read, out_write = os.pipe()
        os.close(out_read)
        try:
            recorder = Recorder()
            transport = StdioTransport(recorder, asyncio.get_running_loop(), in_read, out_write)
            transport.write(b"x")
            await recorder.closed.wait()
            assert isinstance(recorder.error, BrokenPipeError)
        finally:
            for fd in (in_read, in_write, out_write):
                os.close(fd)

    asyncio.run(asyncio.wait_for(scenario(), DEADLINE_S))
