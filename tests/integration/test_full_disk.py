"""No room on a disk, for whatever a VMM writes to files: the guest and its updates go on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.framework.assemble import Image
from tests.framework.guest_rig import Rig
from tests.framework.rounds import ROUNDS, goes_on
from tests.integration.conftest import MakeGuest

DISK_BYTES = 64 << 10
DEADLINE_S = 60


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system with one page of room (mount(8) of a tmpfs)."""
    place = tmp_path / "small"
    place.mkdir()
    room = f"size={os.sysconf('SC_PAGE_SIZE')}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", room, "none", place], check=True)
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.needs_assembler
async def test_output_that_finds_no_room_is_discarded_and_the_guest_goes_on(
    accel: str, guest: MakeGuest
) -> None:
    full = ("-chardev", "file,id=full,path=/dev/full", "-device", "isa-debugcon,chardev=full")
    async with Rig(accel, *full, "-kernel", str(guest("both"))) as rig:
        await rig.boot()
        for _ in range(2):
            await rig.line.more(b"B", ROUNDS)
            await rig.update()
        await rig.line.more(b"B", ROUNDS)
        said = rig.vmm.log_path.read_text()
    assert "writing to '/dev/full' failed; its output is discarded" in said


@pytest.mark.needs_assembler
@pytest.mark.needs_root
async def test_write_to_a_full_disk_is_an_error_of_the_guest_s_request_and_nothing_else(
    accel: str, guest: MakeGuest, small: Path
) -> None:
    """The guest says X for a round that failed; when there is room again it says B."""
    filler = small / "filler"
    filler.write_bytes(b"x" * os.sysconf("SC_PAGE_SIZE"))
    path = small / "disk.img"
    path.touch()
    os.truncate(path, DISK_BYTES)  # sparse: it takes no room
    drive = f"if=none,id=d0,file={path},format=raw"
    kernel = str(guest("disk", Image.ELF32))
    options = ("-drive", drive, "-device", "virtio-blk-device,drive=d0", "-kernel", kernel)
    async with Rig(accel, *options) as rig:
        await rig.boot()
        await rig.line.more(b"X", ROUNDS)
        await rig.update()
        await rig.line.more(b"X", ROUNDS)
        assert b"B" not in rig.line.received
        filler.unlink()
        await rig.line.more(b"B", ROUNDS)
        await rig.update()
        rig.line.received[:] = b"A"  # from here on no round may fail
        await goes_on(rig.line)


@pytest.mark.needs_root
def test_pid_file_without_room_is_a_clear_error_and_leaves_nothing(small: Path) -> None:
    (small / "filler").write_bytes(b"x" * os.sysconf("SC_PAGE_SIZE"))
    command = (sys.executable, "-m", "vmm", "-pidfile", str(small / "pid"), "-S")
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 1
    assert f"cannot create PID file {small / 'pid'}: No space left on device" in done.stderr
    assert [path.name for path in small.iterdir()] == ["filler"]
