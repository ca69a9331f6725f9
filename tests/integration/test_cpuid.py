"""A guest's CPUs stay what they are: across updates, and to hosts that can do less."""

from __future__ import annotations

import sys

import pytest

from tests.framework.dialogue import story
from tests.framework.guest_rig import VMM, Rig, exit_status, query_migrate
from tests.framework.rounds import goes_on
from tests.integration.conftest import MakeGuest

# A host that lacks a feature that every 64-bit CPU has (FXSR, bit 24 of edx in leaf 1).
LESSER = """
import sys
from dataclasses import replace
from vmm.__main__ import main
from vmm.accel.kvm.system import KvmAccelerator
whole = KvmAccelerator.supported_cpuid
KvmAccelerator.supported_cpuid = lambda self: tuple(
    replace(entry, edx=entry.edx & ~(1 << 24)) if entry.function == 1 else entry
    for entry in whole(self)
)
sys.exit(main())
"""
LESSER_HOST = (sys.executable, "-c", LESSER)


@pytest.mark.needs_kvm
@pytest.mark.needs_assembler
async def test_host_that_lacks_a_feature_refuses_while_the_guest_runs_and_names_it(
    guest: MakeGuest,
) -> None:
    async with Rig("kvm", "-kernel", str(guest("real"))) as rig:
        await rig.boot()
        rig.command = LESSER_HOST
        new = await rig.successor()
        await rig.migrate(new)
        assert await story(rig.vmm) == ["MIGRATION setup", "MIGRATION failed"]  # never stopped
        reason = (await query_migrate(rig.vmm))["error-desc"]
        assert "CPUID leaf 0x1, index 0: edx of the guest is" in reason
        assert "this host does not have bits 0x1000000" in reason
        assert await exit_status(new.process) == 1
        await goes_on(rig.line)


@pytest.mark.needs_kvm
@pytest.mark.needs_assembler
async def test_guest_keeps_its_cpu_on_a_host_that_has_more_and_can_go_back(
    guest: MakeGuest,
) -> None:
    async with Rig("kvm", "-kernel", str(guest("real")), command=LESSER_HOST) as rig:
        await rig.boot()
        for command in (VMM, VMM, LESSER_HOST):  # the last one would refuse this host's own CPU
            rig.command = command
            await rig.update()
            await goes_on(rig.line)
