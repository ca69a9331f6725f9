"""The shipped ELF is what its source gives."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import pytest

from tests.unit.boot.bare_machine import BareMachine, BareRam
from vmm.boot import direct
from vmm.boot.guest import report
from vmm.boot.image import builtin_guest_elf, plan_boot
from vmm.config import VmmConfig
from vmm.devices.bus import SystemBus
from vmm.devices.clock import Clock

BUILD_DEADLINE_S = 100
GUEST_FILES = (
    "guest.c",
    "start.S",
    "guest.ld",
    "layout.h",
    "cmdline.c",
    "cmdline.h",
    "net.h",
    "net_wire.h",
    "net_virtio.h",
    *(f"net_{part}.c" for part in ("virtio", "input", "udp", "flow", "tcp", "tcp_out", "stream")),
    "net_wire.c",
    "build.sh",
    "guest.elf",
    "guest.record",
)


def _guest_text(name: str) -> str:
    return resources.files("vmm.boot.guest").joinpath(name).read_text()


def _record(text: str) -> dict[str, str]:
    return dict(line.split(" ", 1) for line in text.splitlines())


def test_every_file_of_the_guest_is_package_data() -> None:
    files = resources.files("vmm.boot.guest")
    assert all(files.joinpath(name).is_file() for name in GUEST_FILES)


def test_shipped_elf_has_the_recorded_digest() -> None:
    recorded = _record(_guest_text("guest.record"))
    assert hashlib.sha256(builtin_guest_elf()).hexdigest() == recorded["sha256"]


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed: nothing to rebuild")
def test_rebuilt_elf_is_identical_or_with_another_compiler_runs_alike(tmp_path: Path) -> None:
    with resources.as_file(resources.files("vmm.boot.guest").joinpath("build.sh")) as script:
        subprocess.run(["/bin/sh", script, tmp_path], check=True, timeout=BUILD_DEADLINE_S)
    shipped = _record(_guest_text("guest.record"))
    rebuilt = _record((tmp_path / "guest.record").read_text())
    if {**rebuilt, "sha256": ""} == {**shipped, "sha256": ""}:
        assert rebuilt["sha256"] == shipped["sha256"], "guest.elf is not built from this source"
    ram = BareRam(4 << 20)
    config = VmmConfig(
        memory_size_bytes=ram.size_bytes, kernel=tmp_path / "guest.elf", append="pages=32"
    )
    plan = plan_boot(config)
    plan.write_to(ram)
    bus = SystemBus()
    bus.attach(Clock(1))
    machine = BareMachine(ram, bus, plan)
    machine.run(50_000)
    found = machine.report()
    assert found.vcpus[0].pass_number > 2
    assert report.sequence_problems(found) == []
    assert report.verify_stamps(ram.read, found, ram.size_bytes) == []


def test_header_and_python_agree_on_every_shared_number() -> None:
    header = dict(
        re.findall(
            r"^#define (\w+) (0x[0-9a-f]+|\d+)(?:ull)?\b", _guest_text("layout.h"), re.MULTILINE
        )
    )
    numbers = {name: int(value, 0) for name, value in header.items()}
    shared = {
        "BOOT_INFO_MAGIC": direct.BOOT_INFO_MAGIC,
        "MAX_VCPUS": direct.MAX_VCPUS,
        **{
            name: getattr(report, name)
            for name in (
                *("PAGE_SIZE_BYTES", "PC_HOLE_END", "REPORT_ADDRESS", "SLOT_SIZE_BYTES"),
                *("WORK_START", "REPORT_MAGIC", "STAMP_MAGIC", "GAP_CHECK_MAGIC"),
                *("GAP_BUCKET_SHIFT", "GAP_ENTRIES"),
            )
        },
    }
    assert {name: numbers[name] for name in shared} == shared
    assert report.MAX_VCPUS == direct.MAX_VCPUS
