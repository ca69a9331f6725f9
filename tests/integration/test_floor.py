"""The floor hands a real guest to and fro between two bare processes."""

from __future__ import annotations

import time

import pytest

from tools.lab.argv import GuestSpec
from tools.lab.errors import LaunchError
from tools.lab.floor import Floor
from tools.lab.procfs import child_pids

RAM_BYTES = 16 << 20


async def test_guest_goes_to_and_fro_unharmed_and_its_gap_is_that_of_the_hand_over(
    accel: str,
) -> None:
    children = set(child_pids("self"))
    async with Floor(GuestSpec(ram_bytes=RAM_BYTES, heartbeat_ms=0), accel) as bare:
        before = bare.report()
        began_ns = time.monotonic_ns()
        gaps_ns = [await bare.hand_over() for _ in range(3)]
        lasted_ns = time.monotonic_ns() - began_ns
        after = bare.report()
    assert after.sequence > before.sequence
    assert after.errors == 0
    assert [cpu.boots for cpu in after.vcpus] == [1]
    assert all(0 < gap_ns <= after.vcpus[0].max_gap_ns for gap_ns in gaps_ns)
    assert sum(gaps_ns) < lasted_ns
    assert set(child_pids("self")) == children


@pytest.mark.needs_kvm
async def test_every_vcpu_goes_with_the_guest() -> None:
    spec = GuestSpec(ram_bytes=RAM_BYTES, vcpu_count=2, heartbeat_ms=0)
    async with Floor(spec, "kvm") as bare:
        before = bare.report()
        await bare.hand_over()
        after = bare.report()
    assert len(after.vcpus) == 2
    for old, new in zip(before.vcpus, after.vcpus, strict=True):
        assert new.sequence > old.sequence
        assert new.errors == new.clock_backwards == 0


async def test_side_that_cannot_start_is_reported_with_its_own_words() -> None:
    bare = Floor(GuestSpec(ram_bytes=RAM_BYTES, heartbeat_ms=0), "abacus")
    with pytest.raises(LaunchError, match="invalid accelerator abacus"):
        await bare.__aenter__()
