from __future__ import annotations

from dataclasses import replace

import pytest

from tests.framework.fake_char import FakeChar
from vmm.devices.serial import (
    FCR_CLEAR_RX,
    FCR_CLEAR_TX,
    FCR_ENABLE,
    IER_LINE,
    IER_MODEM,
    IER_RX,
    IER_THR,
    IIR_FIFO,
    IIR_LINE,
    IIR_MODEM,
    IIR_NONE,
    IIR_RX,
    IIR_THR,
    IIR_TIMEOUT,
    LCR_DLAB,
    LSR_DATA_READY,
    LSR_OVERRUN,
    LSR_TEMT,
    LSR_THRE,
    MCR_DTR,
    MCR_LOOP,
    MCR_OUT1,
    MCR_OUT2,
    MCR_RTS,
    Serial,
)

DATA, IER, IIR, FCR, LCR, MCR, LSR, MSR, SCR = 0, 1, 2, 2, 3, 4, 5, 6, 7
EMPTY = LSR_THRE | LSR_TEMT


class Uart:
    """A serial port with its outside, and byte accesses by register."""

    def __init__(self) -> None:
        self.char = FakeChar()
        self.levels: list[bool] = []
        self.device = Serial(self.char, self.levels.append)

    @property
    def irq(self) -> bool:
        return bool(self.levels) and self.levels[-1]

    def read(self, register: int) -> int:
        return self.device.port_read(register, 1)

    def write(self, register: int, value: int) -> None:
        self.device.port_write(register, 1, value)


@pytest.fixture
def uart() -> Uart:
    return Uart()


def test_written_bytes_reach_the_back_end_at_once(uart: Uart) -> None:
    for letter in b"hi":
        uart.write(DATA, letter)
        assert uart.read(LSR) == EMPTY
    assert uart.char.written == b"hi"


def test_divisor_and_scratch_keep_their_values(uart: Uart) -> None:
    uart.write(LCR, LCR_DLAB | 3)
    uart.write(0, 0x34)
    uart.write(1, 0x12)
    assert (uart.read(0), uart.read(1)) == (0x34, 0x12)
    uart.write(LCR, 3)
    assert (uart.read(IER), uart.read(LCR)) == (0, 3)
    uart.write(SCR, 0xA5)
    assert uart.read(SCR) == 0xA5
    assert uart.char.written == b""


def test_fifo_presence_shows_in_iir(uart: Uart) -> None:
    assert uart.read(IIR) == IIR_NONE
    uart.write(FCR, FCR_ENABLE)
    assert uart.read(IIR) == IIR_FIFO | IIR_NONE
    uart.write(FCR, 0)
    assert uart.read(IIR) == IIR_NONE


def test_transmitter_interrupt_comes_on_enabling_and_after_each_byte(uart: Uart) -> None:
    uart.write(IER, IER_THR)
    assert uart.irq
    assert uart.read(IIR) == IIR_THR
    assert not uart.irq
    assert uart.read(IIR) == IIR_NONE
    uart.write(DATA, ord("x"))
    assert uart.irq
    assert uart.read(IIR) == IIR_THR


def test_refused_bytes_wait_in_the_fifo_and_thre_says_so(uart: Uart) -> None:
    uart.write(FCR, FCR_ENABLE)
    uart.write(IER, IER_THR)
    uart.read(IIR)
    uart.char.accepts = 3
    for letter in b"abcdefg":
        uart.write(DATA, letter)
    assert uart.char.written == b"abc"
    assert uart.read(LSR) & EMPTY == 0
    assert not uart.irq
    assert uart.device.save().tx_fifo == b"defg"
    uart.char.unblock()
    assert uart.char.written == b"abcdefg"
    assert uart.read(LSR) & EMPTY == EMPTY
    assert uart.irq


def test_without_fifo_one_byte_waits_and_a_guest_that_ignores_thre_loses_the_next(
    uart: Uart,
) -> None:
    uart.char.accepts = 0
    uart.write(DATA, ord("a"))
    uart.write(DATA, ord("b"))
    uart.char.unblock()
    assert uart.char.written == b"a"


def test_unsent_bytes_travel_and_are_sent_by_the_successor(uart: Uart) -> None:
    uart.write(FCR, FCR_ENABLE)
    uart.char.accepts = 0
    for letter in b"tail":
        uart.write(DATA, letter)
    uart.device.stop()
    successor = Uart()
    successor.device.load(uart.device.save())
    assert successor.char.written == b""
    successor.device.start()
    assert successor.char.written == b"tail"


def test_received_bytes_raise_data_ready_and_come_in_order(uart: Uart) -> None:
    uart.write(FCR, FCR_ENABLE)
    assert uart.char.feed(b"input") == b""
    assert uart.read(LSR) & LSR_DATA_READY
    assert bytes(uart.read(DATA) for _ in range(5)) == b"input"
    assert not uart.read(LSR) & LSR_DATA_READY
    assert uart.read(DATA) == 0


@pytest.mark.parametrize(("fcr", "depth"), [(0, 1), (FCR_ENABLE, 16)])
def test_no_more_is_taken_than_the_fifo_holds(uart: Uart, fcr: int, depth: int) -> None:
    uart.write(FCR, fcr)
    rest = uart.char.feed(bytes(range(20)))
    assert rest == bytes(range(depth, 20))
    before = uart.char.more_requests
    uart.read(DATA)
    assert uart.char.more_requests == before + 1
    assert len(uart.char.feed(rest)) == len(rest) - 1
    assert not uart.read(LSR) & LSR_OVERRUN


