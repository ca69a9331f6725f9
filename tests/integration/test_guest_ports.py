"""Serial ports on every back-end, in both directions, and no byte lost or doubled by an update."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import pytest

from tests.framework.guest_rig import VMM, Rig
from tests.framework.rounds import goes_on
from tests.framework.serial_line import SerialLine
from tests.integration.conftest import MakeGuest

pytestmark = pytest.mark.needs_assembler

# Longer than all FIFOs and socket buffers between test and guest hold of a slow guest.
BYTES = bytes(islice(cycle(range(1, 252)), 3000))
CHUNK_BYTES = 100
FD_FLAGS = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
IRQCHIP = ("-machine", "kernel-irqchip=on")


async def echoes_through(rig: Rig, life: str) -> None:
    """Send BYTES, a part of them while the update runs; all come back once and in order."""
    await rig.line.until_count(b"A", 1)
    chunks = iter(BYTES[i : i + CHUNK_BYTES] for i in range(0, len(BYTES), CHUNK_BYTES))
    for chunk in islice(chunks, 5):
        rig.line.send(chunk)
    sending = asyncio.ensure_future(send_one_per_echo(rig.line, chunks))
    if life == "updated":
        await rig.update()
    await sending
    await rig.line.until("every byte back", lambda received: len(received) >= len(BYTES) + 1)
    assert rig.line.received == b"A" + BYTES


async def send_one_per_echo(line: SerialLine, chunks: Iterator[bytes]) -> None:
    """The next chunk when a chunk's worth came back: some are always under way."""
    goal = len(line.received)

    def reached(received: bytes) -> bool:
        return len(received) >= goal

    for chunk in chunks:
        goal += CHUNK_BYTES
        await line.until("an echo", reached)
        line.send(chunk)


async def test_bytes_sent_during_an_update_arrive_once(
    accel: str, life: str, guest: MakeGuest
) -> None:
    async with Rig(accel, "-kernel", str(guest("echo"))) as rig:
        await rig.boot()
        await echoes_through(rig, life)


@pytest.mark.needs_kvm
async def test_interrupt_driven_guest_gets_every_byte(life: str, guest: MakeGuest) -> None:
    async with Rig("kvm", "-kernel", str(guest("uartirq")), *IRQCHIP) as rig:
        await rig.boot()
        await echoes_through(rig, life)


async def test_pty_keeps_its_name_and_its_bytes(accel: str, life: str, guest: MakeGuest) -> None:
    async with Rig(accel, "-kernel", str(guest("echo")), ports=("-serial", "pty")) as rig:
        rig.vmm = await rig.launch("-S")
        said = re.search(r"redirected to (/dev/pts/\d+)", rig.vmm.log_path.read_text())
        assert said is not None
        terminal = os.open(said[1], os.O_RDWR | FD_FLAGS)
        rig.line = await SerialLine.on_fds(terminal, os.dup(terminal))
        await rig.vmm.execute("cont")
        await echoes_through(rig, life)


async def test_file_has_all_output_of_both_processes(
    accel: str, life: str, guest: MakeGuest, tmp_path: Path
) -> None:
    output = tmp_path / "serial.log"
    ports = ("-serial", f"file:{output}", "-device", "isa-debugcon,chardev=line")
    sector = guest("both")
    async with Rig(accel, "-kernel", str(sector), ports=ports) as rig:
        await rig.boot()
        await goes_on(rig.line)
        if life == "updated":
            await rig.update()
            await goes_on(rig.line)
        await rig.vmm.execute("stop")
        said = output.read_bytes()
        assert said == b"A" + b"B" * (len(said) - 1)
        heard = bytes(rig.line.received)
        assert len(said) >= len(heard)  # the file gets each byte first


async def test_stdio_is_each_process_s_own_and_its_input_goes_on(
    accel: str, life: str, guest: MakeGuest, tmp_path: Path
) -> None:
    to_guest, from_guest = tmp_path / "in", tmp_path / "out"
    for path in (to_guest, from_guest):
        os.mkfifo(path)
    shell = ("sh", "-c", f'exec "$@" <{to_guest} >{from_guest}', "sh")
    sector = guest("echo")
    rig = Rig(accel, "-kernel", str(sector), ports=("-serial", "stdio"), command=(*shell, *VMM))
    async with rig:
        # A fifo can be written to once it has a reader, and has no end while we could write too.
        reader = os.open(to_guest, os.O_RDONLY | FD_FLAGS)
        writer = os.open(to_guest, os.O_WRONLY | FD_FLAGS)
        rig.line = await SerialLine.on_fds(os.open(from_guest, os.O_RDWR | FD_FLAGS), writer)
        rig.vmm = await rig.launch()
        os.close(reader)
        await echoes_through(rig, life)


async def test_unread_input_waits_for_the_guest_of_the_successor(
    accel: str, guest: MakeGuest
) -> None:
    """Bytes that came while the guest was stopped for good in the old process."""
    async with Rig(accel, "-kernel", str(guest("echo"))) as rig:
        await rig.boot("-S")
        rig.line.send(BYTES)
        new = await rig.successor()
        await rig.vmm.execute("cont")
        await rig.migrate(new)
        await rig.line.until("every byte back", lambda received: len(received) > len(BYTES))
        assert rig.line.received == b"A" + BYTES
