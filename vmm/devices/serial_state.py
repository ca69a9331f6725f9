"""What is saved of a 16550: its registers and every byte that is still inside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cpr.vmstate import VmState

FIFO_SIZE_BYTES = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class SerialState(VmState):
    """Register names are the 16550A data sheet's.

    `rx_fifo` is received and not read by the guest; `tx_fifo` is written by the guest and not yet
    accepted by the back-end (a client that does not read, say). Both travel, so that no byte is
    lost. ValueError for values that no 16550 can have.
    """

    NAME: ClassVar[str] = "serial-16550"
    VERSION: ClassVar[int] = 1
    READS_FROM: ClassVar[int] = 1

    ier: int
    fcr: int
    lcr: int
    mcr: int
    msr_delta: int  # low four bits of MSR; the upper four follow from MCR and the line
    scr: int
    divisor: int
    overrun: bool
    thr_interrupt: bool  # "transmitter empty" has not been acknowledged
    rx_fifo: bytes
    tx_fifo: bytes

    def __post_init__(self) -> None:
        limits = {
            "ier": 0x0F,
            "fcr": 0xFF,
            "lcr": 0xFF,
            "mcr": 0x1F,
            "msr_delta": 0x0F,
            "scr": 0xFF,
            "divisor": 0xFFFF,
        }
        for name, limit in limits.items():
            value = getattr(self, name)
            if not 0 <= value <= limit:
                raise ValueError(f"{name} is {value:#x}, expected 0..{limit:#x}")
        for name in ("rx_fifo", "tx_fifo"):
            size = len(getattr(self, name))
            if size > FIFO_SIZE_BYTES:
                raise ValueError(f"{name} has {size} bytes, expected at most {FIFO_SIZE_BYTES}")
