"""Commands of virtio-net's control queue (virtio 1.2, 5.1.6.5): what they change.

Pure: settings and a command in, settings or None (refused) out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from vmm.devices.virtio.net_state import MAC_SIZE_BYTES, MAC_TABLE_MAX, RxFilter

CLASS_RX, CLASS_MAC, CLASS_ANNOUNCE = 0, 1, 3
RX_PROMISC, RX_ALLMULTI, RX_ALLUNI, RX_NOMULTI, RX_NOUNI, RX_NOBCAST = range(6)
MAC_TABLE_SET, MAC_ADDR_SET = 0, 1
ANNOUNCE_ACK = 0
REPLY_OK, REPLY_ERROR = b"\x00", b"\x01"
# The largest command: two tables with their counts.
COMMAND_SIZE_MAX_BYTES = 0x1000
_COUNT_SIZE_BYTES = 4

_RX_MODES = {
    RX_PROMISC: "promiscuous",
    RX_ALLMULTI: "all_multicast",
    RX_ALLUNI: "all_unicast",
    RX_NOMULTI: "no_multicast",
    RX_NOUNI: "no_unicast",
    RX_NOBCAST: "no_broadcast",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """What the driver may change."""

    mac: bytes
    rx_filter: RxFilter
    announce_pending: bool


def apply(settings: Settings, command: bytes) -> Settings | None:
    """`command` is class, command, data. None when it is unknown or malformed."""
    if len(command) < 2:
        return None
    group, code, data = command[0], command[1], command[2:]
    if group == CLASS_RX and code in _RX_MODES and len(data) == 1:
        mode: dict[str, Any] = {_RX_MODES[code]: bool(data[0])}
        return replace(settings, rx_filter=replace(settings.rx_filter, **mode))
    if group == CLASS_MAC and code == MAC_ADDR_SET and len(data) == MAC_SIZE_BYTES:
        return replace(settings, mac=data)
    if group == CLASS_MAC and code == MAC_TABLE_SET:
        return _set_tables(settings, data)
    if group == CLASS_ANNOUNCE and code == ANNOUNCE_ACK and settings.announce_pending:
        return replace(settings, announce_pending=False)
    return None


def _set_tables(settings: Settings, data: bytes) -> Settings | None:
    """Unicast table, then multicast table; one that is too long opens its whole class."""
    tables = []
    for _ in range(2):
        count = int.from_bytes(data[:_COUNT_SIZE_BYTES], "little")
        end = _COUNT_SIZE_BYTES + count * MAC_SIZE_BYTES
        if len(data) < end:
            return None
        tables.append(
            tuple(
                data[at : at + MAC_SIZE_BYTES]
                for at in range(_COUNT_SIZE_BYTES, end, MAC_SIZE_BYTES)
            )
        )
        data = data[end:]
    if data:
        return None
    unicast, multicast = tables
    changed = replace(
        settings.rx_filter,
        unicast=unicast if len(unicast) <= MAC_TABLE_MAX else (),
        multicast=multicast if len(multicast) <= MAC_TABLE_MAX else (),
    )
    if len(unicast) > MAC_TABLE_MAX:
        changed = replace(changed, all_unicast=True)
    if len(multicast) > MAC_TABLE_MAX:
        changed = replace(changed, all_multicast=True)
    return replace(settings, rx_filter=changed)
