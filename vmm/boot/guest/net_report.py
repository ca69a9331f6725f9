"""What the built-in guest's network stack says about itself, read from its RAM (see `net.h`).

It lies in vCPU 0's report slot, 4 KiB after its beginning: 16 words and then 8 watched UDP flows of
7 words each, every one a little-endian u64. Each counter is one aligned store, so it is never torn;
two counters may be some frames apart while the guest runs.

A UDP flow is watched when its datagrams begin with `FlowPayload`. The guest counts by the sequence
number: `missing` are the holes below the highest one seen, so it goes down again when a late
datagram comes (`reordered`). The same number twice is `duplicated`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from vmm.boot.guest.report import SLOT_SIZE_BYTES
from vmm.errors import BootError

NET_REPORT_OFFSET = 0x1000
NET_REPORT_MAGIC = int.from_bytes(b"CPRTNET1", "little")
NET_FLOWS = 8
PAYLOAD_MAGIC = int.from_bytes(b"CPRFLOW1", "little")
PORT_ECHO, PORT_DISCARD, PORT_SOURCE = 7, 9, 19
OWN_FLOW_FIRST = 0x100  # numbers of the flows that the guest begins

_COUNTERS = struct.Struct("=16Q")
_FLOW = struct.Struct("=7Q")
_PAYLOAD = struct.Struct("<QIIQQ")
_FLOW_USED = 1 << 63
_STEP = 0x9E37_79B9_7F4A_7C15
_U64 = (1 << 64) - 1


class NetLink(IntEnum):
    """State of the guest's virtio-net driver."""

    ABSENT = 0  # no device was found
    UP = 1
    REFUSED = 2  # the device lacks what the driver needs


@dataclass(frozen=True, slots=True)
class FlowReport:
    """One UDP flow, as the guest saw it."""

    flow: int
    run: int
    received: int
    next_sequence: int  # one more than the highest that came
    missing: int
    duplicated: int
    reordered: int
    sent: int  # by the guest, if it is a flow of its own


@dataclass(frozen=True, slots=True)
class NetReport:
    """Counters of the stack since the guest booted."""

    link: NetLink
    rx_frames: int
    tx_frames: int
    rx_unused: int  # of no interest to the guest
    rx_damaged: int  # wrong length or checksum
    tx_no_buffer: int  # sending was put off because every buffer was in the ring
    echoes: int  # ICMP and ICMPv6
    tcp_opened: int
    tcp_closed: int  # by FIN of both sides
    tcp_resets: int
    tcp_retransmits: int
    tcp_out_of_order: int
    tcp_bytes_in: int
    tcp_bytes_out: int  # acknowledged by the peer
    tcp_pattern_errors: int  # words of the byte source that came in wrong
    flows: tuple[FlowReport, ...]

    def flow(self, number: int, run: int) -> FlowReport | None:
        """The flow with this number and run; None if no datagram of it came or was sent."""
        return next((f for f in self.flows if (f.flow, f.run) == (number, run)), None)


@dataclass(frozen=True, slots=True)
class FlowPayload:
    """The first 32 bytes of a datagram of a watched flow."""

    flow: int
    run: int
    sequence: int
    sent_ns: int  # the sender's CLOCK_MONOTONIC

    def pack(self) -> bytes:
        """As on the wire."""
        return _PAYLOAD.pack(PAYLOAD_MAGIC, self.flow, self.run, self.sequence, self.sent_ns)

    @classmethod
    def unpack(cls, data: bytes) -> FlowPayload | None:
        """None for a datagram that is not of a watched flow."""
        if len(data) < _PAYLOAD.size:
            return None
        magic, flow, run, sequence, sent_ns = _PAYLOAD.unpack_from(data)
        return cls(flow, run, sequence, sent_ns) if magic == PAYLOAD_MAGIC else None


_COUNTER_NAMES = NetReport.__slots__[1:-1]


def parse_net(data: bytes) -> NetReport | None:
    """Decode vCPU 0's slot, or all that was read at REPORT_ADDRESS.

    None: the guest was started without a network. Raises BootError when `data` is too short.
    """
    if len(data) < SLOT_SIZE_BYTES:
        raise BootError(
            f"guest network report: expected at least {SLOT_SIZE_BYTES} bytes, got {len(data)}"
        )
    magic, link, *counters = _COUNTERS.unpack_from(data, NET_REPORT_OFFSET)
    if magic != NET_REPORT_MAGIC:
        return None
    start = NET_REPORT_OFFSET + _COUNTERS.size
    flows = _FLOW.iter_unpack(data[start : start + NET_FLOWS * _FLOW.size])
    return NetReport(
        link=NetLink(link),
        flows=tuple(
            FlowReport(name & 0xFFFF_FFFF, name >> 32 & 0x7FFF_FFFF, *rest)
            for name, *rest in flows
            if name & _FLOW_USED
        ),
        **dict(zip(_COUNTER_NAMES, counters, strict=True)),
    )


def byte_source(offset: int, size_bytes: int) -> bytes:
    """The bytes that the guest's byte source (TCP port 19) sends at a stream offset."""
    first, last = offset // 8, (offset + size_bytes + 7) // 8
    words = [(k + 1) * _STEP & _U64 for k in range(first, last)]
    data = struct.pack(f"<{len(words)}Q", *words)
    return data[offset - first * 8 :][:size_bytes]
