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
    def name(self) -> str: ...

    @property
    def state_type(self) -> type[VmState]: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def save(self) -> VmState: ...

    def load(self, state: VmState) -> None: ...

    def reset(self) -> None: ...

    def close(self) -> None: ...


class PortDevice(Device, Protocol):
    """A device with x86 I/O ports."""

    @property
    def ports(self) -> range: ...

    def port_read(self, offset: int, size: int) -> int: ...

    def port_write(self, offset: int, size: int, value: int) -> None: ...
