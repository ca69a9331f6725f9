"""The instrument on both VMMs: what it reports is what the project's figures rest on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tools.lab.cache import peer_qemu
from tools.lab.options import own_vmm
from tools.peer.argv import MIB, our_build, qemu_build
from tools.peer.compare import measure_gap
from tools.peer.session import GapSample


def check_gap_holds_the_switch(samples: tuple[GapSample, ...]) -> None:
    """Nothing is timed against a limit: the machine may be busy, but not inconsistent."""
    for sample in samples:
        assert 0 < sample.gap_ms < sample.total_ms
        assert sample.gap_ms >= (sample.switch_ms or 0)
        if sample.stop_resume_ms is not None:
            # RESUME is announced before, and STOP after, the guest stands still.
            assert sample.gap_ms + sample.resolution_ms >= sample.stop_resume_ms / 2


@pytest.mark.needs_peer_qemu
def test_gap_of_a_real_qemu_holds_its_switch(socket_dir: Path) -> None:
    build = qemu_build([str(peer_qemu())], "tcg")
    samples = asyncio.run(measure_gap(build, ram_bytes=64 * MIB, run_dir=socket_dir, updates=2))
    assert len(samples) == 2
    check_gap_holds_the_switch(samples)


def test_our_vmm_goes_through_the_same_measurement(accel: str, socket_dir: Path) -> None:
    build = our_build(own_vmm(), accel)
    samples = asyncio.run(measure_gap(build, ram_bytes=64 * MIB, run_dir=socket_dir, updates=2))
    assert len(samples) == 2
    check_gap_holds_the_switch(samples)
