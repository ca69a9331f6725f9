from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.framework.scripted_accel import SCRIPT_DEADLINE_S, NoBus, ScriptedVcpu
from vmm.accel.base import StopReason, VcpuStop
from vmm.errors import AccelError
from vmm.vcputhread import ENTER_LIMIT_MS, VcpuThreads

HALT = VcpuStop(StopReason.HALTED)


class RehearsedVcpu(ScriptedVcpu):
    def __init__(self) -> None:
        super().__init__()
        self.rehearsed_on: list[int] = []
        self.error: Exception | None = None

    def rehearse(self) -> None:
        self.rehearsed_on.append(threading.get_native_id())
        if self.error is not None:
            raise self.error


class Rig:
    """Threads over scripted vCPUs, and what they reported."""

    def __init__(self, *vcpus: ScriptedVcpu) -> None:
        self.vcpus = vcpus
        self.stops: asyncio.Queue[tuple[int, VcpuStop]] = asyncio.Queue()
        self.threads = VcpuThreads(
            vcpus,
            NoBus(),
            asyncio.get_running_loop(),
            lambda index, stop: self.stops.put_nowait((index, stop)),
            "kvm",
        )

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_error: object) -> None:
        self.threads.end()


def name_of(thread_id: int) -> str:
    return Path(f"/proc/self/task/{thread_id}/comm").read_text().strip()


def entered(vcpus: Iterable[ScriptedVcpu]) -> None:
    for vcpu in vcpus:
        assert vcpu.inside.acquire(timeout=SCRIPT_DEADLINE_S)


async def test_threads_have_the_names_that_qemu_gives_them() -> None:
    with Rig(ScriptedVcpu(0), ScriptedVcpu(1)) as rig:
        assert [name_of(i) for i in rig.threads.ids] == ["CPU 0/KVM", "CPU 1/KVM"]


async def test_resume_returns_at_once_when_every_vcpu_is_halted() -> None:
    with Rig(ScriptedVcpu(0), ScriptedVcpu(1)) as rig:
        for thread in rig.threads:
            thread.halted = True
        began_s = time.monotonic()
        for _round in range(100):
            rig.threads.resume()
            rig.threads.stop()
        lasted_ms = (time.monotonic() - began_s) * 1000
        assert [vcpu.entered for vcpu in rig.vcpus] == [0, 0]
        assert lasted_ms < 100 * ENTER_LIMIT_MS


async def test_resume_does_not_wait_for_ever_for_a_thread_that_does_not_come() -> None:
    with Rig(ScriptedVcpu()) as rig:
        (thread,) = rig.threads
        thread.make_way(time.monotonic() + 0.001)  # nobody was told to run
        rig.threads.resume()
        entered(rig.vcpus)


async def test_every_vcpu_runs_after_resume_and_none_after_stop() -> None:
    with Rig(ScriptedVcpu(0), ScriptedVcpu(1)) as rig:
        for round_number in (1, 2, 3):
            rig.threads.resume()
            entered(rig.vcpus)
            rig.threads.stop()
            assert [vcpu.entered for vcpu in rig.vcpus] == [round_number] * 2


async def test_stop_without_resume_returns_at_once() -> None:
    with Rig(ScriptedVcpu()) as rig:
        rig.threads.stop()
        rig.threads.stop()
        assert rig.vcpus[0].entered == 0


async def test_halted_vcpu_stops_and_does_not_run_past_hlt_when_resumed() -> None:
    with Rig(ScriptedVcpu(script=[HALT])) as rig:
        rig.threads.resume()
        entered(rig.vcpus)
        rig.threads.stop()
        assert [thread.halted for thread in rig.threads] == [True]
        rig.threads.resume()
        rig.threads.stop()
        assert rig.vcpus[0].entered == 1


async def test_cleared_halt_lets_the_vcpu_run_again() -> None:
    with Rig(ScriptedVcpu(script=[HALT])) as rig:
        rig.threads.resume()
        entered(rig.vcpus)
        rig.threads.stop()
        for thread in rig.threads:
            thread.halted = False
        rig.threads.resume()
        entered(rig.vcpus)
        rig.threads.stop()
        assert rig.vcpus[0].entered == 2


@pytest.mark.parametrize("reason", [StopReason.SHUTDOWN, StopReason.ERROR])
async def test_guest_that_stops_by_itself_is_reported_once_and_can_be_stopped(
    reason: StopReason,
) -> None:
    stop = VcpuStop(reason, "why")
    with Rig(ScriptedVcpu(3, script=[stop])) as rig:
        rig.threads.resume()
        assert await asyncio.wait_for(rig.stops.get(), SCRIPT_DEADLINE_S) == (3, stop)
        rig.threads.stop()
        assert rig.stops.empty()


async def test_exception_on_a_vcpu_thread_is_an_error_stop_with_its_text() -> None:
    with Rig(ScriptedVcpu(script=[ValueError("broken device")])) as rig:
        rig.threads.resume()
        _index, stop = await asyncio.wait_for(rig.stops.get(), SCRIPT_DEADLINE_S)
        assert stop == VcpuStop(StopReason.ERROR, "ValueError: broken device")
        rig.threads.stop()


async def test_thread_ids_are_kernel_thread_ids() -> None:
    with Rig(ScriptedVcpu(0), ScriptedVcpu(1)) as rig:
        ids = [thread.thread_id for thread in rig.threads]
        assert len(set(ids)) == 2
        assert all(number > 0 for number in ids)


async def test_rehearsal_runs_on_the_vcpu_thread_and_its_error_comes_back() -> None:
    with Rig(RehearsedVcpu()) as rig:
        rig.threads.rehearse()
        vcpu = rig.vcpus[0]
        assert isinstance(vcpu, RehearsedVcpu)
        (thread,) = rig.threads
        assert vcpu.rehearsed_on == [thread.thread_id]
        vcpu.error = AccelError("cold")
        with pytest.raises(AccelError, match="cold"):
            rig.threads.rehearse()
        rig.threads.resume()
        entered(rig.vcpus)
        rig.threads.stop()
