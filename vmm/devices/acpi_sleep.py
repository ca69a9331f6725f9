"""The sleep registers of hardware-reduced ACPI (ACPI 6.5, 4.8.3.7): the guest's power switch.

Writing SLP_EN with the type that the tables give for S5 switches the machine off. There is no other
sleep state to go to, so WAK_STS is never set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from cpr.vmstate import VmState
from vmm.devices.bus import ALL_ONES
from vmm.errors import DeviceError

SLEEP_CONTROL_PORT = 0x604
SLEEP_STATUS_PORT = 0x605
SOFT_OFF_TYPE = 5  # S5, as the tables say
_SLEEP_ENABLE = 1 << 5
_TYPE_SHIFT, _TYPE_MASK = 2, 0x7


@dataclass(frozen=True, kw_only=True, slots=True)
class AcpiSleepState(VmState):
    """The control register without SLP_EN, which reads as zero."""

    NAME: ClassVar[str] = "acpi-sleep"
    VERSION: ClassVar[int] = 1
    READS_FROM: ClassVar[int] = 1

    control: int


class AcpiSleep:
    """`on_power_off` is called on the vCPU's thread; it must only post the request to the loop."""

    TRANSIENT: ClassVar[frozenset[str]] = frozenset({"_on_power_off"})

    def __init__(self, on_power_off: Callable[[], None], name: str = "acpi-sleep") -> None:
        self.name = name
        self.ports = range(SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT + 1)
        self._on_power_off = on_power_off
        self._control = 0

    @property
    def state_type(self) -> type[VmState]:
        """AcpiSleepState."""
        return AcpiSleepState

    def port_read(self, offset: int, size: int) -> int:
        """Byte registers; the bytes of a wider read beyond the first are all ones."""
        is_control = SLEEP_CONTROL_PORT + offset == SLEEP_CONTROL_PORT
        return ALL_ONES[size] & ~0xFF | (self._control if is_control else 0)

    def port_write(self, offset: int, size: int, value: int) -> None:
        """Writing the status clears bits that are never set."""
        if SLEEP_CONTROL_PORT + offset != SLEEP_CONTROL_PORT:
            return
        self._control = value & 0xFF & ~_SLEEP_ENABLE
        if value & _SLEEP_ENABLE and value >> _TYPE_SHIFT & _TYPE_MASK == SOFT_OFF_TYPE:
            self._on_power_off()

    def start(self) -> None:
        """Nothing to do."""

    def stop(self) -> None:
        """Nothing to do."""

    def save(self) -> AcpiSleepState:
        """See AcpiSleepState."""
        return AcpiSleepState(control=self._control)

    def load(self, state: VmState) -> None:
        """DeviceError if the register cannot have this value."""
        assert isinstance(state, AcpiSleepState)
        if state.control not in range(0x100) or state.control & _SLEEP_ENABLE:
            raise DeviceError(
                f"{self.name}: control is {state.control}, expected a byte without SLP_EN"
            )
        self._control = state.control

    def reset(self) -> None:
        """All zero."""
        self._control = 0

    def close(self) -> None:
        """Nothing to release."""
