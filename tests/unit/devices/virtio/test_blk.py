from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from cpr.errors import StateError
from tests.framework.virtio_driver import Buffer, Deferred, Driver, FakeRam, Line, rig
from vmm.devices.virtio import blk
from vmm.devices.virtio.blk import VirtioBlk
from vmm.devices.virtio.blk_image import RawImage
from vmm.devices.virtio.features import VERSION_1
from vmm.devices.virtio.memory import GuestMemory
from vmm.devices.virtio.mmio import CONFIG
from vmm.errors import DeviceError

SECTORS = 64
REQUEST, DATA, STATUS = 0x8000, 0x9000, 0x8100


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(bytes(range(256)) * 2 * SECTORS)
    return path


@pytest.fixture
def image(path: Path) -> Iterator[RawImage]:
    image = RawImage.open(str(path), "d0", read_only=False)
    yield image
    image.close()


def disk_rig(image: RawImage, ram: FakeRam | None = None, serial: str = "") -> Driver:
    def make(memory: GuestMemory, line: Line, loop: Deferred) -> VirtioBlk:
        return VirtioBlk(image, memory, line, loop, serial=serial)

    return rig(make, ram or FakeRam())


@pytest.fixture
def driver(image: RawImage) -> Driver:
    driver = disk_rig(image, serial="serial-1")
    driver.set_up(VERSION_1 | blk.FLUSH)
    return driver


def request(
    driver: Driver, kind: int, sector: int = 0, *, out: bytes = b"", into: int = 0
) -> tuple[int, bytes]:
    """One request with all its parts apart; returns status and what was read."""
    driver.ram.write(REQUEST, struct.pack("<IIQ", kind, 0, sector))
    driver.ram.write(STATUS, b"\x77")
    buffers = [Buffer(REQUEST, 7), Buffer(REQUEST + 7, 9)]
    if out:
        driver.ram.write(DATA, out)
        buffers.append(Buffer(DATA, len(out)))
    if into:
        buffers += [Buffer(DATA, into - 1, True), Buffer(DATA + into - 1, 1, True)]
    driver.queues[0].add(*buffers, Buffer(STATUS, 1, True))
    driver.kick(0)
    assert len(driver.queues[0].reap()) == 1
    return driver.ram.read(STATUS, 1)[0], driver.ram.read(DATA, into)


def test_capacity_and_limits_are_in_configuration_space(driver: Driver) -> None:
    assert driver.read(CONFIG, 8) == SECTORS
    assert driver.read(CONFIG + 12) == blk.SEGMENTS_MAX
    assert driver.read(CONFIG + 20) == 512
    assert driver.read(CONFIG + 34, 2) == 1
    assert driver.read(CONFIG + 36) == blk.RANGE_SECTORS_MAX
    assert driver.read(CONFIG + 56, 1) == 1


def test_written_sectors_are_read_back_and_are_in_the_file(driver: Driver, path: Path) -> None:
    data = os.urandom(1024)
    assert request(driver, blk.TYPE_OUT, 3, out=data)[0] == blk.STATUS_OK
    assert request(driver, blk.TYPE_IN, 3, into=1024) == (blk.STATUS_OK, data)
    assert request(driver, blk.TYPE_FLUSH)[0] == blk.STATUS_OK
    assert path.read_bytes()[3 * 512 : 5 * 512] == data


def test_without_flush_feature_writes_work(image: RawImage) -> None:
    driver = disk_rig(image)
    driver.set_up()
    assert request(driver, blk.TYPE_OUT, out=b"a" * 512)[0] == blk.STATUS_OK


@pytest.mark.parametrize(
    ("sector", "size"), [(SECTORS, 512), (SECTORS - 1, 1024), (1 << 63, 512), (0, 513)]
)
def test_access_beyond_the_disk_or_of_part_of_a_sector_fails(
    driver: Driver, sector: int, size: int
) -> None:
    assert request(driver, blk.TYPE_IN, sector, into=size)[0] == blk.STATUS_IOERR
    assert request(driver, blk.TYPE_OUT, sector, out=bytes(size))[0] == blk.STATUS_IOERR


def test_serial_is_padded_to_twenty_bytes(driver: Driver) -> None:
    assert request(driver, blk.TYPE_GET_ID, into=20) == (0, b"serial-1".ljust(20, b"\0"))


def test_unknown_request_is_unsupported(driver: Driver) -> None:
    assert request(driver, 99)[0] == blk.STATUS_UNSUPP


@pytest.mark.parametrize("flags", [0, 1])
def test_write_zeroes_zeroes_exactly_its_range(driver: Driver, path: Path, flags: int) -> None:
    before = path.read_bytes()
    out = struct.pack("<QII", 2, 3, flags)
    assert request(driver, blk.TYPE_WRITE_ZEROES, out=out)[0] == blk.STATUS_OK
    assert path.read_bytes() == before[:1024] + bytes(3 * 512) + before[5 * 512 :]


def test_write_zeroes_works_where_the_file_system_cannot(
    driver: Driver, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RawImage, "_fallocate", lambda *_arguments: False)
    before = path.read_bytes()
    out = struct.pack("<QII", 0, 4, 0)
    assert request(driver, blk.TYPE_WRITE_ZEROES, out=out)[0] == blk.STATUS_OK
    assert path.read_bytes() == bytes(4 * 512) + before[4 * 512 :]


