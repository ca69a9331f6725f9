"""A running VMM, before and after an update: what its threads have given up."""

from __future__ import annotations

from pathlib import Path

from tools.lab.argv import Build, GuestSpec
from tools.lab.launcher import Launcher
from tools.lab.options import own_vmm
from tools.lab.process import VmmProcess
from tools.lab.update import live_update

GUEST = GuestSpec(ram_bytes=16 << 20, pages=16)
FILTERED = "2"  # SECCOMP_MODE_FILTER


def confinement(process: VmmProcess) -> dict[str, tuple[str, ...]]:
    """(NoNewPrivs, CapBnd, Seccomp, Seccomp_filters) of each thread, by its name."""
    found = {}
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        lines = (line.partition(":") for line in (task / "status").read_text().splitlines())
        fields = {name: value.strip() for name, _, value in lines}
        names = ("NoNewPrivs", "CapBnd", "Seccomp", "Seccomp_filters")
        found[f"{fields['Name']} {task.name}"] = tuple(fields[name] for name in names)
    return found


def assert_confined(process: VmmProcess, vcpu_ids: set[int], bounding_set: str) -> None:
    for thread, (no_new_privs, bounding, mode, filters) in confinement(process).items():
        if thread.startswith("kvm-"):
            continue  # the kernel's own, for this VM
        is_vcpu = int(thread.rpartition(" ")[2]) in vcpu_ids
        assert (no_new_privs, mode) == ("1", FILTERED), thread
        assert int(filters) == (2 if is_vcpu else 1), thread
        assert bounding == bounding_set, thread


def expected_bounding_set() -> str:
    """Empty, where we may change it at all (CAP_SETPCAP, number 8)."""
    lines = (line.partition(":") for line in Path("/proc/self/status").read_text().splitlines())
    fields = {name: value.strip() for name, _, value in lines}
    return "0" * 16 if int(fields["CapEff"], 16) >> 8 & 1 else fields["CapBnd"]


async def vcpu_ids(process: VmmProcess) -> set[int]:
    return {cpu["thread-id"] for cpu in await process.execute("query-cpus-fast")}


async def test_every_thread_is_confined_and_a_vcpu_more_than_the_rest(accel: str) -> None:
    capabilities = expected_bounding_set()
    async with Launcher(GUEST) as launcher:
        build = Build(own_vmm(), accel)
        old, serial = await launcher.start_first(build)
        assert_confined(old.process, await vcpu_ids(old.process), capabilities)
        new = await launcher.start_successor(build)
        await live_update(old.process, new.process, new.sockets.migrate_arguments())
        assert_confined(new.process, await vcpu_ids(new.process), capabilities)
        await serial.wait_lines(3)
