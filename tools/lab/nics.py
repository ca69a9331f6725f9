"""Network cards for a pair: their taps in a namespace, and the options that name them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tools.lab.namespace import NetworkNamespace, TapSpec

# One /24 and one /64 for each card: 10.0.2.0, 10.0.3.0, … as QEMU's user network begins.
_FIRST_SUBNET = 2
NICS_MAX = 17  # the machine's virtio slots


@dataclass(frozen=True, slots=True)
class Nic:
    """One card: the host has address 2 of its subnet, the guest 15."""

    number: int

    @property
    def ifname(self) -> str:
        """The tap."""
        return f"tap{self.number}"

    @property
    def host_address(self) -> str:
        """IPv4 address of the host on this link."""
        return f"10.0.{_FIRST_SUBNET + self.number}.2"

    @property
    def guest_address(self) -> str:
        """IPv4 address of the guest on this link."""
        return f"10.0.{_FIRST_SUBNET + self.number}.15"

    @property
    def host_address6(self) -> str:
        """IPv6 address of the host on this link."""
        return f"fd00:{_FIRST_SUBNET + self.number}::2"

    @property
    def guest_address6(self) -> str:
        """IPv6 address of the guest on this link."""
        return f"fd00:{_FIRST_SUBNET + self.number}::15"

    def argv(self, *, migrate_fds: bool = True) -> list[str]:
        """Options of both processes of a pair."""
        device = f"virtio-net-device,netdev=net{self.number}"
        return [
            "-netdev",
            f"tap,id=net{self.number},ifname={self.ifname},script=no,downscript=no",
            "-device",
            device if migrate_fds else f"{device},migrate-fds=off",
        ]


def add_nics(namespace: NetworkNamespace, count: int, template: TapSpec) -> tuple[Nic, ...]:
    """Make the taps of `count` cards; `template` has all but names and addresses."""
    nics = tuple(Nic(number) for number in range(count))
    for nic in nics:
        addresses = (f"{nic.host_address}/24", f"{nic.host_address6}/64")
        namespace.add_tap(replace(template, ifname=nic.ifname, addresses=addresses))
    return nics
