"""The chips of a PC that the kernel emulates beside the vCPUs: interrupt controllers, PIT, clock.

They exist only with kernel-irqchip=on. Without it a VM has no state of its own, which is what lets
an update go from KVM to another accelerator and back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from cpr.vmstate import VmState
from vmm.accel.kvm import abi
from vmm.accel.kvm.ioctl import Buffer, checked_ioctl, os_refusal, state_ioctl
from vmm.errors import AccelError

_CHIPS = ("pic_master", "pic_slave", "ioapic")  # in the order of KVM's chip numbers

# The call takes some microseconds, under an emulated KVM a hundred. A machine too busy for one such
# moment in ten is too busy for good clocks.
_MOMENT_MAX_NS = 200_000
_MOMENT_TRIES = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class IrqchipState(VmState):
    """struct kvm_irqchip's 512 bytes of each chip: two 8259s and the IOAPIC."""

    NAME: ClassVar[str] = "kvm-irqchip"
    VERSION: ClassVar[int] = 1
    READS_FROM: ClassVar[int] = 1

    pic_master: bytes
    pic_slave: bytes
    ioapic: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class PitState(VmState):
    """struct kvm_pit_state2: the three channels of the 8254."""

    NAME: ClassVar[str] = "kvm-pit"
    VERSION: ClassVar[int] = 1
    READS_FROM: ClassVar[int] = 1

    pit: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class ClockState(VmState):
    """kvmclock in ns, and the host's CLOCK_MONOTONIC at which it was read."""

    NAME: ClassVar[str] = "kvm-clock"
    VERSION: ClassVar[int] = 1
    READS_FROM: ClassVar[int] = 1

    clock_ns: int
    host_ns: int


CHIP_STATE_TYPES: tuple[type[VmState], ...] = (IrqchipState, PitState, ClockState)


class Chips:
    """The in-kernel chips of one VM. Raises AccelError when KVM refuses to make them."""

    def __init__(self, vm_fd: int) -> None:
        self._fd = vm_fd  # owned by the VM
        self._chip = Buffer(abi.IRQCHIP_HEADER.size + abi.IRQCHIP_STATE_SIZE_BYTES)
        self._pit = Buffer(abi.PIT_STATE_SIZE_BYTES)
        self._clock = Buffer(abi.CLOCK_DATA.size)
        checked_ioctl(vm_fd, abi.CREATE_IRQCHIP, 0, "creating the irqchip")
        config = Buffer(abi.PIT_CONFIG.size)
        abi.PIT_CONFIG.pack_into(config.data, 0, abi.PIT_SPEAKER_DUMMY)
        checked_ioctl(vm_fd, abi.CREATE_PIT2, config.address, "creating the PIT")

    def save(self) -> tuple[VmState, ...]:
        """One state of each of CHIP_STATE_TYPES; raises AccelError when KVM refuses."""
        self._call(abi.GET_PIT2, self._pit, "reading the PIT")
        host_ns = at_one_moment(
            lambda _host_ns: self._call(abi.GET_CLOCK, self._clock, "reading kvmclock")
        )
        clock_ns: int = abi.CLOCK_DATA.unpack(self._clock.data)[0]
        return (
            IrqchipState(**{name: self._read_chip(chip) for chip, name in enumerate(_CHIPS)}),
            PitState(pit=bytes(self._pit.data)),
            ClockState(clock_ns=clock_ns, host_ns=host_ns),
        )

    def load(self, states: Sequence[VmState]) -> None:
        """Replace what `save` gives; raises AccelError naming the chip."""
        for state in states:
            if isinstance(state, IrqchipState):
                for chip, name in enumerate(_CHIPS):
                    self._write_chip(chip, getattr(state, name))
            elif isinstance(state, PitState):
                _fill(self._pit, state.pit, "the PIT")
                self._call(abi.SET_PIT2, self._pit, "setting the PIT")
            elif isinstance(state, ClockState):
                self._write_clock(state)

    def irq_line(self, gsi: int) -> Callable[[bool], None]:
        """Input `gsi` of both 8259s and the IOAPIC; call it with the level, on any thread."""
        low, high = Buffer(abi.IRQ_LEVEL.size), Buffer(abi.IRQ_LEVEL.size)
        abi.IRQ_LEVEL.pack_into(low.data, 0, gsi, 0)
        abi.IRQ_LEVEL.pack_into(high.data, 0, gsi, 1)

        def set_level(level: bool) -> None:
            buffer = high if level else low
            self._call(abi.IRQ_LINE, buffer, f"driving interrupt line {gsi}")

        return set_level

    def _read_chip(self, chip: int) -> bytes:
        # KVM fills only what the chip has; the rest must not be what the last chip left there.
        self._chip.data[:] = abi.IRQCHIP_HEADER.pack(chip, 0).ljust(len(self._chip.data), b"\0")
        self._call(abi.GET_IRQCHIP, self._chip, f"reading {_CHIPS[chip]}")
        return bytes(self._chip.data[abi.IRQCHIP_HEADER.size :])

    def _write_chip(self, chip: int, content: bytes) -> None:
        _fill(self._chip, abi.IRQCHIP_HEADER.pack(chip, 0) + content, _CHIPS[chip])
        self._call(abi.SET_IRQCHIP, self._chip, f"setting {_CHIPS[chip]}")

    def _write_clock(self, saved: ClockState) -> None:
        """Guest time goes on through the update: the clock moves by the time that has passed."""

        def go_on(host_ns: int) -> None:
            elapsed_ns = max(0, host_ns - saved.host_ns)
            abi.CLOCK_DATA.pack_into(self._clock.data, 0, saved.clock_ns + elapsed_ns, 0, 0)
            self._call(abi.SET_CLOCK, self._clock, "setting kvmclock")

        at_one_moment(go_on)

    def _call(self, request: int, buffer: Buffer, what: str) -> None:
        if state_ioctl(self._fd, request, buffer.address) < 0:
            raise os_refusal(what)


def at_one_moment(act: Callable[[int], None]) -> int:
    """Do `act` with the host's CLOCK_MONOTONIC, in ns, as both are now; returns that time.

    A thread that loses the processor between the two would part kvmclock from the guest's TSC by as
    long, and Linux drops a clock that is a millisecond off. Such a try is made again.
    """
    host_ns = 0
    for _try in range(_MOMENT_TRIES):
        host_ns = time.monotonic_ns()
        act(host_ns)
        if time.monotonic_ns() - host_ns <= _MOMENT_MAX_NS:
            break
    return host_ns


def _fill(buffer: Buffer, content: bytes, what: str) -> None:
    if len(content) != len(buffer.data):
        raise AccelError(f"the state of {what} has {len(content)} bytes, not {len(buffer.data)}")
    buffer.data[:] = content
