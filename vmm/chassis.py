"""The chassis of a machine: the VM, its vCPUs with their threads, and the bus.

That is all of a machine that needs neither guest RAM nor any fd of a running guest. A successor
makes it as soon as it starts. What it would otherwise make in the middle of an update takes ten
milliseconds of a processor, and on a host with no processor to spare the guest in the old process
would wait for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Iterator, Mapping

from cpr.vmstate import VmState
from vmm.accel.base import Accelerator, CpuDescription, GuestVm, VmOptions
from vmm.accel.x86_section import CpuSection
from vmm.config import VmmConfig
from vmm.devices.bus import SystemBus
from vmm.devicespec import GuestEvents
from vmm.sandbox import confine_vcpu_thread
from vmm.vcputhread import VcpuThreads


class Chassis:
    """Owns the accelerator, the VM and the vCPU threads. All methods run on the loop's thread."""

    def __init__(
        self,
        config: VmmConfig,
        accel: Accelerator,
        loop: asyncio.AbstractEventLoop,
        events: GuestEvents,
    ) -> None:
        """Takes over `accel`, on failure too. Raises AccelError, SandboxError, MachineError."""
        self.config = config
        self.accel = accel
        self.loop = loop
        self.events = events
        with contextlib.ExitStack() as undo:
            undo.callback(accel.close)
            self._make(None)
            undo.pop_all()

    def cpu_problems(self, cpu: CpuDescription | None) -> tuple[str, ...]:
        """Why CPUs here cannot be those of a running guest; empty: they can, or need not."""
        if self._fits(cpu):
            return ()
        return self.accel.cpu_problems(vm_options(self.config, cpu))

    def refit(self, cpu: CpuDescription | None) -> None:
        """Have the CPUs of a running guest; the VM is made again if they differ from ours.

        Before it has RAM only. Raises as the constructor; the chassis can only be closed then.
        """
        if not self._fits(cpu):
            self._end_vm()
            self._make(cpu)

    def _fits(self, cpu: CpuDescription | None) -> bool:
        ours = self.cpu_description
        return cpu is None or ours is None or cpu == ours  # None: any guest's, or always the same

    def save(self) -> Iterator[tuple[str, VmState]]:
        """Section name and state of the accelerator's chips, then of each vCPU; all are parked."""
        for state in self.vm.save():
            yield state.NAME, state
        for thread in self.threads:
            yield cpu_section_name(thread.vcpu.index), thread.capture()

    def load(self, states: Mapping[str, VmState]) -> None:
        """Replace what `save` gives; `states` may have others, too."""
        self.vm.load([states[kind.NAME] for kind in self.vm.state_types()])
        for thread in self.threads:
            state = states[cpu_section_name(thread.vcpu.index)]
            assert isinstance(state, CpuSection)
            thread.restore(state)

    def section_types(self) -> dict[str, type[VmState]]:
        """Section name to state type, in the order of `save`."""
        types = {kind.NAME: kind for kind in self.vm.state_types()}
        types.update((cpu_section_name(vcpu.index), CpuSection) for vcpu in self.vm.vcpus)
        return types

    def close(self) -> None:
        """End the threads and release the VM and the accelerator."""
        self._end_vm()
        self.accel.close()

    def _make(self, cpu: CpuDescription | None) -> None:
        with contextlib.ExitStack() as undo:
            self.vm: GuestVm = self.accel.create_vm(vm_options(self.config, cpu))
            undo.callback(self.vm.close)
            self.cpu_description = self.vm.cpu_description()
            self.bus = SystemBus()
            self.reset_chips = self.vm.save()
            self.reset_cpus = tuple(vcpu.save() for vcpu in self.vm.vcpus)
            self.threads = VcpuThreads(
                self.vm.vcpus,
                self.bus,
                self.loop,
                self.events.vcpu_stopped,
                self.accel.name,
                functools.partial(confine_vcpu_thread, self.config.sandbox),
            )
            undo.pop_all()

    def _end_vm(self) -> None:
        self.threads.end()
        self.vm.close()


def cpu_section_name(index: int) -> str:
    """The section of a vCPU."""
    return f"cpu{index}"


def vm_options(config: VmmConfig, cpu: CpuDescription | None = None) -> VmOptions:
    """What the machine asks of an accelerator; `cpu` is what a running guest's CPUs are."""
    return VmOptions(
        vcpu_count=config.vcpu_count,
        kernel_irqchip=config.machine.kernel_irqchip,
        cpu_model=config.cpu_model,
        cpu=cpu,
    )
