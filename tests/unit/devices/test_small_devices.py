from __future__ import annotations

import time

import pytest

from tests.framework.fake_char import FakeChar
from vmm.devices.clock import Clock, ClockState
from vmm.devices.debug_console import BACKLOG_MAX_BYTES, DebugConsole, DebugConsoleState
from vmm.devices.debug_exit import DebugExit
from vmm.devices.pc_ports import PcPorts, PcPortsState
from vmm.errors import DeviceError


def _read_clock(clock: Clock, vcpu: int = 0) -> int:
    low = clock.port_read(8 * vcpu, 4)
    return low | clock.port_read(8 * vcpu + 4, 4) << 32


def test_clock_is_the_hosts_monotonic_clock() -> None:
    clock = Clock(1)
    before = time.monotonic_ns()
    assert before <= _read_clock(clock) <= time.monotonic_ns()


def test_high_half_belongs_to_the_low_half_of_the_same_vcpu() -> None:
    clock = Clock(2)
    clock.load(ClockState(latched_ns=(0x1_0000_0002, 0x7_0000_0008)))
    assert clock.port_read(4, 4) == 1
    assert clock.port_read(12, 4) == 7
    clock.port_read(0, 4)
    assert clock.port_read(12, 4) == 7


def test_narrow_reads_give_bytes_of_the_latch_without_latching() -> None:
    clock = Clock(1)
    clock.load(ClockState(latched_ns=(0x8877_6655_4433_2211,)))
    assert [clock.port_read(offset, 1) for offset in range(8)] == [
        *(0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88)
    ]
    assert clock.port_read(0, 2) == 0x2211


def test_time_goes_on_over_save_and_load_in_the_middle_of_a_reading() -> None:
    old, new = Clock(1), Clock(1)
    low = old.port_read(0, 4)
    new.load(old.save())
    reading = low | new.port_read(4, 4) << 32
    assert reading <= _read_clock(new)


@pytest.mark.parametrize("count", [0, 33])
def test_clock_has_ports_for_1_to_32_vcpus(count: int) -> None:
    with pytest.raises(DeviceError, match=rf"expected 1..32 vCPUs, got {count}"):
        Clock(count)


def test_clock_state_of_another_machine_is_refused() -> None:
    with pytest.raises(DeviceError, match="state has 2 vCPUs, this machine has 1"):
        Clock(1).load(ClockState(latched_ns=(1, 2)))
    with pytest.raises(DeviceError, match="not an unsigned 64-bit number"):
        Clock(1).load(ClockState(latched_ns=(-1,)))


def test_port_92_reads_back_and_a_rising_bit_0_resets_once() -> None:
    resets: list[None] = []
    ports = PcPorts(lambda: resets.append(None))
    offset = 0x92 - ports.ports[0]
    assert ports.port_read(offset, 1) == 0x02
    ports.port_write(offset, 1, 0x00)
    assert ports.port_read(offset, 1) == 0x00
    assert not resets
    ports.port_write(offset, 1, 0x03)
    ports.port_write(offset, 1, 0x03)
    assert len(resets) == 1
    ports.reset()
    ports.port_write(offset, 1, 0x01)
    assert len(resets) == 2


def test_port_80_keeps_the_post_code_and_dma_page_registers_are_absent() -> None:
    ports = PcPorts(lambda: None)
    ports.port_write(0, 1, 0xA5)
    assert ports.port_read(0, 1) == 0xA5
    assert ports.port_read(0, 2) == 0xFFA5
    assert ports.port_read(1, 1) == 0xFF


def test_pc_ports_state_must_be_bytes() -> None:
    with pytest.raises(DeviceError, match="port_a is 256, expected a byte"):
        PcPorts(lambda: None).load(PcPortsState(post_code=0, port_a=256))


@pytest.mark.parametrize(("value", "status"), [(0, 1), (1, 3), (0x2A, 0x55)])
def test_debug_exit_status_is_twice_the_value_plus_one(value: int, status: int) -> None:
    statuses: list[int] = []
    device = DebugExit(0x501, 2, statuses.append)
    assert device.ports == range(0x501, 0x503)
    assert device.port_read(0, 1) == 0
    device.port_write(0, 1, value)
    assert statuses == [status]


def test_debugcon_is_detectable_and_writes_bytes() -> None:
    backend = FakeChar()
    console = DebugConsole(backend)
    assert console.ports == range(0xE9, 0xEA)
    assert console.port_read(0, 1) == 0xE9
    for letter in b"hello":
        console.port_write(0, 1, letter)
    assert backend.written == b"hello"


def test_debugcon_keeps_what_was_refused_and_hands_it_on() -> None:
    blocked, backend = FakeChar(), FakeChar()
    blocked.accepts = 2
    console = DebugConsole(blocked)
    for letter in b"hello":
        console.port_write(0, 1, letter)
    assert blocked.written == b"he"
    assert console.save().backlog == b"llo"
    successor = DebugConsole(backend)
    successor.load(console.save())
    assert backend.written == b""
    successor.start()
    assert backend.written == b"llo"
    blocked.unblock()
    assert blocked.written == b"hello"


def test_debugcon_drops_and_counts_beyond_its_backlog() -> None:
    backend = FakeChar()
    backend.accepts = 0
    console = DebugConsole(backend)
    console.load(DebugConsoleState(backlog=bytes(BACKLOG_MAX_BYTES - 1), dropped_bytes=0))
    console.port_write(0, 1, 1)
    console.port_write(0, 1, 2)
    state = console.save()
    assert (len(state.backlog), state.backlog[-1]) == (BACKLOG_MAX_BYTES, 1)
    assert console.dropped_bytes == 1
    with pytest.raises(DeviceError, match="expected at most 65536"):
        console.load(DebugConsoleState(backlog=bytes(BACKLOG_MAX_BYTES + 1), dropped_bytes=0))


def test_debugcon_has_no_input() -> None:
    console = DebugConsole(FakeChar())
    assert console.receive_capacity() == 0
    with pytest.raises(DeviceError, match="without input"):
        console.receive(b"x")
