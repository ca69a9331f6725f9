"""What `cpr-drill --guest linux` takes, and what it makes of a kernel of the user's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.boot.bzimages import bzimage
from tools import drill
from tools.lab.errors import LabError
from tools.lab.linux.kernels import own_kernel


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--kernel", "/k"], "--kernel needs --guest linux"),
        (["--initrd", "/i"], "--initrd needs --guest linux"),
        (["--guest", "linux", "--initrd", "/i"], "--initrd needs --kernel"),
        (["--guest", "linux", "--pages", "3"], "--pages is for the built-in guest"),
        (["--guest", "linux", "--cliff"], "--cliff is for the built-in guest"),
        (["--guest", "linux", "--faults", "all"], "--faults is for the built-in guest"),
        (["--guest", "linux", "--html", "x"], "--html is for the built-in guest"),
        (["--guest", "linux", "--old", "x"], "--old is for the built-in guest"),
        (["--guest", "linux", "--accel", "unicorn"], "--accel unicorn: Linux needs kvm"),
    ],
)
def test_options_that_do_not_go_together_are_refused_by_name(
    words: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert drill.main(words) == drill.EXIT_USAGE
    assert problem in capsys.readouterr().err


def image_with_version(text: bytes) -> bytes:
    data = bytearray(bzimage())
    at = 0x280
    data[0x20E:0x210] = (at - 0x200).to_bytes(2, "little")
    data[at : at + len(text)] = text
    return bytes(data)


def test_kernel_says_its_version_and_its_modules_lie_where_distributions_put_them(
    tmp_path: Path,
) -> None:
    image = tmp_path / "boot" / "vmlinuz"
    image.parent.mkdir()
    image.write_bytes(image_with_version(b"6.1.0-49-amd64 (builder) #1\0"))
    kernel = own_kernel(image, tmp_path / "initrd", tmp_path / "busybox")
    assert (kernel.version, kernel.root) == ("6.1.0-49-amd64", tmp_path)
    assert (kernel.initrd, kernel.busybox) == (tmp_path / "initrd", tmp_path / "busybox")
    with pytest.raises(LabError, match=r"has no modules of kernel 6\.1\.0-49-amd64"):
        kernel.modules(("virtio_mmio",))


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "No such file or directory"), (b"MZ", "is no Linux kernel")],
)
def test_what_is_no_kernel_is_refused(tmp_path: Path, content: bytes | None, problem: str) -> None:
    image = tmp_path / "vmlinuz"
    if content is not None:
        image.write_bytes(content)
    with pytest.raises(LabError, match=problem):
        own_kernel(image, None, tmp_path)
