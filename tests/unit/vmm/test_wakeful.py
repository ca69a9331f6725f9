from __future__ import annotations

from pathlib import Path

import pytest

from vmm.update import wakeful
from vmm.update.wakeful import Wakefulness


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cpu_dma_latency"
    monkeypatch.setattr(wakeful, "_DEVICE", str(path))
    return path


def test_request_stands_from_begin_to_end(device: Path) -> None:
    device.touch()
    wakefulness = Wakefulness()

    wakefulness.begin()
    wakefulness.begin()

    assert wakefulness.granted
    assert device.read_bytes() == bytes(4)  # a 32-bit latency of zero microseconds
    wakefulness.end()
    wakefulness.end()
    assert not wakefulness.granted


def test_machine_without_the_interface_goes_without(device: Path) -> None:
    device.mkdir()  # opening it for writing fails for root as well
    wakefulness = Wakefulness()

    wakefulness.begin()

    assert not wakefulness.granted
    wakefulness.end()


def test_request_that_the_kernel_refuses_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wakeful, "_DEVICE", "/dev/full")
    wakefulness = Wakefulness()

    wakefulness.begin()

    assert not wakefulness.granted
