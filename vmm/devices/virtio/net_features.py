"""Feature bits of virtio-net (virtio 1.2, 5.1.3) and what they need of the back-end."""

from __future__ import annotations

from vmm.devices.virtio.net_backend import NetBackend, NetOffloads

CSUM, GUEST_CSUM = 1 << 0, 1 << 1
MAC = 1 << 5
GUEST_TSO4, GUEST_TSO6, GUEST_ECN = 1 << 7, 1 << 8, 1 << 9
HOST_TSO4, HOST_TSO6, HOST_ECN = 1 << 11, 1 << 12, 1 << 13
MRG_RXBUF, STATUS, CTRL_VQ, CTRL_RX, CTRL_RX_EXTRA = 1 << 15, 1 << 16, 1 << 17, 1 << 18, 1 << 20
GUEST_ANNOUNCE, CTRL_MAC_ADDR = 1 << 21, 1 << 23

_ALWAYS = (
    MAC | MRG_RXBUF | STATUS | CTRL_VQ | CTRL_RX | CTRL_RX_EXTRA | GUEST_ANNOUNCE | CTRL_MAC_ADDR
)
# A feature and those of which it needs one (5.1.3.1).
_NEEDS = (
    (GUEST_TSO4, GUEST_CSUM),
    (GUEST_TSO6, GUEST_CSUM),
    (GUEST_ECN, GUEST_TSO4 | GUEST_TSO6),
    (HOST_TSO4, CSUM),
    (HOST_TSO6, CSUM),
    (HOST_ECN, HOST_TSO4 | HOST_TSO6),
    (CTRL_RX, CTRL_VQ),
    (CTRL_RX_EXTRA, CTRL_RX),
    (GUEST_ANNOUNCE, CTRL_VQ),
    (CTRL_MAC_ADDR, CTRL_VQ),
)


def offered(backend: NetBackend) -> int:
    """Everything that the device does itself, and the offloads that the back-end can do."""
    can = backend.offloads
    if not backend.vnet_hdr_size or not can.csum:
        return _ALWAYS
    features = _ALWAYS | CSUM | GUEST_CSUM
    if can.tso4:
        features |= HOST_TSO4 | GUEST_TSO4
    if can.tso6:
        features |= HOST_TSO6 | GUEST_TSO6
    if can.tso_ecn and (can.tso4 or can.tso6):
        features |= HOST_ECN | GUEST_ECN
    return features


def consistent(features: int) -> bool:
    """Whether every feature has one of those that it needs."""
    return all(not features & feature or features & needed for feature, needed in _NEEDS)


def guest_offloads(features: int) -> NetOffloads:
    """What the driver takes over when it receives."""
    return NetOffloads(
        csum=bool(features & GUEST_CSUM),
        tso4=bool(features & GUEST_TSO4),
        tso6=bool(features & GUEST_TSO6),
        tso_ecn=bool(features & GUEST_ECN),
    )
