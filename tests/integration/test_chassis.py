"""What a successor makes before anybody offers it a guest."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.framework.no_events import NoEvents
from vmm.accel import open_accel
from vmm.accel.kick import install_kick_handler
from vmm.chassis import Chassis
from vmm.config import AccelOptions, VmmConfig
from vmm.errors import AccelError

CPUID_WORDS = 7
ACCELS = [pytest.param("kvm", marks=pytest.mark.needs_kvm), "unicorn"]


def make(accel_name: str, vcpu_count: int = 1) -> Chassis:
    install_kick_handler()
    accel, _ = open_accel([AccelOptions(accel_name)])
    config = VmmConfig(vcpu_count=vcpu_count)
    return Chassis(config, accel, asyncio.get_running_loop(), NoEvents())


def open_fds() -> set[str]:
    return {str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}


@pytest.mark.parametrize("accel", ACCELS)
async def test_state_of_a_chassis_loads_again(accel: str) -> None:
    chassis = make(accel)
    states = dict(chassis.save())
    assert {name: type(state) for name, state in states.items()} == chassis.section_types()
    chassis.load(states)
    chassis.close()


@pytest.mark.parametrize("accel", ACCELS)
async def test_cpus_like_ours_are_kept(accel: str) -> None:
    chassis = make(accel)
    vm = chassis.vm
    for cpu in (None, chassis.cpu_description):
        assert chassis.cpu_problems(cpu) == ()
        chassis.refit(cpu)
        assert chassis.vm is vm
    chassis.close()


async def test_a_software_cpu_is_not_made_again_for_a_guest_from_kvm() -> None:
    chassis = make("unicorn")
    vm = chassis.vm
    assert chassis.cpu_problems([[0] * CPUID_WORDS]) == ()
    chassis.refit([[0] * CPUID_WORDS])
    assert chassis.vm is vm
    chassis.close()


@pytest.mark.needs_kvm
async def test_a_guest_with_other_cpus_gets_a_vm_that_has_them() -> None:
    chassis = make("kvm", vcpu_count=2)
    first, threads = chassis.vm, chassis.threads.ids
    assert chassis.cpu_description is not None
    fewer = [list(leaf) for leaf in chassis.cpu_description]
    place = next(i for i, leaf in enumerate(fewer) if leaf[0] == 1)
    assert len(fewer[place]) == CPUID_WORDS
    fewer[place][5] &= ~(1 << 13)  # ecx of leaf 1: no CMPXCHG16B
    assert fewer != chassis.cpu_description

    assert chassis.cpu_problems(fewer) == ()
    chassis.refit(fewer)

    assert chassis.vm is not first
    assert chassis.cpu_description == fewer
    assert not set(threads) & set(chassis.threads.ids)
    assert chassis.threads.ids == tuple(thread.thread_id for thread in chassis.threads)
    chassis.load(dict(chassis.save()))
    chassis.close()


@pytest.mark.needs_kvm
async def test_cpus_that_this_host_cannot_have_are_named() -> None:
    chassis = make("kvm")
    assert chassis.cpu_description is not None
    more = [list(leaf) for leaf in chassis.cpu_description]
    place = next(i for i, leaf in enumerate(more) if leaf[0] == 7 and leaf[1] == 0)
    more[place][4] = 0xFFFF_FFFF  # ebx of leaf 7: every feature there ever was
    assert "7" in " ".join(chassis.cpu_problems(more))
    chassis.close()


async def test_what_the_accelerator_cannot_make_leaves_nothing_open() -> None:
    make("unicorn").close()  # what a library opens once
    before = open_fds()
    with pytest.raises(AccelError, match="1 vCPU, not 2"):
        make("unicorn", vcpu_count=2)
    assert open_fds() == before
