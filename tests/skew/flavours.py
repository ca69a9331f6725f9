"""How each of the other versions differs, and what must follow from that; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Extra(Enum):
    """A device that the present version does not have."""

    NONE = "none"
    OPTIONAL = "optional"  # its section may be skipped
    MANDATORY = "mandatory"


EXTRA_NAME = "fan0"
PORTS_NAME = "pc-ports"


@dataclass(frozen=True, slots=True)
class Flavour:
    """A version: its protocol range, the versions of one of its sections, and its devices."""

    product_version: str
    protocol: tuple[int, int] = (1, 1)
    ports_version: int = 1
    ports_reads_from: int = 1
    extra: Extra = Extra.NONE


FLAVOURS: Mapping[str, Flavour] = {
    "past-protocol": Flavour("0.0.8", protocol=(0, 0)),
    "past-section": Flavour("0.0.9", ports_version=0, ports_reads_from=0),
    "present": Flavour("0.1.0"),
    "future-minor": Flavour("0.2.0"),
    "future-protocols": Flavour("0.3.0", protocol=(1, 2)),
    "future-protocol": Flavour("0.4.0", protocol=(2, 2)),
    "future-section": Flavour("0.5.0", ports_version=2),
    "future-section-only": Flavour("0.6.0", ports_version=2, ports_reads_from=2),
    "future-optional": Flavour("0.7.0", extra=Extra.OPTIONAL),
    "future-mandatory": Flavour("0.8.0", extra=Extra.MANDATORY),
}


def expected_refusal(source: Flavour, target: Flavour) -> str | None:
    """What the refusal must name; None when the update works."""
    (low, high), (low_there, high_there) = source.protocol, target.protocol
    if max(low, low_there) > min(high, high_there):
        return f"protocol {low}..{high}, this process {low_there}..{high_there}"
    if not target.ports_reads_from <= source.ports_version <= target.ports_version:
        return PORTS_NAME
    if {source.extra, target.extra} == {Extra.MANDATORY, Extra.NONE}:
        return EXTRA_NAME
    return None
