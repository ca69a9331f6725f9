"""What one side offers and the other expects: the machine description and the named fds.

Both sides make their half from their own configuration, so that every difference is a sentence
with both values in it, said while the guest still runs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cpr.errors import StateError
from cpr.messages import PROTOCOL_MAX, PROTOCOL_MIN, Accept, FdOffer, Hello, MainHeader
from cpr.ownedfd import OwnedFd
from cpr.vmstate import SectionHeader, VmState, check_version
from vmm.config import VmmConfig
from vmm.devices.net.tun import tap_identity
from vmm.errors import MigrationError
from vmm.update.netfds import netdev_fd_name, passed_fd_problems
from vmm.version import PRODUCT, VERSION

if TYPE_CHECKING:
    from vmm.machine import Machine

LEASE_FD_NAME = "lease:epoch:0"


def ram_fd_name(block_id: str) -> str:
    """Name of the memfd of a RAM block."""
    return f"ram:{block_id}:0"


def chardev_fd_name(chardev_id: str, index: int) -> str:
    """Name of one fd of a character back-end."""
    return f"chardev:{chardev_id}:{index}"


CPUID = "cpuid"  # in HELLO's machine description: what the guest's CPUs say of themselves


def drive_fd_name(drive_id: str) -> str:
    """Name of the open image of a drive."""
    return f"drive:{drive_id}:0"


def file_identity(fd: int) -> dict[str, int]:
    """What names an open file apart from its number: device, inode and file type."""
    status = os.fstat(fd)
    return {"dev": status.st_dev, "ino": status.st_ino, "mode": status.st_mode & 0o170000}


@dataclass(frozen=True, slots=True)
class _Entry:
    offer: FdOffer
    fd: OwnedFd


class FdInventory:
    """The fds of a machine, frozen at `migrate`: our own duplicates, so no number can be reused."""

    def __init__(self, entries: tuple[_Entry, ...]) -> None:
        self._entries = entries

    @classmethod
    def of_machine(cls, machine: Machine, passed: Mapping[str, list[str]]) -> FdInventory:
        """Duplicate and describe everything a successor needs.

        `passed` are the network cards' fds that go along (`vmm.update.netfds.passed_fds`).
        """
        parts = machine.parts
        entries: list[_Entry] = []
        for block in parts.ram.layout.blocks:
            memfd = parts.ram.memfd(block.id)
            identity = memfd.identity().to_map()
            entries.append(_entry(ram_fd_name(block.id), "ram", memfd.fileno(), identity))
        control = parts.control
        entries.append(
            _entry(LEASE_FD_NAME, "control", control.fileno(), control.identity().to_map())
        )
        for chardev_id, backend in parts.chardevs.items():
            backend.hold_fds()
            for index, fd, kind in backend.fds():
                name = chardev_fd_name(chardev_id, index)
                entries.append(_entry(name, kind, fd, file_identity(fd)))
        for drive_id, image in parts.images.items():
            fd = image.fileno()
            entries.append(_entry(drive_fd_name(drive_id), "drive", fd, file_identity(fd)))
        wanted = {name for names in passed.values() for name in names}
        for netdev_id, netdev in parts.netdevs.items():
            for number, fd, kind in netdev.fds():
                name = netdev_fd_name(netdev_id, number)
                if name in wanted:
                    netdev.hold_fds()
                    entries.append(_entry(name, kind, fd, tap_identity(fd)))
        return cls(tuple(entries))

    @property
    def names(self) -> tuple[str, ...]:
        """Every fd name, in sending order."""
        return tuple(entry.offer.name for entry in self._entries)

    def offers(self) -> tuple[FdOffer, ...]:
        """What HELLO says of them."""
        return tuple(entry.offer for entry in self._entries)

    def filenos(self) -> tuple[int, ...]:
        """The numbers to send, in the order of `names`."""
        return tuple(entry.fd.fileno() for entry in self._entries)

    def close(self) -> None:
        """Close the duplicates."""
        for entry in self._entries:
            entry.fd.close()


def _entry(name: str, kind: str, fd: int, identity: Mapping[str, int]) -> _Entry:
    return _Entry(FdOffer(name=name, kind=kind, identity=identity), OwnedFd.duplicate_of(fd, name))


def describe_machine(config: VmmConfig) -> dict[str, Any]:
    """The part of the configuration that both sides must share, as a CBOR map."""
    return {
        "type": config.machine.type_name,
        "vcpus": config.vcpu_count,
        "cpu-model": config.cpu_model,
        "kernel-irqchip": config.machine.kernel_irqchip,
        "ram": [[backend.id, backend.size_bytes] for backend in config.ram_backends()],
    }


def offer(
    machine: Mapping[str, Any],
    types: Mapping[str, type[VmState]],
    fds: tuple[FdOffer, ...],
    *,
    user_paced: bool,
    nonce: bytes,
) -> Hello:
    """HELLO of a machine with these sections and fds, from this build."""
    return Hello(
        protocol_min=PROTOCOL_MIN,
        protocol_max=PROTOCOL_MAX,
        product=PRODUCT,
        product_version=VERSION,
        machine=machine,
        sections=tuple(SectionHeader.of(name, kind) for name, kind in types.items()),
        fds=fds,
        user_paced=user_paced,
        nonce=nonce,
    )


def hello_problems(
    hello: Hello, config: VmmConfig, local_types: Mapping[str, type[VmState]]
) -> tuple[str, ...]:
    """Every reason why the machine that HELLO describes cannot run here; empty = it can.

    `local_types` are the sections of the machine that this process would build.
    """
    if agreed_protocol(hello) < max(hello.protocol_min, PROTOCOL_MIN):
        return (
            f"the source speaks protocol {hello.protocol_min}..{hello.protocol_max}, "
            f"this process {PROTOCOL_MIN}..{PROTOCOL_MAX}",
        )
    problems = _machine_problems(hello.machine, describe_machine(config))
    problems += _section_problems(hello, local_types)
    problems += _fd_problems(hello, config)
    problems += passed_fd_problems(hello, config)
    return tuple(problems)


def main_header_problem(header: MainHeader, config: VmmConfig, nonce: bytes) -> str | None:
    """Why the main channel is not the one of this update, or describes another machine."""
    ours = tuple((backend.id, backend.size_bytes) for backend in config.ram_backends())
    if header.nonce != nonce:
        return "the main channel belongs to another update: its nonce is not the one of HELLO"
    if header.machine_type != config.machine.type_name:
        return (
            f"Machine type received is '{header.machine_type}' and local is "
            f"'{config.machine.type_name}'"
        )
    if header.ram_blocks != ours:
        return f"main channel: RAM blocks are {header.ram_blocks}, this process has {ours}"
    return None


def agreed_protocol(hello: Hello) -> int:
    """The newest protocol that both sides speak, if any."""
    return min(hello.protocol_max, PROTOCOL_MAX)


def chosen_protocol(accept: Accept) -> int:
    """The protocol of the rest of the update; MigrationError when it is not one of ours."""
    if not PROTOCOL_MIN <= accept.protocol <= PROTOCOL_MAX:
        raise MigrationError(
            f"the target chose protocol {accept.protocol}; this process speaks "
            f"{PROTOCOL_MIN}..{PROTOCOL_MAX}"
        )
    return accept.protocol


def _machine_problems(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    problems = []
    if theirs.get("type") != ours["type"]:
        problems.append(
            f"Machine type received is '{theirs.get('type')}' and local is '{ours['type']}'"
        )
    for key, option in (("vcpus", "-smp"), ("cpu-model", "-cpu"), ("kernel-irqchip", "-machine")):
        if theirs.get(key) != ours[key]:
            problems.append(f"{option}: {key} is {theirs.get(key)} there and {ours[key]} here")
    problems += _ram_problems(theirs.get("ram"), ours["ram"])
    return problems


def _ram_problems(theirs: Any, ours: list[list[Any]]) -> list[str]:
    try:
        sizes = {str(name): int(size) for name, size in theirs}
    except (TypeError, ValueError):
        return [f"HELLO has no usable RAM block list: {theirs!r}"]
    local = dict(ours)
    problems = [
        f'Unknown ramblock "{name}", cannot accept migration' for name in sizes.keys() - local
    ]
    problems += [f'RAM block "{name}" exists only here' for name in local.keys() - sizes]
    problems += [
        f"Size mismatch: {name}: {sizes[name]:#x} != {local[name]:#x}: Invalid argument"
        for name in sizes.keys() & local
        if sizes[name] != local[name]
    ]
    return problems


def _section_problems(hello: Hello, local_types: Mapping[str, type[VmState]]) -> list[str]:
    problems = []
    offered = {header.name: header for header in hello.sections}
    for header in hello.sections:
        state_type = local_types.get(header.name)
        if state_type is not None:
            try:
                check_version(header.name, header.kind, header.version, state_type)
            except StateError as error:
                problems.append(str(error))
        elif not header.optional:
            problems.append(
                f"Unknown savevm section or instance '{header.name}' 0. Make sure that your "
                "current VM setup matches your saved VM setup, including any hotplugged devices"
            )
    problems += [
        f"device '{name}' exists only here; the source has no such section"
        for name, kind in local_types.items()
        if name not in offered and not kind.OPTIONAL
    ]
    return problems


def _fd_problems(hello: Hello, config: VmmConfig) -> list[str]:
    offered = {offer.name for offer in hello.fds}
    needed = [ram_fd_name(backend.id) for backend in config.ram_backends()] + [LEASE_FD_NAME]
    needed += [drive_fd_name(drive.id) for drive in config.used_drives()]
    return [f"the source does not offer fd '{name}'" for name in needed if name not in offered]
