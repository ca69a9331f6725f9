"""Two layers decide whether an update passes the fds of a network card.

The user's choice is the migration parameter `migrate-fds` (a cpr mode makes it by itself); the
device's is its property `migrate-fds`. Only with both on do the fds go along, and then HELLO says
under the card's section name which ones. A card that passes none is not mentioned at all: with the
property off everywhere, HELLO and state are what they would be without the parameter.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from cpr.messages import Hello
from vmm.config import TapNetdev, VirtioNetDevice, VmmConfig
from vmm.virtiospecs import net_section

PASSED_FDS = "passed-fds"  # in HELLO's machine description: section name -> fd names


def netdev_fd_name(netdev_id: str, index: int) -> str:
    """Name of one queue of a tap."""
    return f"tap:{netdev_id}:{index}"


def promised_netdev_fds(netdev_id: str, names: Iterable[str]) -> tuple[str, ...]:
    """Those of `names` that belong to a netdev, in their order."""
    prefix = netdev_fd_name(netdev_id, 0).removesuffix("0")
    return tuple(name for name in names if name.startswith(prefix))


def used_netdevs(config: VmmConfig) -> tuple[TapNetdev, ...]:
    """The netdevs that have a card."""
    by_id = {netdev.id: netdev for netdev in config.netdevs}
    ids = (card.netdev for _section, card in net_cards(config))
    return tuple(by_id[name] for name in ids if name is not None)


def net_cards(config: VmmConfig) -> Iterator[tuple[str, VirtioNetDevice]]:
    """Every network card with its section name."""
    cards = (device for device in config.virtio if isinstance(device, VirtioNetDevice))
    for number, card in enumerate(cards):
        yield net_section(number), card


def passed_fds(
    config: VmmConfig, *, migrate_fds: bool, dead: Collection[str] = ()
) -> dict[str, list[str]]:
    """Section name -> names of the fds that an update passes.

    An empty list says that there is no live fd (nothing plugged in, or the tap was deleted), so
    that the successor opens its own. `migrate_fds` is the user's choice, `dead` netdev ids.
    """
    if not migrate_fds:
        return {}
    queues = {netdev.id: netdev.queues for netdev in config.netdevs if netdev.id not in dead}
    return {
        section: [
            netdev_fd_name(card.netdev or "", index)
            for index in range(queues.get(card.netdev or "", 0))
        ]
        for section, card in net_cards(config)
        if card.migrate_fds
    }


def kept_fds(config: VmmConfig) -> tuple[str, ...]:
    """A sentence for each card whose tap stays behind although the update could pass it."""
    return tuple(
        f"device '{section}': migrate-fds=off, so netdev '{card.netdev}' is not passed; the "
        "successor opens its own, and frames in between may be lost"
        for section, card in net_cards(config)
        if not card.migrate_fds and card.netdev is not None
    )


def passed_fd_problems(hello: Hello, config: VmmConfig) -> list[str]:
    """Why what HELLO says of cards and their fds does not fit this process's cards."""
    theirs = hello.machine.get(PASSED_FDS, {})
    if not _is_map_of_names(theirs):
        return [f"HELLO has no usable map of passed fds: {theirs!r}"]
    ours = passed_fds(config, migrate_fds=True)
    there = {header.name for header in hello.sections}
    offered = {offer.name for offer in hello.fds}
    problems = [
        f"device '{section}': migrate-fds is {_on_off(section in theirs)} in the source and "
        f"{_on_off(section in ours)} here; give both sides the same"
        for section, _card in net_cards(config)
        if section in there and (section in theirs) != (section in ours)
    ]
    problems += [
        f"device '{section}': the source passes {_list(theirs[section])}, and here it has "
        f"{_list(names)}; give both sides the same -netdev"
        for section, names in ours.items()
        if theirs.get(section) and theirs[section] != names
    ]
    problems += [
        f"the source promises fd '{name}' and does not offer it"
        for names in theirs.values()
        for name in names
        if name not in offered
    ]
    return problems


def _is_map_of_names(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(names, list) and all(isinstance(name, str) for name in names)
        for names in value.values()
    )


def _on_off(on: bool) -> str:
    return "on" if on else "off"


def _list(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "no fd"
