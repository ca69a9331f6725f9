"""16550A UART: the PC's serial port, with FIFOs, loopback and computed interrupts.

Register behaviour follows the PC16550D data sheet. There is no baud rate: a byte that the back-end
accepts is sent at once, so the transmitter is busy (LSR.THRE clear) only while the back-end refuses
bytes. There are no timers either: the character time-out interrupt, which on hardware comes four
character times after the last byte, comes at once when the FIFO holds less than its trigger level.

Registers by offset (DLAB is LCR bit 7):

    0 RBR/THR, DLL if DLAB    2 IIR read, FCR write    4 MCR    6 MSR
    1 IER, DLM if DLAB        3 LCR                    5 LSR    7 SCR
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import ClassVar

from cpr.vmstate import VmState
from vmm.devices.chardev_base import CharBackend
from vmm.devices.serial_state import FIFO_SIZE_BYTES, SerialState

COM1_PORT, COM1_IRQ = 0x3F8, 4
COM2_PORT, COM2_IRQ = 0x2F8, 3
COM3_PORT, COM3_IRQ = 0x3E8, 4
COM4_PORT, COM4_IRQ = 0x2E8, 3
COM_PORTS = (
    (COM1_PORT, COM1_IRQ),
    (COM2_PORT, COM2_IRQ),
    (COM3_PORT, COM3_IRQ),
    (COM4_PORT, COM4_IRQ),
)
REGISTER_COUNT = 8

IER_RX, IER_THR, IER_LINE, IER_MODEM = 0x01, 0x02, 0x04, 0x08
IIR_NONE, IIR_THR, IIR_RX, IIR_LINE, IIR_TIMEOUT, IIR_MODEM = 0x01, 0x02, 0x04, 0x06, 0x0C, 0x00
IIR_FIFO = 0xC0
FCR_ENABLE, FCR_CLEAR_RX, FCR_CLEAR_TX = 0x01, 0x02, 0x04
_FCR_KEPT = 0xC9  # enable, DMA mode, trigger level; the clear bits act once
LCR_DLAB = 0x80
MCR_DTR, MCR_RTS, MCR_OUT1, MCR_OUT2, MCR_LOOP = 0x01, 0x02, 0x04, 0x08, 0x10
LSR_DATA_READY, LSR_OVERRUN, LSR_THRE, LSR_TEMT = 0x01, 0x02, 0x20, 0x40
MSR_CTS, MSR_DSR, MSR_RI, MSR_DCD = 0x10, 0x20, 0x40, 0x80
_LINE_UP = MSR_CTS | MSR_DSR | MSR_DCD  # the cable is always plugged in, as in QEMU
_TRIGGER_LEVEL_BYTES = (1, 4, 8, 14)
_BYTE_FILL = 0xFF

_POWER_ON = SerialState(
    ier=0,
    fcr=0,
    lcr=0,
    mcr=MCR_OUT2,  # as in QEMU; nothing here depends on it
    msr_delta=0,
    scr=0,
    divisor=0x0C,  # 9600 baud
    overrun=False,
    thr_interrupt=False,
    rx_fifo=b"",
    tx_fifo=b"",
)


class Serial:
    """A PortDevice and CharFrontend; `set_irq(level)` drives its interrupt line.

    Registers are touched on vCPU threads, `receive` and `writable` come on the loop's thread: one
    lock guards all. `set_irq` and the back-end are called under it and must not call back.
    """

    TRANSIENT: ClassVar[frozenset[str]] = frozenset(
        {
            "_lock",
            "_backend",
            "_set_irq",
            "_irq_level",  # follows from the registers; load drives the line anew
        }
    )

    _ier: int
    _fcr: int
    _lcr: int
    _mcr: int
    _msr_delta: int
    _scr: int
    _divisor: int
    _overrun: bool
    _thr_interrupt: bool
    _rx: bytearray
    _tx: bytearray
    _irq_level: bool

    def __init__(
        self,
        backend: CharBackend,
        set_irq: Callable[[bool], None],
        *,
        iobase: int = COM1_PORT,
        name: str = "serial0",
    ) -> None:
        self.name = name
        self.ports = range(iobase, iobase + REGISTER_COUNT)
        self._lock = threading.Lock()
        self._backend = backend
        self._set_irq = set_irq
        self._take(_POWER_ON)
        backend.attach(self)

    @property
    def state_type(self) -> type[VmState]:
        """SerialState."""
        return SerialState

    # ---- registers, on vCPU threads -----------------------------------------------------

    def port_read(self, offset: int, size: int) -> int:
        """Byte registers: a wider read is one read for each byte, all ones beyond the last."""
        with self._lock:
            if size == 1:
                return self._read(offset)
            value = 0
            for index in range(size):
                inside = offset + index < REGISTER_COUNT
                byte = self._read(offset + index) if inside else _BYTE_FILL
                value |= byte << 8 * index
            return value

    def port_write(self, offset: int, size: int, value: int) -> None:
        """Byte registers: a wider write is one write for each byte."""
        with self._lock:
            if size == 1:
                self._write(offset, value & 0xFF)
                return
            for index in range(min(size, REGISTER_COUNT - offset)):
                self._write(offset + index, value >> 8 * index & 0xFF)

    def _read(self, offset: int) -> int:
        if offset == 5:  # LSR first: guests poll it
            return self._read_lsr()
        if offset == 0:
            return self._divisor & 0xFF if self._lcr & LCR_DLAB else self._read_rbr()
        if offset == 1:
            return self._divisor >> 8 if self._lcr & LCR_DLAB else self._ier
        if offset == 2:
            return self._read_iir()
        if offset == 6:
            return self._read_msr()
        return {3: self._lcr, 4: self._mcr, 7: self._scr}[offset]

    def _write(self, offset: int, value: int) -> None:
        if offset <= 1 and self._lcr & LCR_DLAB:
            shift = 8 * offset
            self._divisor = self._divisor & ~(0xFF << shift) | value << shift
        elif offset == 0:
            self._write_thr(value)
        elif offset == 1:
            self._write_ier(value)
        elif offset == 2:
            self._write_fcr(value)
        elif offset == 3:
            self._lcr = value
        elif offset == 4:
            self._write_mcr(value)
        elif offset == 7:
            self._scr = value
        # 5 (LSR) and 6 (MSR) are read-only here: writes are for the chip's factory test

    def _read_rbr(self) -> int:
        if not self._rx:
            return 0
        value = self._rx.pop(0)
        self._update_irq()
        self._backend.receive_more()
        return value

    def _write_thr(self, value: int) -> None:
        if self._mcr & MCR_LOOP:
            self._loop_back(value)
            return
        self._thr_interrupt = False
        if (
            len(self._tx) < self._tx_depth()
        ):  # a guest that ignores THRE loses bytes, as on hardware
            self._tx.append(value)
        self._drain()

    def _loop_back(self, value: int) -> None:
        if len(self._rx) < self._rx_depth():
            self._rx.append(value)
        else:
            self._overrun = True
        self._thr_interrupt = True
        self._update_irq()

    def _write_ier(self, value: int) -> None:
        newly = value & ~self._ier
        self._ier = value & 0x0F
        if newly & IER_THR and not self._tx:
            self._thr_interrupt = True  # enabling asks at once if the transmitter is empty
        self._update_irq()

    def _write_fcr(self, value: int) -> None:
        toggled = (value ^ self._fcr) & FCR_ENABLE
        if value & FCR_CLEAR_RX or toggled:
            self._rx.clear()
            self._overrun = False
        if value & FCR_CLEAR_TX or toggled:
            self._tx.clear()
            self._thr_interrupt = True
        # Without the enable bit the other bits are not programmed.
        self._fcr = value & _FCR_KEPT if value & FCR_ENABLE else 0
        self._update_irq()
        self._backend.receive_more()

    def _write_mcr(self, value: int) -> None:
        before = self._modem_lines()
        self._mcr = value & 0x1F
        self._note_modem_change(before, self._modem_lines())
        self._update_irq()
        if not value & MCR_LOOP:
            self._backend.receive_more()

    def _read_iir(self) -> int:
        cause = self._cause()
        if cause == IIR_THR:
            self._thr_interrupt = False
            self._update_irq()
        return cause | (IIR_FIFO if self._fcr & FCR_ENABLE else 0)

    def _read_lsr(self) -> int:
        value = LSR_DATA_READY if self._rx else 0
        if not self._tx:
            value |= LSR_THRE | LSR_TEMT
        if self._overrun:
            value |= LSR_OVERRUN
            self._overrun = False
            self._update_irq()
        return value

    def _read_msr(self) -> int:
        value = self._modem_lines() | self._msr_delta
        if self._msr_delta:
            self._msr_delta = 0
            self._update_irq()
        return value

    def _modem_lines(self) -> int:
        """Upper half of MSR: the cable, or in loopback our own outputs."""
        mcr = self._mcr
        if not mcr & MCR_LOOP:
            return _LINE_UP
        loops = (
            (MCR_DTR, MSR_DSR),
            (MCR_RTS, MSR_CTS),
            (MCR_OUT1, MSR_RI),
            (MCR_OUT2, MSR_DCD),
        )
        return sum(line for control, line in loops if mcr & control)

    def _note_modem_change(self, before: int, after: int) -> None:
        """Delta bits: any change of CTS, DSR, DCD; for RI only its trailing edge."""
        changed = before ^ after
        self._msr_delta |= changed >> 4 & 0x0B
        if before & ~after & MSR_RI:
            self._msr_delta |= 0x04

    # ---- interrupts and FIFOs, under the lock -------------------------------------------

    def _cause(self) -> int:
        """IIR's identification of the most urgent enabled cause."""
        if self._ier & IER_LINE and self._overrun:
            return IIR_LINE
        if self._ier & IER_RX and self._rx:
            full_enough = len(self._rx) >= self._trigger_level()
            return IIR_RX if full_enough else IIR_TIMEOUT
        if self._ier & IER_THR and self._thr_interrupt:
            return IIR_THR
        if self._ier & IER_MODEM and self._msr_delta:
            return IIR_MODEM
        return IIR_NONE

    def _update_irq(self) -> None:
        level = self._cause() != IIR_NONE
        if level != self._irq_level:
            self._irq_level = level
            self._set_irq(level)

    def _trigger_level(self) -> int:
        return _TRIGGER_LEVEL_BYTES[self._fcr >> 6] if self._fcr & FCR_ENABLE else 1

    def _rx_depth(self) -> int:
        return FIFO_SIZE_BYTES if self._fcr & FCR_ENABLE else 1

    def _tx_depth(self) -> int:
        return FIFO_SIZE_BYTES if self._fcr & FCR_ENABLE else 1

    def _drain(self) -> None:
        """Give the back-end what it takes; an empty transmitter asks for more."""
        if not self._tx:
            return
        del self._tx[: self._backend.write(bytes(self._tx))]
        if not self._tx:
            self._thr_interrupt = True
        self._update_irq()

    # ---- CharFrontend, on the loop's thread ---------------------------------------------

    def receive_capacity(self) -> int:
        """Room in the receive FIFO; none in loopback, which cuts the line off."""
        with self._lock:
            if self._mcr & MCR_LOOP:
                return 0
            return max(0, self._rx_depth() - len(self._rx))

    def receive(self, data: bytes) -> None:
        """Put bytes into the receive FIFO; more than it has room for is an overrun."""
        with self._lock:
            room = max(0, self._rx_depth() - len(self._rx))
            self._rx += data[:room]
            if len(data) > room:
                self._overrun = True
            self._update_irq()

    def writable(self) -> None:
        """Send what the back-end refused before."""
        with self._lock:
            self._drain()

    # ---- Device, on the loop's thread ---------------------------------------------------

    def start(self) -> None:
        """Connect to the outside, and drive the line for what was loaded."""
        self._backend.start()
        with self._lock:
            self._drain()
            self._set_irq(self._irq_level)

    def stop(self) -> None:
        """Read nothing more; unread input stays in the kernel."""
        self._backend.stop()

    def save(self) -> SerialState:
        """See SerialState."""
        with self._lock:
            return SerialState(
                ier=self._ier,
                fcr=self._fcr,
                lcr=self._lcr,
                mcr=self._mcr,
                msr_delta=self._msr_delta,
                scr=self._scr,
                divisor=self._divisor,
                overrun=self._overrun,
                thr_interrupt=self._thr_interrupt,
                rx_fifo=bytes(self._rx),
                tx_fifo=bytes(self._tx),
            )

    def load(self, state: VmState) -> None:
        """Replace everything. The line is driven by `start`."""
        assert isinstance(state, SerialState)
        with self._lock:
            self._take(state)

    def _take(self, state: SerialState) -> None:
        self._ier = state.ier
        self._fcr = state.fcr
        self._lcr = state.lcr
        self._mcr = state.mcr
        self._msr_delta = state.msr_delta
        self._scr = state.scr
        self._divisor = state.divisor
        self._overrun = state.overrun
        self._thr_interrupt = state.thr_interrupt
        self._rx = bytearray(state.rx_fifo)
        self._tx = bytearray(state.tx_fifo)
        self._irq_level = self._cause() != IIR_NONE

    def reset(self) -> None:
        """Master reset: registers as at power-on, FIFOs off and empty."""
        self.load(_POWER_ON)
        with self._lock:
            self._set_irq(self._irq_level)

    def close(self) -> None:
        """The back-end belongs to the machine, which closes it."""
