"""Holes of Cloud Hypervisor's local live upgrade (facts sheet of anchors, section 2), and ours."""

from __future__ import annotations

import os
import signal
import socket
import struct
from pathlib import Path

import pytest
from qemu.qmp import ExecuteError

from cpr.codec import FRAME_SIZE_MAX_BYTES, MAGIC
from cpr.messages import ANY_PROTOCOL, MessageKind
from tests.scoreboard.rig import BUILD, GUEST, Rig, ended, rig, status
from tools.lab.launcher import Launcher
from tools.lab.update import live_update
from vmm.devices.virtio.blk_image import RawImage
from vmm.errors import DeviceError


@pytest.mark.parametrize("fault", ["eof", "reset", "half-close", "short"])
async def test_ch1_a_last_acknowledgement_that_is_lost_leaves_one_owner(fault: str) -> None:
    """There both run the guest then, or the old one runs old CPU state on newer RAM."""
    async with rig() as r:
        new = await r.successor()
        await r.fault(new.process, f"target/before/SEND_RUNNING/{fault}")
        assert await r.update_ends(new) == "completed"
        assert await status(new.process) == "running"
        assert await status(r.old) == "postmigrate"
        with pytest.raises(ExecuteError):
            await r.old.execute("cont")
        await r.guest_goes_on()


async def test_ch2_after_a_roll_back_the_disk_is_still_locked_by_who_runs_the_guest(
    tmp_path: Path,
) -> None:
    """There locks are dropped before the state is sent, and not taken again."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(64 << 10))
    drive = f"if=none,id=d0,file={image},format=raw"
    async with rig("-drive", drive, "-device", "virtio-blk-device,drive=d0") as r:
        new = await r.successor()
        await r.fault(new.process, "target/before/SEND_LOADED/kill")
        assert await r.update_ends(new) == "failed"
        with pytest.raises(DeviceError, match=r'^Failed to get "write" lock'):
            RawImage.open(str(image), "third", read_only=False)
        await r.guest_goes_on()


async def test_ch3_a_source_that_hangs_is_given_up_at_a_deadline() -> None:
    """There the unix path has none."""
    async with rig() as r:
        new = await r.successor()
        await r.fault(r.old, "source/before/SEND_FDS/hang")
        await new.process.execute("migrate-set-parameters", {"x-cpr-timeout-ms": 500})
        await r.begin(new)
        assert await ended(new.process) == 1
        assert "did not answer within 500 ms" in new.process.log_path.read_text()
        os.kill(r.old.pid, signal.SIGCONT)
        await r.guest_goes_on()


async def test_ch4_a_receiver_answers_its_monitor_in_the_middle_of_an_update() -> None:
    """There a receive blocks the VMM's thread."""
    async with rig() as r:
        new = await r.successor()
        await r.fault(r.old, "source/before/CONNECT_MAIN/hang")
        await r.begin(new)
        assert await status(new.process) == "inmigrate"
        assert isinstance(await new.process.execute("query-migrate"), dict)
        await r.old.terminate()
        assert await ended(new.process) == 1


async def test_ch5_a_length_that_the_peer_made_up_is_refused_at_the_header(
    tmp_path: Path,
) -> None:
    """There it is allocated as it is. No byte of the body is ever sent here."""
    path = tmp_path / "cpr.sock"
    addr = f"addr.transport=socket,addr.type=unix,addr.path={path}"
    words = ["-incoming", f"unix:{tmp_path}/main.sock", "-incoming", f"cpr,{addr}"]
    async with Launcher(GUEST) as launcher:
        launched = await launcher.start_plain(BUILD, words)
        process = launched.process
        with socket.socket(socket.AF_UNIX) as liar:
            liar.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            liar.connect(str(path))
            size_bytes = FRAME_SIZE_MAX_BYTES - 1
            liar.send(
                struct.pack(
                    ">4sHHHHI16s",
                    MAGIC,
                    ANY_PROTOCOL,
                    MessageKind.HELLO,
                    0,
                    0,
                    size_bytes,
                    bytes(16),
                )
            )
            assert await ended(process) == 1
        assert "bytes announced; the limit is" in process.log_path.read_text()


async def test_ch6_open_sockets_travel_and_their_peers_notice_nothing() -> None:
    """There only memory fds do; taps are opened again from the configuration."""
    async with rig() as r:
        lines = r.serial.lines
        await r.update()
        await r.guest_goes_on()  # the heartbeats come over the one connection of the beginning
        assert r.serial.lines > lines


async def test_ch7_a_paused_guest_stays_paused_and_owned() -> None:
    async with rig() as r:
        await r.old.execute("stop")
        new = await r.successor()
        assert await r.update_ends(new) == "completed"
        assert await status(new.process) == "paused"
        await new.process.execute("cont")
        await r.guest_goes_on()


async def test_ch8_a_guest_is_updated_again_and_again() -> None:
    """There is no test of a chain there."""
    async with Launcher(GUEST) as launcher:
        current, serial = await launcher.start_first(BUILD)
        for _generation in range(5):
            new = await launcher.start_successor(BUILD)
            await live_update(current.process, new.process, new.sockets.migrate_arguments())
            await current.process.quit()
            current = new
        await Rig(launcher, current, serial).guest_goes_on()