def test_bytes_beyond_the_capacity_are_an_overrun_that_lsr_clears(uart: Uart) -> None:
    uart.write(IER, IER_LINE)
    uart.device.receive(b"ab")
    assert uart.irq
    assert uart.read(IIR) == IIR_LINE
    assert uart.read(LSR) & LSR_OVERRUN
    assert not uart.read(LSR) & LSR_OVERRUN
    assert not uart.irq
    assert uart.read(DATA) == ord("a")


@pytest.mark.parametrize(("trigger", "level"), [(0, 1), (1, 4), (2, 8), (3, 14)])
def test_receive_interrupt_is_timeout_below_the_trigger_level(
    uart: Uart, trigger: int, level: int
) -> None:
    uart.write(FCR, FCR_ENABLE | trigger << 6)
    uart.write(IER, IER_RX)
    if level > 1:
        uart.char.feed(bytes(level - 1))
        assert uart.read(IIR) & 0x0F == IIR_TIMEOUT
    uart.char.feed(b"x")
    assert uart.read(IIR) & 0x0F == IIR_RX
    for _ in range(max(1, level)):
        uart.read(DATA)
    assert not uart.irq


def test_clearing_fifos_empties_them(uart: Uart) -> None:
    uart.write(FCR, FCR_ENABLE)
    uart.char.accepts = 0
    uart.char.feed(b"abc")
    uart.write(DATA, ord("z"))
    uart.write(FCR, FCR_ENABLE | FCR_CLEAR_RX | FCR_CLEAR_TX)
    assert uart.read(LSR) == EMPTY
    state = uart.device.save()
    assert (state.rx_fifo, state.tx_fifo, state.fcr) == (b"", b"", FCR_ENABLE)


def test_loopback_returns_bytes_and_modem_outputs_and_cuts_the_line_off(uart: Uart) -> None:
    uart.write(FCR, FCR_ENABLE)
    uart.write(MCR, MCR_LOOP)
    assert uart.device.receive_capacity() == 0
    uart.write(DATA, 0x5A)
    assert uart.read(DATA) == 0x5A
    assert uart.char.written == b""
    for control, line in ((MCR_RTS, 0x10), (MCR_DTR, 0x20), (MCR_OUT1, 0x40), (MCR_OUT2, 0x80)):
        uart.write(MCR, MCR_LOOP | control)
        assert uart.read(MSR) & 0xF0 == line
    uart.write(MCR, MCR_OUT2)
    assert uart.read(MSR) & 0xF0 == 0xB0
    assert uart.device.receive_capacity() == 16


def test_loopback_overflow_is_an_overrun(uart: Uart) -> None:
    uart.write(MCR, MCR_LOOP)
    uart.write(DATA, 1)
    uart.write(DATA, 2)
    assert uart.read(LSR) & LSR_OVERRUN
    assert uart.read(DATA) == 1


def test_modem_changes_interrupt_until_msr_is_read(uart: Uart) -> None:
    uart.write(IER, IER_MODEM)
    uart.write(MCR, MCR_LOOP | MCR_OUT1)
    assert uart.irq
    assert uart.read(IIR) == IIR_MODEM
    assert uart.read(MSR) & 0x0F == 0x0B  # CTS, DSR and DCD fell; RI rose, which does not count
    assert not uart.irq
    uart.write(MCR, MCR_LOOP)
    assert uart.read(MSR) & 0x0F == 0x04  # the trailing edge of RI


def test_interrupt_causes_come_in_the_data_sheets_order(uart: Uart) -> None:
    uart.write(IER, IER_RX | IER_THR | IER_LINE | IER_MODEM)
    uart.device.receive(b"ab")
    uart.write(MCR, MCR_LOOP)
    uart.write(MCR, 0)
    found = []
    for acknowledge in (LSR, DATA, IIR, MSR):
        found.append(uart.read(IIR))
        uart.read(acknowledge)
    assert found == [IIR_LINE, IIR_RX, IIR_THR, IIR_MODEM]
    assert uart.read(IIR) == IIR_NONE
    assert not uart.irq


def test_read_only_registers_ignore_writes(uart: Uart) -> None:
    before = uart.device.save()
    uart.write(LSR, 0xFF)
    uart.write(MSR, 0xFF)
    assert uart.device.save() == before


def test_wide_accesses_are_one_access_for_each_byte(uart: Uart) -> None:
    uart.device.port_write(LCR, 2, 0x0103)
    assert (uart.read(LCR), uart.read(MCR)) == (3, 1)
    assert uart.device.port_read(LCR, 2) == 0x0103
    assert uart.device.port_read(SCR, 4) == 0xFFFF_FF00
    uart.device.port_write(SCR, 4, 0x77)
    assert uart.read(SCR) == 0x77


def test_loaded_interrupt_drives_the_line_when_the_device_starts(uart: Uart) -> None:
    uart.write(IER, IER_RX)
    uart.char.feed(b"x")
    successor = Uart()
    successor.device.load(uart.device.save())
    assert not successor.irq
    successor.device.start()
    assert successor.irq
    successor.device.reset()
    assert not successor.irq


@pytest.mark.parametrize(
    ("field", "value"), [("ier", 0x10), ("divisor", -1), ("rx_fifo", bytes(17))]
)
def test_state_that_no_16550_has_is_refused(uart: Uart, field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field} "):
        replace(uart.device.save(), **{field: value})  # type: ignore[arg-type]
