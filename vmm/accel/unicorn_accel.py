"""The `unicorn` accelerator: runs guests in software, on any host, without privilege.

One vCPU only, because the engine's atomic instructions are not atomic between two engines. There is
no in-kernel irqchip, exceptions and interrupts are not delivered to the guest, and its CPUID is the
one of the CPU that Unicorn emulates, whatever `-cpu` says. How: see `vmm.accel.unicorn`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cpr.vmstate import VmState
from vmm.accel.base import CpuDescription, MappedSlot, VmOptions
from vmm.accel.unicorn.engine import Engine
from vmm.accel.unicorn.hosttsc import HostTsc
from vmm.accel.unicorn.layout import Layout, Probe
from vmm.accel.unicorn.library import Library, load_library
from vmm.accel.unicorn.vcpu import UnicornVcpu
from vmm.errors import AccelError


class UnicornAccelerator:
    """Implements `vmm.accel.base.Accelerator`.

    Raises AccelUnavailable when libunicorn is not installed or is not a version we know.
    """

    name = "unicorn"
    max_vcpus = 1

    def __init__(self) -> None:
        self._library = load_library()
        self._probe = Probe(Engine(self._library))
        try:
            self._layout = self._probe.find_layout()
        except BaseException:
            self._probe.close()
            raise
        self._host_tsc = HostTsc(self._probe)

    def create_vm(self, options: VmOptions) -> UnicornVm:
        """See Accelerator.create_vm. Raises AccelError for what only kvm can do."""
        if options.vcpu_count > self.max_vcpus:
            raise AccelError(
                f"unicorn: 1 vCPU, not {options.vcpu_count}: its instructions are not atomic "
                "between vCPUs; use -smp 1 or -accel kvm"
            )
        if options.kernel_irqchip:
            raise AccelError("unicorn: no in-kernel irqchip; use kernel-irqchip=off or -accel kvm")
        if options.properties:
            raise AccelError(f"Property 'unicorn-accel.{next(iter(options.properties))}' not found")
        return UnicornVm(self._library, self._layout, self._host_tsc)

    def cpu_problems(self, options: VmOptions) -> tuple[str, ...]:
        """None: a simple guest, which only uses what every accelerator has, may come from kvm."""
        return ()

    def close(self) -> None:
        """Release the probe engine; every VM has been closed."""
        self._probe.close()


class UnicornVm:
    """Implements `vmm.accel.base.GuestVm`: one engine with one vCPU, and no state beside it."""

    def __init__(self, library: Library, layout: Layout, host_tsc: HostTsc) -> None:
        self._engine = Engine(library)
        try:
            self._vcpu = UnicornVcpu(self._engine, layout, host_tsc)
        except BaseException:
            self._engine.close()
            raise
        self.vcpus: Sequence[UnicornVcpu] = (self._vcpu,)

    def map_ram(self, slots: Sequence[MappedSlot]) -> None:
        """See GuestVm.map_ram; what is not RAM goes to the bus from then on."""
        self._engine.map_ram(slots)
        self._engine.map_mmio(slots, self._vcpu.mmio_read, self._vcpu.mmio_write)

    def save(self) -> tuple[VmState, ...]:
        """Nothing."""
        return ()

    def load(self, states: Sequence[VmState]) -> None:
        """Raises AccelError if there is anything to load."""
        if states:
            names = ", ".join(state.NAME for state in states)
            raise AccelError(f"unicorn keeps no machine state, got {names}; load it with kvm")

    def state_types(self) -> tuple[type[VmState], ...]:
        """None."""
        return ()

    def cpu_description(self) -> CpuDescription | None:
        """None: the software CPU is always the same."""
        return None

    def was_paused(self) -> None:
        """Nothing: a guest here has no paravirtual clock."""

    def irq_line(self, gsi: int) -> Callable[[bool], None] | None:
        """None: there is no interrupt controller."""
        return None

    def signal_on_store(self, address: int, size: int, value: int, eventfd: int) -> bool:
        """False: the store stops the engine anyway."""
        return False

    def close(self) -> None:
        """Release the engine."""
        for vcpu in self.vcpus:
            vcpu.detach()
        self._engine.close()
