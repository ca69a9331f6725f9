"""Where Linux guests run, decided by what the machine says of itself."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tools.lab.errors import DeadlineError, EmulatorStalledError, LabError
from tools.lab.linux import host, rig
from tools.lab.linux.kernels import Kernel
from tools.lab.linux.rig import Rig, RigPlan
from tools.lab.load import parse_load

NO_KERNEL = Kernel("6.1", Path("/none"), Path("/none"))


def machine(root: Path, flags: str, module: str | None) -> Path:
    (root / "proc").mkdir()
    (root / "proc" / "cpuinfo").write_text(f"processor : 0\nflags\t: fpu {flags} sse\n")
    (root / "sys" / "module").mkdir(parents=True)
    if module is not None:
        (root / "sys" / "module" / module).mkdir()
    return root


@pytest.mark.parametrize(
    ("flags", "module", "real"),
    [
        ("vmx", "kvm_intel", True),
        ("svm", "kvm_amd", True),
        ("vmx", "kvm_pvm", False),
        ("vmx", "kvm_amd", False),
        ("vme", "kvm_intel", False),
        ("", None, False),
    ],
)
def test_hardware_is_a_flag_and_the_module_that_uses_it(
    tmp_path: Path, flags: str, module: str | None, *, real: bool
) -> None:
    root = machine(tmp_path, flags, module)
    assert host.has_hardware_virtualisation(root) is real
    assert (host.why_not_here(root) is None) <= real


def test_a_system_that_says_nothing_has_none(tmp_path: Path) -> None:
    assert not host.has_hardware_virtualisation(tmp_path)


def test_an_emulated_processor_gets_less_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    paces = {}
    for reason in (None, "no hardware"):
        monkeypatch.setattr(host, "why_not_here", lambda found=reason: found)
        paces[reason] = host.pace()
    direct, emulated = (parse_load(paces[reason].load) for reason in (None, "no hardware"))
    assert direct.tcp_writes_per_s > emulated.tcp_writes_per_s > 0
    assert direct.udp_pps > emulated.udp_pps > 0
    assert paces[None].tick_ms < paces["no hardware"].tick_ms


async def test_cases_run_in_a_process_of_this_machine() -> None:
    """The way there and back; that Linux boots is the nested test's."""
    bad: dict[str, object] = {
        "name": "x", "kernel": "6.1", "image": "bzImage", "ram_mib": 64, "vcpu_count": 1,
        "count": 1, "load": "nonsense", "tick_ms": 1,
    }  # fmt: skip
    plan = RigPlan(Path("/none"), NO_KERNEL, (), (bad,))
    with pytest.raises(LabError, match=r"the lab's process ended(?s:.)*'nonsense' is not udp="):
        async with host.running_direct(plan) as rig:
            await rig.next_report()


def test_neither_way_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "why_not_here", lambda: "no hardware")
    with pytest.raises(LabError, match=r"no hardware, and there is no QEMU.*fetch-peer qemu"):
        host.running_linux(RigPlan(Path("/none"), NO_KERNEL, (), ()))


def test_where_there_is_hardware_nothing_is_nested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "why_not_here", lambda: None)
    asked: list[RigPlan] = []
    monkeypatch.setattr(host, "running_direct", asked.append)
    plan = RigPlan(Path("/none"), NO_KERNEL, (), ())
    host.running_linux(plan)
    assert asked == [plan]


class Script:
    """A rig whose process is a shell's."""

    def __init__(self, text: str, *, emulated: bool) -> None:
        self._text, self._emulated = text, emulated

    async def __aenter__(self) -> Rig:
        self._process = await asyncio.create_subprocess_exec(
            "sh", "-c", self._text, stdout=asyncio.subprocess.PIPE
        )
        return Rig(self._process, emulated=self._emulated)

    async def __aexit__(self, *_error: object) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


async def test_an_emulator_that_takes_no_processor_time_has_stalled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rig, "STALL_MS", 500)
    async with Script("echo hello; exec tail -f /dev/null", emulated=True) as stalled:
        with pytest.raises(EmulatorStalledError, match=r"no processor time(?s:.)*hello"):
            await stalled.next_report()


@pytest.mark.parametrize(
    ("text", "emulated"),
    [("while :; do :; done", True), ("exec tail -f /dev/null", False)],
    ids=["busy", "not emulated"],
)
async def test_a_process_that_works_or_may_wait_has_not(
    monkeypatch: pytest.MonkeyPatch, text: str, *, emulated: bool
) -> None:
    monkeypatch.setattr(rig, "STALL_MS", 100)
    async with Script(text, emulated=emulated) as silent:
        with pytest.raises(DeadlineError):
            await silent.next_report(1000)
