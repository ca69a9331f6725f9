"""A real VMM of another version: `python -m tests.skew.skewed_vmm FLAVOUR -- the arguments of vmm`.

The product's own code, with the constants, a section and a device list changed as that version
would have them. Nothing of the product knows about it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import cpr.channel
import cpr.codec
import cpr.messages
import vmm.build
import vmm.update.inventory
import vmm.update.source
import vmm.update.target
from cpr.messages import MessageKind
from cpr.vmstate import VmState, since
from tests.skew.flavours import EXTRA_NAME, FLAVOURS, PORTS_NAME, Extra, Flavour
from vmm.__main__ import main
from vmm.config import VmmConfig
from vmm.devices.base import Device
from vmm.devices.pc_ports import PcPorts, PcPortsState
from vmm.devicespec import DeviceSpec, Outside, port_device


def command(flavour: str) -> tuple[str, ...]:
    """The command to give to the lab as a build."""
    return (sys.executable, "-m", "tests.skew.skewed_vmm", flavour, "--")


@dataclass(frozen=True, kw_only=True, slots=True)
class FanState(VmState):
    """A device of the future that nothing depends on."""

    NAME: ClassVar[str] = "fan"
    VERSION: ClassVar[int] = 1
    READS_FROM: ClassVar[int] = 1

    turns: int


@dataclass(frozen=True, kw_only=True, slots=True)
class OptionalFanState(FanState):
    OPTIONAL: ClassVar[bool] = True


class Fan:
    """It turns while the guest runs."""

    def __init__(self, kind: type[FanState]) -> None:
        self.name = EXTRA_NAME
        self._kind = kind
        self._turns = 0

    @property
    def state_type(self) -> type[VmState]:
        return self._kind

    def start(self) -> None:
        self._turns += 1

    def stop(self) -> None:
        return

    def save(self) -> VmState:
        return self._kind(turns=self._turns)

    def load(self, state: VmState) -> None:
        assert isinstance(state, FanState)
        self._turns = state.turns

    def reset(self) -> None:
        self._turns = 0

    def close(self) -> None:
        return


@dataclass(frozen=True, kw_only=True, slots=True)
class NewPortsState(VmState):
    """Version 2 has one field more; a sender of version 1 may leave it out."""

    NAME: ClassVar[str] = PORTS_NAME
    VERSION: ClassVar[int] = 2
    READS_FROM: ClassVar[int] = 1

    post_code: int
    port_a: int
    port_b: int = since(2, default=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class OnlyNewPortsState(NewPortsState):
    """… and this build has given version 1 up."""

    READS_FROM: ClassVar[int] = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class OldPortsState(VmState):
    """Version 0 had one register."""

    NAME: ClassVar[str] = PORTS_NAME
    VERSION: ClassVar[int] = 0
    READS_FROM: ClassVar[int] = 0

    post_code: int


class SkewedPorts(PcPorts):
    """The same device with another section."""

    def __init__(self, kind: type[VmState], outside: Outside) -> None:
        super().__init__(outside.guest_reset)
        self._kind = kind

    @property
    def state_type(self) -> type[VmState]:
        return self._kind

    def save(self) -> VmState:  # type: ignore[override] # another version of the section
        state = super().save()
        if self._kind is OldPortsState:
            return OldPortsState(post_code=state.post_code)
        return self._kind(post_code=state.post_code, port_a=state.port_a)  # type: ignore[call-arg]

    def load(self, state: VmState) -> None:
        assert isinstance(state, NewPortsState | OldPortsState)
        port_a = state.port_a if isinstance(state, NewPortsState) else 2
        super().load(PcPortsState(post_code=state.post_code, port_a=port_a))


_PORTS: dict[tuple[int, int], type[VmState]] = {
    (0, 0): OldPortsState,
    (2, 1): NewPortsState,
    (2, 2): OnlyNewPortsState,
}


_KNOW_PROTOCOL = (
    cpr.messages,
    cpr.codec,
    cpr.channel,
    vmm.update.source,
    vmm.update.target,
    vmm.update.inventory,
)


PRESENT_PROTOCOL = cpr.messages.PROTOCOL_MAX


def _let_hello_grow() -> None:
    """A version of the future says more in HELLO, and in the records in it, than we know."""
    write = cpr.codec._WRITERS[MessageKind.HELLO]

    def write_more(hello: object) -> Any:
        known = write(hello)
        sections = [section | {"weight": 1} for section in known["sections"]]
        return known | {"sections": sections, "mood": "good"}

    writers = dict(cpr.codec._WRITERS) | {MessageKind.HELLO: write_more}
    cpr.codec._WRITERS = writers


def become(flavour: Flavour) -> None:
    """Change this process's product into that version."""
    low, high = flavour.protocol
    for name, value, modules in (
        ("VERSION", flavour.product_version, (vmm.update.source, vmm.update.target)),
        ("PROTOCOL_MIN", low, _KNOW_PROTOCOL),
        ("PROTOCOL_MAX", high, _KNOW_PROTOCOL),
    ):
        for module in modules:
            setattr(module, name, value)
    cpr.codec.encode.__defaults__ = (low,)
    if high > PRESENT_PROTOCOL:
        _let_hello_grow()
    specs = vmm.build._device_specs
    ports = _PORTS.get((flavour.ports_version, flavour.ports_reads_from))

    def skewed_specs(config: VmmConfig) -> Iterator[DeviceSpec]:
        for spec in specs(config):
            if spec.name == PORTS_NAME and ports is not None:
                yield port_device(spec.name, ports, functools.partial(SkewedPorts, ports))
            else:
                yield spec
        if flavour.extra is not Extra.NONE:
            fan = OptionalFanState if flavour.extra is Extra.OPTIONAL else FanState
            yield DeviceSpec(EXTRA_NAME, fan, lambda _outside: _fan(fan))

    vmm.build._device_specs = skewed_specs


def _fan(kind: type[FanState]) -> Device:
    return Fan(kind)


if __name__ == "__main__":
    become(FLAVOURS[sys.argv[1]])
    sys.exit(main(sys.argv[sys.argv.index("--") + 1 :]))
