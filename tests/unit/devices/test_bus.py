from __future__ import annotations

import pytest

from cpr.vmstate import VmState
from vmm.devices.bus import SystemBus
from vmm.devices.debug_exit import DebugExit
from vmm.devices.pc_ports import PcPorts, PcPortsState
from vmm.errors import DeviceError


class _Recorder:
    """A port and memory-mapped device that answers with the offset and records writes."""

    state_type: type[VmState] = PcPortsState

    def __init__(self, name: str, ports: range = range(0)) -> None:
        self.name = name
        self.ports = ports
        self.writes: list[tuple[int, int, int]] = []

    def port_read(self, offset: int, size: int) -> int:
        return offset << 4 | size

    def port_write(self, offset: int, size: int, value: int) -> None:
        self.writes.append((offset, size, value))

    mmio_read = port_read
    mmio_write = port_write

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def save(self) -> VmState:
        raise NotImplementedError

    def load(self, state: VmState) -> None: ...

    def reset(self) -> None: ...

    def close(self) -> None: ...


def test_port_accesses_reach_their_device_with_the_offset() -> None:
    bus = SystemBus()
    first, second = _Recorder("a", range(0x10, 0x18)), _Recorder("b", range(0x18, 0x1A))
    bus.attach(first)
    bus.attach(second)
    assert bus.pio_read(0x17, 2) == 0x72
    assert bus.pio_read(0x18, 4) == 0x04
    bus.pio_write(0x19, 1, 0x55)
    assert second.writes == [(1, 1, 0x55)]
    assert first.writes == []


@pytest.mark.parametrize(("size", "ones"), [(1, 0xFF), (2, 0xFFFF), (4, 0xFFFF_FFFF)])
def test_unclaimed_reads_are_all_ones_and_writes_are_dropped(size: int, ones: int) -> None:
    bus = SystemBus()
    assert bus.pio_read(0x1234, size) == ones
    assert bus.mmio_read(0xFEE0_0000, size) == ones
    bus.pio_write(0x1234, size, 1)
    bus.mmio_write(0xFEE0_0000, size, 1)
    assert bus.mmio_read(0xFEE0_0000, 8) == (1 << 64) - 1


def test_mmio_accesses_reach_their_device_with_the_offset() -> None:
    bus = SystemBus()
    device = _Recorder("m")
    bus.attach_mmio(range(0xD000_0000, 0xD000_2000), device)
    assert bus.mmio_read(0xD000_1008, 8) == 0x10088
    bus.mmio_write(0xD000_0004, 4, 9)
    assert device.writes == [(4, 4, 9)]
    assert bus.mmio_read(0xD000_2000, 1) == 0xFF


def test_port_conflict_names_both_devices_and_attaches_nothing() -> None:
    bus = SystemBus()
    bus.attach(DebugExit(0x85, 2, lambda _status: None))
    with pytest.raises(DeviceError, match="pc-ports: port 0x85 belongs to debug-exit0"):
        bus.attach(PcPorts(lambda: None))
    assert bus.pio_read(0x80, 1) == 0xFF


@pytest.mark.parametrize("ports", [range(0), range(0xFFFF, 0x1_0001), range(0, 8, 2), range(-1, 2)])
def test_ports_outside_the_port_space_are_refused(ports: range) -> None:
    with pytest.raises(DeviceError, match="not a range within"):
        SystemBus().attach(_Recorder("x", ports))


def test_mmio_conflicts_and_parts_of_pages_are_refused() -> None:
    bus = SystemBus()
    bus.attach_mmio(range(0xD000_0000, 0xD000_1000), _Recorder("first"))
    with pytest.raises(DeviceError, match="second: address 0xd0000000 belongs to first"):
        bus.attach_mmio(range(0xCFFF_F000, 0xD000_1000), _Recorder("second"))
    with pytest.raises(DeviceError, match="not a range of whole 4 KiB pages"):
        bus.attach_mmio(range(0xD000_1000, 0xD000_1200), _Recorder("third"))
    assert bus.mmio_read(0xCFFF_F000, 1) == 0xFF
