"""What the machine asks of a device."""

from __future__ import annotations

from typing import Protocol

from cpr.vmstate import VmState


class Device(Protocol):
    """A device with state. `name` is its section name, unique in the machine ("serial0").

    `stop` quiesces (drains what host threads or the loop hold), `save` only reads and changes
    nothing, `load` replaces the whole runtime state and may be called several times before the
    first `start` (rehearsals). All four are called on the loop's thread; the register callbacks
    that a device puts on the bus are called on vCPU threads, so a device guards its own state.
    """

    @property
    def name(self) -> str:
        """Section name, unique in the machine."""
        ...

    @property
    def state_type(self) -> type[VmState]:
        """What `save` returns."""
        ...

    def start(self) -> None:
        """The guest is about to run."""
        ...

    def stop(self) -> None:
        """The vCPUs are parked: drain what host threads or the loop hold."""
        ...

    def save(self) -> VmState:
        """Read the state; changes nothing."""
        ...

    def load(self, state: VmState) -> None:
        """Replace the whole state."""
        ...

    def reset(self) -> None:
        """Go to the power-on state."""
        ...

    def close(self) -> None:
        """Release what the device owns."""
        ...


class PortDevice(Device, Protocol):
    """A device with x86 I/O ports."""

    @property
    def ports(self) -> range:
        """The ports it answers."""
        ...

    def port_read(self, offset: int, size: int) -> int:
        """Serve `in`; `offset` counts from the first port."""
        ...

    def port_write(self, offset: int, size: int, value: int) -> None:
        """Serve `out`."""
        ...
