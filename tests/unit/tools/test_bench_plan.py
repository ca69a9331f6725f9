"""What the benchmark measures, and what fits."""

from __future__ import annotations

import pytest

from tools.lab.bench.plan import (
    DEVICES_MAX,
    FULL,
    GIB,
    MIB,
    QUICK,
    Scale,
    device_options,
    fitting,
    size_text,
)
from tools.lab.bench.results import SLOPE_SIZES_MIN


def test_touched_sizes_fit_together_into_half_of_what_is_available() -> None:
    sizes = (64 * MIB, 256 * MIB, GIB, 2 * GIB, 4 * GIB, 8 * GIB)
    assert fitting(sizes, 32 * GIB) == sizes  # 15.3 GiB
    assert fitting(sizes, 16 * GIB) == sizes[:-1]  # 7.3 GiB, and 8 more do not fit
    assert fitting(sizes, 100 * MIB) == ()


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(64 * MIB, "64M"), (GIB, "1G"), (8 * GIB, "8G"), (1536 * MIB, "1536M")]
)
def test_size_is_written_as_on_the_command_line(size_bytes: int, text: str) -> None:
    assert size_text(size_bytes) == text


@pytest.mark.parametrize("count", range(DEVICES_MAX + 1))
def test_each_extra_device_has_a_backend_of_its_own(count: int) -> None:
    words = device_options(count)
    devices = [word for word in words if word in ("-serial", "-device")]
    backends = {word.rpartition("id=")[2] for word in words if word.startswith("null,")}
    assert len(devices) == len(backends) == count


@pytest.mark.parametrize("count", [-1, DEVICES_MAX + 1])
def test_more_devices_than_the_machine_takes_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=r"expected 0\.\.4"):
        device_options(count)


@pytest.mark.parametrize("scale", [FULL, QUICK], ids=["full", "quick"])
def test_every_scale_has_enough_sizes_for_a_slope_up_to_8_gib(scale: Scale) -> None:
    assert len(scale.ram_bytes) >= SLOPE_SIZES_MIN
    assert min(scale.ram_bytes) == 64 * MIB
    assert max(scale.ram_bytes) == 8 * GIB


def test_count_changes_the_samples_of_every_subject_and_nothing_else() -> None:
    scale = FULL.with_count(3)
    assert {scale.headline, scale.ram, scale.vcpus, scale.devices, scale.peer} == {3}
    assert (scale.kicks, scale.ram_bytes) == (FULL.kicks, FULL.ram_bytes)