def test_discard_keeps_the_size_and_what_is_around(driver: Driver, path: Path) -> None:
    before = path.read_bytes()
    out = struct.pack("<QII", 8, 8, 0)
    assert request(driver, blk.TYPE_DISCARD, out=out)[0] == blk.STATUS_OK
    after = path.read_bytes()
    assert len(after) == len(before)
    assert after[: 8 * 512] == before[: 8 * 512]
    assert after[16 * 512 :] == before[16 * 512 :]


@pytest.mark.parametrize("kind", [blk.TYPE_DISCARD, blk.TYPE_WRITE_ZEROES])
def test_range_with_unknown_flags_or_of_wrong_size_is_unsupported(
    driver: Driver, kind: int
) -> None:
    unknown = struct.pack("<QII", 0, 1, 0x80)
    assert request(driver, kind, out=unknown)[0] == blk.STATUS_UNSUPP
    assert request(driver, kind, out=bytes(17))[0] == blk.STATUS_UNSUPP


def test_read_only_disk_says_so_and_refuses_writes(path: Path) -> None:
    image = RawImage.open(str(path), "d0", read_only=True)
    driver = disk_rig(image)
    assert driver.offered() & blk.RO
    assert not driver.offered() & blk.DISCARD
    driver.set_up()
    before = path.read_bytes()
    assert request(driver, blk.TYPE_OUT, out=bytes(512))[0] == blk.STATUS_IOERR
    assert request(driver, blk.TYPE_IN, into=512)[0] == blk.STATUS_OK
    assert path.read_bytes() == before
    image.close()


def test_image_that_shrank_is_an_error_of_the_request_only(driver: Driver, path: Path) -> None:
    os.truncate(path, 512)
    assert request(driver, blk.TYPE_IN, 4, into=512)[0] == blk.STATUS_IOERR
    assert request(driver, blk.TYPE_IN, 0, into=512)[0] == blk.STATUS_OK


@pytest.mark.parametrize("buffers", [[Buffer(REQUEST, 16)], [Buffer(REQUEST, 15), Buffer(1, 1)]])
def test_request_without_header_or_status_breaks_the_device(
    driver: Driver, buffers: list[Buffer]
) -> None:
    driver.queues[0].add(*buffers)
    driver.kick(0)
    assert driver.needs_reset


def test_second_user_is_refused_with_qemus_text(image: RawImage, path: Path) -> None:
    with pytest.raises(DeviceError, match=r'^Failed to get "write" lock\nIs another process using'):
        RawImage.open(str(path), "d1", read_only=False)
    with pytest.raises(DeviceError, match=r'^Failed to get shared "write" lock\n'):
        RawImage.open(str(path), "d1", read_only=True)
    image.close()
    RawImage.open(str(path), "d1", read_only=False).close()


def test_readers_share_an_image_and_keep_writers_away(path: Path) -> None:
    first = RawImage.open(str(path), "d0", read_only=True)
    second = RawImage.open(str(path), "d1", read_only=True)
    with pytest.raises(DeviceError, match='Failed to get "write" lock'):
        RawImage.open(str(path), "d2", read_only=False)
    first.close()
    second.close()


def test_lock_travels_with_the_description_and_is_never_free(image: RawImage, path: Path) -> None:
    adopted = RawImage.adopt(os.dup(image.fileno()), "d0", str(path), read_only=False)
    adopted.lock()
    image.close()
    with pytest.raises(DeviceError, match="lock"):
        RawImage.open(str(path), "d1", read_only=False)
    adopted.close()


def test_device_does_not_start_while_another_description_has_the_lock(
    image: RawImage, path: Path
) -> None:
    other = RawImage.adopt(os.open(path, os.O_RDWR), "d0", str(path), read_only=False)
    driver = Driver(
        FakeRam(), VirtioBlk(other, FakeRam().memory(), Line(), Deferred()), Line(), Deferred()
    )
    with pytest.raises(DeviceError, match='"write" lock'):
        driver.device.start()
    image.close()
    driver.device.start()
    with pytest.raises(DeviceError, match='"write" lock'):
        RawImage.open(str(path), "d1", read_only=False)
    other.close()


def test_adopted_fd_must_have_the_right_access_mode(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    with pytest.raises(DeviceError, match="access mode"):
        RawImage.adopt(fd, "d0", str(path), read_only=False)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    odd.write_bytes(b"x" * 513)
    with pytest.raises(DeviceError, match="multiple of 512"):
        RawImage.open(str(odd), "d0", read_only=True)
    with pytest.raises(DeviceError, match="neither a regular file"):
        RawImage.open("/dev/null", "d0", read_only=True)
    with pytest.raises(DeviceError, match="Could not open"):
        RawImage.open(str(tmp_path / "none"), "d0", read_only=True)


def test_disk_of_another_size_is_refused(driver: Driver, tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_bytes(bytes(512))
    image = RawImage.open(str(path), "d0", read_only=False)
    with pytest.raises(StateError, match="64 sectors at the source and 1 here"):
        disk_rig(image).device.load(driver.device.save())
    image.close()


def test_closed_image_has_no_fd(path: Path) -> None:
    image = RawImage.open(str(path), "d0", read_only=False)
    image.close()
    image.close()
    with pytest.raises(DeviceError, match="closed"):
        image.fileno()
