"""What every accelerator provides: a VM over mapped RAM, and vCPUs that run until told to stop.

The machine knows only these protocols. One vCPU belongs to one thread while it runs; `kick` is the
only method that may be called from another thread at that time. State is read and replaced from
the loop's thread while every vCPU thread is parked.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cpr.vmstate import VmState
from vmm.accel.x86_section import CpuSection
from vmm.accel.x86_state import CpuState


class StopReason(enum.Enum):
    """Why `Vcpu.run` returned."""

    KICKED = "kicked"  # somebody called kick(); state is exact and every I/O access is complete
    HALTED = "halted"  # hlt, and this accelerator leaves waking up to the VMM
    SHUTDOWN = "shutdown"  # triple fault
    ERROR = "error"  # the accelerator cannot go on (emulation failure); see detail


@dataclass(frozen=True, slots=True)
class VcpuStop:
    """The outcome of one `Vcpu.run`; `detail` is for people."""

    reason: StopReason
    detail: str = ""


class IoBus(Protocol):
    """Where guest port and memory-mapped accesses go; called on vCPU threads.

    Unclaimed reads return all ones of the access size, unclaimed writes are dropped, as on a PC.
    `size` is 1, 2, 4 or 8 bytes.
    """

    def pio_read(self, port: int, size: int) -> int:
        """Serve `in`."""
        ...

    def pio_write(self, port: int, size: int, value: int) -> None:
        """Serve `out`."""
        ...

    def mmio_read(self, addr: int, size: int) -> int:
        """Serve a load outside RAM."""
        ...

    def mmio_write(self, addr: int, size: int, value: int) -> None:
        """Serve a store outside RAM."""
        ...


@dataclass(frozen=True, slots=True)
class MappedSlot:
    """One contiguous range of guest-physical memory and where it is mapped in this process."""

    guest_start: int
    size_bytes: int
    host_address: int


# What CPUs say of themselves (CPUID), as HELLO carries it: rows of numbers.
CpuDescription = list[list[int]]


@dataclass(frozen=True, slots=True)
class VmOptions:
    """What the machine asks of an accelerator; `properties` come from `-accel NAME,key=value`."""

    vcpu_count: int
    kernel_irqchip: bool = False
    cpu_model: str = "max"
    cpu: CpuDescription | None = None  # of a running guest, whose CPUs stay what they are
    properties: Mapping[str, str] = field(default_factory=dict)


class Vcpu(Protocol):
    """One virtual CPU."""

    @property
    def index(self) -> int:
        """Number of the vCPU, from 0; its initial APIC id."""
        ...

    def run(self, bus: IoBus) -> VcpuStop:
        """Run the guest on the calling thread until something stops it.

        Device accesses are served through `bus` without returning. When a kick is pending the call
        returns KICKED without entering the guest.
        """
        ...

    def kick(self) -> None:
        """Make the present or the next `run` return KICKED; callable from any thread."""
        ...

    def clear_kick(self) -> None:
        """Forget a kick; called before the vCPU thread enters `run` again."""
        ...

    def capture(self) -> CpuSection:
        """Read the whole CPU state as it travels; the vCPU must be stopped."""
        ...

    def restore(self, saved: CpuSection) -> None:
        """Replace the whole CPU state; callable again and again (rehearsals).

        Raises AccelError that names the register or MSR that was refused.
        """
        ...

    def save(self) -> CpuState:
        """`capture` with a name for every register."""
        ...

    def load(self, state: CpuState) -> None:
        """`restore` of a state with a name for every register; raises as that."""
        ...

    def rehearse(self) -> None:
        """Run a few instructions outside guest RAM so that the first real entry is warm.

        Changes CPU state; the caller loads a state afterwards. Never touches guest RAM.
        """
        ...


class GuestVm(Protocol):
    """A VM: its vCPUs and the machine state that the accelerator itself keeps."""

    @property
    def vcpus(self) -> Sequence[Vcpu]:
        """In index order."""
        ...

    def map_ram(self, slots: Sequence[MappedSlot]) -> None:
        """Give the guest its RAM: once, before a vCPU runs it. Raises AccelError."""
        ...

    def save(self) -> tuple[VmState, ...]:
        """State kept by the accelerator beside the vCPUs (in-kernel irqchip, PIT, clock)."""
        ...

    def load(self, states: Sequence[VmState]) -> None:
        """Replace the state that `save` gives; vCPUs are loaded after it."""
        ...

    def state_types(self) -> tuple[type[VmState], ...]:
        """The types that `save` returns, in its order."""
        ...

    def cpu_description(self) -> CpuDescription | None:
        """What its CPUs say of themselves; None: nothing that a successor must keep."""
        ...

    def was_paused(self) -> None:
        """Tell the guest's kernel, before it runs again, that it stood still (no soft lockup)."""
        ...

    def irq_line(self, gsi: int) -> Callable[[bool], None] | None:
        """What drives input `gsi` of the in-kernel interrupt controllers; None without them.

        The callable takes the level and may be called on any thread until `close`.
        """
        ...

    def signal_on_store(self, address: int, size: int, value: int, eventfd: int) -> bool:
        """Signal `eventfd` for each store of `value` at `address`, which then reaches no bus.

        `size` in bytes. The accelerator keeps a reference of its own. False: it cannot, and stores
        go to the bus. Raises AccelError.
        """
        ...

    def close(self) -> None:
        """Release the VM and all its vCPUs; their threads have ended."""
        ...


class Accelerator(Protocol):
    """A way to run guest code on this host."""

    @property
    def name(self) -> str:
        """As in `-accel`."""
        ...

    @property
    def max_vcpus(self) -> int:
        """How many vCPUs one VM may have."""
        ...

    def create_vm(self, options: VmOptions) -> GuestVm:
        """Make a VM with `options.vcpu_count` vCPUs in reset state and no RAM yet."""
        ...

    def cpu_problems(self, options: VmOptions) -> tuple[str, ...]:
        """Why CPUs here cannot be those of `options.cpu`; empty: they can, or need not."""
        ...

    def close(self) -> None:
        """Release the accelerator; its VMs are closed."""
        ...
