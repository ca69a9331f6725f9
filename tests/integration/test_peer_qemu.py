"""The instrument on a real QEMU: what it reports is what the project's figures rest on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.needs import peer_qemu
from tools.peer.argv import MIB, qemu_build
from tools.peer.compare import measure_gap


@pytest.mark.needs_peer_qemu
def test_gap_of_a_real_qemu_contains_its_stop_to_resume_time(socket_dir: Path) -> None:
    build = qemu_build([str(peer_qemu())], "tcg")
    samples = asyncio.run(measure_gap(build, ram_bytes=64 * MIB, run_dir=socket_dir, updates=2))
    assert len(samples) == 2
    for sample in samples:
        assert sample.gap_ms + sample.resolution_ms >= (sample.stop_resume_ms or 0)
        assert 0 < sample.gap_ms < sample.total_ms
