"""The only two ways to get a machine: `boot` a fresh one, or `adopt` a running one's RAM and fds.

Both go through the same table of devices, so a successor cannot have another set than it says in
the handshake. What differs is where RAM, the epoch page and the back-ends come from.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cpr.messages import Hello
from cpr.ownedfd import FdTable
from cpr.vmstate import VmState
from guestram.layout import RamBlock, RamLayout, pc_layout
from guestram.lease import ControlPage, RunLease
from guestram.memfd import MemfdIdentity, MemfdOptions, RamMemfd
from guestram.ram import GuestRam
from vmm.accel.base import MappedSlot
from vmm.boot.image import plan_boot
from vmm.boot.plan import BootPlan
from vmm.chassis import Chassis
from vmm.config import (
    Chardev,
    DebugConsoleDevice,
    DebugExitDevice,
    Drive,
    MemoryBackend,
    TapNetdev,
    VmmConfig,
    device_chardevs,
)
from vmm.devices.base import PortDevice
from vmm.devices.chardev import CharBackend, adopt_chardev, open_chardev
from vmm.devices.clock import Clock, ClockState
from vmm.devices.debug_console import DebugConsole, DebugConsoleState
from vmm.devices.debug_exit import DebugExit, DebugExitState
from vmm.devices.irq import IrqLines
from vmm.devices.net.netdev import Netdev, adopt_netdev, open_netdev
from vmm.devices.pc_ports import PcPorts, PcPortsState
from vmm.devices.serial import COM_PORTS, Serial
from vmm.devices.serial_state import SerialState
from vmm.devices.virtio.blk_image import RawImage
from vmm.devicespec import DeviceSpec, Outside, port_device
from vmm.errors import ConfigError
from vmm.machine import Machine, MachineParts
from vmm.pcspecs import pc_specs
from vmm.update.inventory import (
    CPUID,
    LEASE_FD_NAME,
    chardev_fd_name,
    drive_fd_name,
    file_identity,
    ram_fd_name,
)
from vmm.update.netfds import promised_netdev_fds, used_netdevs
from vmm.virtiospecs import virtio_specs


@dataclass(frozen=True, slots=True)
class _Belongings:
    """RAM, the epoch page and the back-ends of a guest, created or adopted."""

    ram: GuestRam
    control: ControlPage
    chardevs: Mapping[str, CharBackend]
    netdevs: Mapping[str, Netdev]
    images: Mapping[str, RawImage]


async def boot(chassis: Chassis) -> Machine:
    """A fresh machine with the boot image loaded, not yet running; owns `chassis` on success.

    Raises VmmError, RamError; nothing but the chassis is left open then.
    """
    config, loop = chassis.config, chassis.loop
    with contextlib.ExitStack() as undo:
        ram, control = _create_memory(config, undo)
        if _wants_prefault(config):
            await asyncio.to_thread(ram.prefault)
        chardevs = {}
        for chardev in _device_chardevs(config):
            chardevs[chardev.id] = open_chardev(chardev, loop)
            undo.callback(chardevs[chardev.id].close)
            await chardevs[chardev.id].wait_connected()
        netdevs = {}
        for netdev in used_netdevs(config):
            netdevs[netdev.id] = open_netdev(netdev, loop)
            undo.callback(netdevs[netdev.id].close)
        images = {}
        for drive in config.used_drives():
            images[drive.id] = RawImage.open(str(drive.file), drive.id, read_only=drive.readonly)
            undo.callback(images[drive.id].close)
        belongings = _Belongings(ram, control, chardevs, netdevs, images)
        machine = _assemble(chassis, plan_boot(config), belongings)
        undo.pop_all()
    machine.reset()
    return machine


async def adopt(chassis: Chassis, boot_plan: BootPlan, fds: FdTable, hello: Hello) -> Machine:
    """A machine around the RAM and fds of a running guest; no byte of RAM is written.

    `boot_plan` is what a later reset loads, `hello` what the source promised. Owns `chassis` on
    success. Raises CprError, RamError, VmmError; nothing but the chassis is left open then.
    """
    config, loop = chassis.config, chassis.loop
    identities = {offer.name: offer.identity for offer in hello.fds}
    chassis.refit(hello.machine.get(CPUID))
    with contextlib.ExitStack() as undo:
        ram, control = _adopt_memory(config, fds, identities, undo)
        if _wants_prefault(config):
            await asyncio.to_thread(ram.prefault)
        chardevs = {}
        for chardev in _device_chardevs(config):
            chardevs[chardev.id] = adopt_chardev(chardev, _claim_chardev(chardev, fds), loop)
            undo.callback(chardevs[chardev.id].close)
        netdevs = {}
        for netdev in used_netdevs(config):
            netdevs[netdev.id] = _adopt_or_open(netdev, fds, identities, loop)
            undo.callback(netdevs[netdev.id].close)
        images = {}
        for drive in config.used_drives():
            images[drive.id] = _adopt_image(drive, fds, identities)
            undo.callback(images[drive.id].close)
        belongings = _Belongings(ram, control, chardevs, netdevs, images)
        machine = _assemble(chassis, boot_plan, belongings)
        undo.pop_all()
    return machine


def section_types(chassis: Chassis) -> dict[str, type[VmState]]:
    """The sections of the machine that would be built on `chassis`."""
    devices = {spec.name: spec.state_type for spec in _device_specs(chassis.config)}
    return devices | chassis.section_types()


def _create_memory(config: VmmConfig, undo: contextlib.ExitStack) -> tuple[GuestRam, ControlPage]:
    memfds = {
        backend.id: RamMemfd.create(backend.id, _memfd_options(backend))
        for backend in config.ram_backends()
    }
    ram = GuestRam(_layout(config), memfds)
    undo.callback(ram.close)
    control = ControlPage.create()
    undo.callback(control.close)
    return ram, control


def _adopt_memory(
    config: VmmConfig,
    fds: FdTable,
    identities: Mapping[str, Mapping[str, int]],
    undo: contextlib.ExitStack,
) -> tuple[GuestRam, ControlPage]:
    memfds = {
        backend.id: RamMemfd.adopt(
            fds.claim(ram_fd_name(backend.id)).detach(),
            backend.id,
            _memfd_options(backend),
            MemfdIdentity.from_map(identities[ram_fd_name(backend.id)]),
        )
        for backend in config.ram_backends()
    }
    ram = GuestRam(_layout(config), memfds)
    undo.callback(ram.close)
    control = ControlPage.adopt(
        fds.claim(LEASE_FD_NAME).detach(), MemfdIdentity.from_map(identities[LEASE_FD_NAME])
    )
    undo.callback(control.close)
    return ram, control


def _assemble(chassis: Chassis, boot_plan: BootPlan, belongings: _Belongings) -> Machine:
    """The RAM goes into the chassis, the devices onto its bus."""
    config, ram = chassis.config, belongings.ram
    chassis.vm.map_ram(
        [MappedSlot(part.guest_start, part.size_bytes, part.host_address) for part in ram.ranges]
    )
    outside = Outside(
        belongings.chardevs,
        belongings.netdevs,
        belongings.images,
        chassis.events,
        chassis.loop,
        IrqLines(chassis.vm.irq_line),
        ram,
        chassis.bus,
        chassis.vm.signal_on_store if config.virtio_ioeventfd else None,
    )
    devices = tuple(spec.plug(outside) for spec in _device_specs(config))
    lease = RunLease(ram.memfd(ram.layout.blocks[0].id).fileno(), belongings.control)
    return Machine(
        MachineParts(
            chassis=chassis,
            ram=ram,
            control=belongings.control,
            lease=lease,
            devices=devices,
            chardevs=belongings.chardevs,
            netdevs=belongings.netdevs,
            images=belongings.images,
            boot=boot_plan,
        )
    )


def _device_specs(config: VmmConfig) -> Iterator[DeviceSpec]:
    """Every device that `config` asks for: the one list that HELLO and the machine come from."""
    yield port_device("pc-ports", PcPortsState, lambda outside: PcPorts(outside.guest_reset))
    if config.machine.kernel_irqchip:
        yield from pc_specs()
    yield port_device("clock", ClockState, lambda _outside: Clock(config.vcpu_count))
    if len(config.serials) > len(COM_PORTS):
        raise ConfigError(
            f"-serial: at most {len(COM_PORTS)} serial ports, got {len(config.serials)}"
        )
    for index, chardev in enumerate(config.serials):
        yield _serial_spec(index, chardev)
    for index, exit_config in enumerate(config.debug_exits):
        yield _debug_exit_spec(index, exit_config)
    for index, console in enumerate(config.debug_consoles):
        yield _debug_console_spec(index, console)
    yield from virtio_specs(config)


def _serial_spec(index: int, chardev: str) -> DeviceSpec:
    name = f"serial{index}"
    iobase, irq = COM_PORTS[index]

    def make(outside: Outside) -> PortDevice:
        backend = outside.chardevs[chardev]
        return Serial(backend, outside.irqs.connect(irq), iobase=iobase, name=name)

    return port_device(name, SerialState, make)


def _debug_exit_spec(index: int, config: DebugExitDevice) -> DeviceSpec:
    name = f"debug-exit{index}"
    return port_device(
        name,
        DebugExitState,
        lambda outside: DebugExit(config.iobase, config.iosize, outside.guest_exit, name=name),
    )


def _debug_console_spec(index: int, config: DebugConsoleDevice) -> DeviceSpec:
    name = f"debugcon{index}"

    def make(outside: Outside) -> PortDevice:
        return DebugConsole(outside.chardevs[config.chardev], iobase=config.iobase, name=name)

    return port_device(name, DebugConsoleState, make)


def _wants_prefault(config: VmmConfig) -> bool:
    return any(backend.prealloc for backend in config.ram_backends())


def _layout(config: VmmConfig) -> RamLayout:
    return pc_layout(
        [RamBlock(backend.id, backend.size_bytes) for backend in config.ram_backends()]
    )


def _memfd_options(backend: MemoryBackend) -> MemfdOptions:
    return MemfdOptions(
        size_bytes=backend.size_bytes,
        share=backend.share,
        seal=backend.seal,
        hugetlb=backend.hugetlb,
        hugetlb_size_bytes=backend.hugetlb_size_bytes,
        prealloc=backend.prealloc,
    )


def _device_chardevs(config: VmmConfig) -> tuple[Chardev, ...]:
    """The chardevs that devices use; those of monitors belong to the monitor server."""
    users = device_chardevs(config.serials, config.debug_consoles, config.virtio)
    used = [name for name, _user in users]
    by_id = {chardev.id: chardev for chardev in config.chardevs}
    for name in used:
        if name not in by_id:
            raise ConfigError(f"chardev '{name}' does not exist; define it with -chardev")
    return tuple(by_id[name] for name in dict.fromkeys(used))


def _adopt_or_open(
    netdev: TapNetdev,
    fds: FdTable,
    identities: Mapping[str, Mapping[str, int]],
    loop: asyncio.AbstractEventLoop,
) -> Netdev:
    """The running guest's tap if it was promised; otherwise (migrate-fds=off) one of our own."""
    promised = promised_netdev_fds(netdev.id, identities)
    if not promised:
        return open_netdev(netdev, loop)
    with contextlib.ExitStack() as undo:
        claimed = [undo.enter_context(fds.claim(name)) for name in promised]
        undo.pop_all()
    return adopt_netdev(netdev, claimed, identities, loop)


def _adopt_image(
    drive: Drive, fds: FdTable, identities: Mapping[str, Mapping[str, int]]
) -> RawImage:
    """The running guest's open image, and with it the image lock."""
    name = drive_fd_name(drive.id)
    with fds.claim(name) as fd:
        found = file_identity(fd.fileno())
        if found != dict(identities[name]):
            raise ConfigError(f"fd '{name}' is {found}, the source promised {identities[name]}")
        return RawImage.adopt(fd.detach(), drive.id, str(drive.file), read_only=drive.readonly)


def _claim_chardev(chardev: Chardev, fds: FdTable) -> dict[int, int]:
    """Every fd that came for this chardev, by index."""
    claimed: dict[int, int] = {}
    while (name := chardev_fd_name(chardev.id, len(claimed))) in fds.names:
        claimed[len(claimed)] = fds.claim(name).detach()
    return claimed
