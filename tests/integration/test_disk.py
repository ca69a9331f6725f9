"""A guest drives a virtio disk by polling, and is updated while it does: real processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.framework.assemble import Image
from tests.framework.guest_rig import Rig
from tests.framework.rounds import goes_on
from tests.integration.conftest import MakeGuest
from vmm.devices.virtio.blk_image import RawImage
from vmm.errors import DeviceError

pytestmark = pytest.mark.needs_assembler

UPDATES = 3


def assert_refused(path: Path) -> None:
    """A third process cannot have the image."""
    with pytest.raises(DeviceError, match=r'^Failed to get "write" lock'):
        RawImage.open(str(path), "third", read_only=False)


async def test_guest_uses_its_disk_over_updates_and_the_image_is_never_free(
    accel: str, guest: MakeGuest, tmp_path: Path
) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(64 << 10))
    drive = f"if=none,id=d0,file={path},format=raw"
    kernel = guest("disk", Image.ELF32)
    options = ("-drive", drive, "-device", "virtio-blk-device,drive=d0", "-kernel", str(kernel))
    async with Rig(accel, *options) as rig:
        await rig.boot()
        await goes_on(rig.line)
        for _ in range(UPDATES):
            old = rig.vmm
            before = int.from_bytes(path.read_bytes()[:4], "little")
            await rig.update()
            assert_refused(path)
            await old.terminate()
            assert_refused(path)
            await goes_on(rig.line)
            assert int.from_bytes(path.read_bytes()[:4], "little") > before
    RawImage.open(str(path), "third", read_only=False).close()
