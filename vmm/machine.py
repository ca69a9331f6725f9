"""A machine: a record of its parts, and start, stop, save and load over all of them.

The order is the whole content of this file. Stop: vCPUs first, then devices drain. Save: devices,
then the accelerator's own chips, then CPUs, because quiescing a device may still raise an interrupt
(saving itself changes nothing). Load: chips, CPUs, devices. Start: take the lease, raise the epoch,
devices, vCPUs. Only this file enters the guest, and it does so only through `RunLease.enter`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cpr.errors import StateError, UnknownSectionError
from cpr.vmstate import Section, VmState
from guestram.errors import LeaseError
from guestram.lease import ControlPage, RunLease
from guestram.ram import GuestRam
from vmm.boot.image import BootPlan
from vmm.chassis import Chassis
from vmm.devices.base import Device
from vmm.devices.chardev import CharBackend
from vmm.devices.net.netdev import Netdev
from vmm.devices.virtio.blk_image import RawImage
from vmm.errors import MachineError


@dataclass(frozen=True, slots=True)
class MachineParts:
    """What a machine is made of; the machine owns all of it and closes it."""

    chassis: Chassis
    ram: GuestRam
    control: ControlPage
    lease: RunLease
    devices: tuple[Device, ...]
    chardevs: Mapping[str, CharBackend]
    netdevs: Mapping[str, Netdev]
    images: Mapping[str, RawImage]
    boot: BootPlan

    def backends(self) -> tuple[CharBackend | Netdev, ...]:
        """What connects the devices to the host."""
        return (*self.chardevs.values(), *self.netdevs.values())


@dataclass(frozen=True, slots=True)
class EntryTime:
    """When the guest was entered, in ns: CLOCK_MONOTONIC, and CLOCK_REALTIME for events."""

    monotonic_ns: int
    wall_ns: int

    @classmethod
    def now(cls) -> EntryTime:
        """This moment."""
        return cls(time.monotonic_ns(), time.time_ns())


@dataclass(frozen=True, slots=True)
class StopTimes:
    """CLOCK_MONOTONIC of one stop, in nanoseconds."""

    kicked_ns: int
    vcpus_stopped_ns: int
    stopped_ns: int


NamedStates = tuple[tuple[str, VmState], ...]


class SectionEncoder:
    """Makes sections of what `Machine.capture` gives.

    A state that is as it was the last time keeps its section: between a rehearsal and the stop that
    follows most devices did nothing.
    """

    def __init__(self) -> None:
        self._last: dict[str, tuple[VmState, Section]] = {}

    def encode(self, states: NamedStates) -> tuple[Section, ...]:
        """The sections, in order."""
        return tuple(self._section(name, state) for name, state in states)

    def _section(self, name: str, state: VmState) -> Section:
        known = self._last.get(name)
        if known is not None and known[0] == state:
            return known[1]
        section = Section.save(name, state)
        self._last[name] = (state, section)
        return section


@dataclass(frozen=True, slots=True)
class VerifiedState:
    """Sections whose digests, versions and fields are right, and the states to load."""

    states: dict[str, VmState]
    sections: dict[str, Section]


class Machine:
    """A guest and everything that serves it. All methods run on the loop's thread."""

    def __init__(self, parts: MachineParts) -> None:
        self.parts = parts
        self.running = False
        self._loaded: dict[str, Section] = {}  # what the devices hold, as long as nothing ran
        self.state_epoch = parts.control.epoch  # the epoch to which our CPU state belongs
        self._threads = parts.chassis.threads

    def start(self) -> EntryTime:
        """Enter the guest; returns when, just before the first instruction can run.

        Raises LeaseBusyError when another process holds the run lease, and EpochMovedError when
        another process ran the guest since our CPU state was taken: that state is older than the
        RAM and is never run (P2).
        """
        lease = self.parts.lease
        self.claim()
        self._loaded = {}
        self.parts.chassis.vm.was_paused()
        for device in self.parts.devices:
            device.start()
        lease.enter()  # last of what can fail: until now another process could still run it
        entered = EntryTime.now()
        self._threads.resume()
        self.running = True
        return entered

    def claim(self) -> None:
        """Take the run lease for the CPU state we hold; raises as `start`, holding nothing then."""
        lease = self.parts.lease
        lease.acquire()
        try:
            lease.check_epoch(self.state_epoch)
        except LeaseError:
            lease.release()
            raise

    def was_overtaken(self) -> bool:
        """Whether the guest was entered since our CPU state was taken, by whomever."""
        return self.parts.control.epoch != self.state_epoch

    def stop(self) -> StopTimes:
        """Leave the guest: when this returns no vCPU runs and no device holds guest work.

        Raises MachineError when a vCPU does not stop.
        """
        kicked_ns = time.monotonic_ns()
        self._threads.stop()
        vcpus_stopped_ns = time.monotonic_ns()
        for device in self.parts.devices:
            device.stop()
        self.running = False
        self.state_epoch = self.parts.lease.epoch
        return StopTimes(kicked_ns, vcpus_stopped_ns, time.monotonic_ns())

    def save(self) -> tuple[Section, ...]:
        """Every section; the machine must be stopped."""
        return SectionEncoder().encode(self.capture())

    def capture(self) -> NamedStates:
        """The states themselves, not yet encoded; the guest may run again afterwards."""
        self._require_stopped("saved")
        return tuple(self._states())

    def load(self, sections: Sequence[Section], epoch: int) -> None:
        """Replace the state of every unit, matched by section name; may be called several times.

        `epoch` is the one at which the state was saved: it may be run only while that is current.

        Raises StateError (unknown, missing, duplicate, wrong version, damaged) naming the section.
        """
        self.apply(self.verify(sections), epoch)

    def verify(self, sections: Sequence[Section]) -> VerifiedState:
        """Check and decode every section; changes nothing. Raises StateError as `load`."""
        self._require_stopped("loaded")
        return VerifiedState(self._decode(sections), {s.name: s for s in sections})

    def apply(self, verified: VerifiedState, epoch: int) -> None:
        """Put what `verify` gave into CPUs and devices."""
        states, parts = verified.states, self.parts
        parts.chassis.load(states)
        for device in parts.devices:
            if device.name in states:
                device.load(states[device.name])
        self._loaded = verified.sections
        self.state_epoch = epoch

    def rehearse(self) -> None:
        """Warm the accelerator's entry path; CPU state is garbage until the next load."""
        self._require_stopped("rehearsed")
        self._threads.rehearse()

    def keep_backends(self) -> None:
        """The guest stays with this process: its back-ends accept clients again."""
        for backend in self.parts.backends():
            backend.release_fds()

    def reset(self) -> None:
        """Bring the stopped machine to its power-on state and load the boot image again."""
        self._require_stopped("reset")
        self._loaded = {}
        chassis = self.parts.chassis
        chassis.vm.load(chassis.reset_chips)
        for device in self.parts.devices:
            device.reset()
        self.parts.boot.write_to(self.parts.ram)
        for thread, reset_state in zip(self._threads, chassis.reset_cpus, strict=True):
            started = self.parts.boot.cpu_state(thread.vcpu.index, reset_state)
            # Without a local APIC nobody can start it; with one it waits in KVM for INIT and SIPI.
            thread.halted = started is None and reset_state.lapic is None
            thread.vcpu.load(started if started is not None else reset_state)

    def section_types(self) -> dict[str, type[VmState]]:
        """Section name to state type, in save order."""
        types: dict[str, type[VmState]] = {
            device.name: device.state_type for device in self.parts.devices
        }
        return types | self.parts.chassis.section_types()

    def close(self) -> None:
        """Stop and release everything; slow (teardown of RAM), so never inside a blackout."""
        self._threads.stop()
        parts = self.parts
        for device in parts.devices:
            device.close()
        for backend in (*parts.backends(), *parts.images.values()):
            backend.close()
        parts.chassis.close()
        parts.lease.close()
        parts.control.close()
        parts.ram.close()

    def _states(self) -> Iterator[tuple[str, VmState]]:
        for device in self.parts.devices:
            yield device.name, device.save()
        yield from self.parts.chassis.save()

    def _decode(self, sections: Sequence[Section]) -> dict[str, VmState]:
        """The states to load by name, without the devices that the rehearsal left just so."""
        types = self.section_types()
        devices = {device.name for device in self.parts.devices}
        seen: set[str] = set()
        states: dict[str, VmState] = {}
        for section in sections:
            kind = types.get(section.name)
            if kind is None:
                if section.optional:
                    continue
                raise UnknownSectionError(
                    f"Unknown section or instance '{section.name}' 0. Make sure that your current "
                    "VM setup matches your saved VM setup, including any hotplugged devices"
                )
            if section.name in seen:
                raise StateError(f"section '{section.name}' came twice")
            seen.add(section.name)
            if section.name not in devices or section != self._loaded.get(section.name):
                states[section.name] = section.load(kind)
        missing = sorted(n for n, kind in types.items() if n not in seen and not kind.OPTIONAL)
        if missing:
            raise StateError(
                f"section(s) {', '.join(missing)} did not come; the source has no such device"
            )
        return states

    def _require_stopped(self, what: str) -> None:
        if self.running:
            raise MachineError(f"the machine must be stopped before it can be {what}")
