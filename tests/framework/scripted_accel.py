"""A vCPU that runs a script instead of code: `run` takes the next outcome, or waits for a kick."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from vmm.accel.base import IoBus, StopReason, VcpuStop
from vmm.accel.x86_section import CpuSection
from vmm.accel.x86_state import CpuState

SCRIPT_DEADLINE_S = 30.0


def reset_state(mp_state: str = "runnable") -> CpuState:
    """A CPU state with every field present."""
    return CpuState(
        general={},
        segments={},
        gdt=(0, 0),
        idt=(0, 0),
        control={},
        debug={},
        msrs={},
        xcr0=1,
        xsave=b"",
        events={},
        mp_state=mp_state,
        tsc=0,
        tsc_host_ns=0,
        tsc_offset=None,
        lapic=None,
    )


class ScriptedVcpu:
    """Implements Vcpu. `entered` counts entries; `inside` is released at each of them."""

    def __init__(self, index: int = 0, script: Iterable[VcpuStop | Exception] = ()) -> None:
        self.index = index
        self.entered = 0
        self.inside = threading.Semaphore(0)
        self.state = reset_state()
        self._script = list(script)
        self._kicked = threading.Event()

    def run(self, bus: IoBus) -> VcpuStop:
        del bus
        if self._kicked.is_set():
            return VcpuStop(StopReason.KICKED)
        self.entered += 1
        self.inside.release()
        if self._script:
            outcome = self._script.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome
        if not self._kicked.wait(SCRIPT_DEADLINE_S):
            return VcpuStop(StopReason.ERROR, "nobody kicked the scripted vCPU")
        return VcpuStop(StopReason.KICKED)

    def kick(self) -> None:
        self._kicked.set()

    def clear_kick(self) -> None:
        self._kicked.clear()

    def capture(self) -> CpuSection:
        return CpuSection.of(self.state)

    def restore(self, saved: CpuSection) -> None:
        self.state = saved.state()

    def save(self) -> CpuState:
        return self.state

    def load(self, state: CpuState) -> None:
        self.state = state

    def rehearse(self) -> None:
        return


class NoBus:
    """An IoBus that nothing is attached to."""

    def pio_read(self, port: int, size: int) -> int:
        return (1 << 8 * size) - 1

    def pio_write(self, port: int, size: int, value: int) -> None: ...

    def mmio_read(self, addr: int, size: int) -> int:
        return (1 << 8 * size) - 1

    def mmio_write(self, addr: int, size: int, value: int) -> None: ...
