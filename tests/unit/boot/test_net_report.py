"""The layout that `net.h` and `net_report.py` share."""

from __future__ import annotations

import re
import struct
from importlib import resources

import pytest

from vmm.boot.guest import net_report
from vmm.boot.guest.net_report import FlowPayload, NetLink, byte_source, parse_net
from vmm.boot.guest.report import SLOT_SIZE_BYTES
from vmm.errors import BootError


def _header() -> str:
    return resources.files("vmm.boot.guest").joinpath("net.h").read_text()


def _slot(*words: int) -> bytes:
    data = bytearray(SLOT_SIZE_BYTES)
    struct.pack_into(f"<{len(words)}Q", data, net_report.NET_REPORT_OFFSET, *words)
    return bytes(data)


def test_header_and_python_agree_on_every_shared_number() -> None:
    found = re.findall(r"^#define (\w+) (0x[0-9a-f]+|\d+)(?:ull)?\b", _header(), re.MULTILINE)
    numbers = {name: int(value, 0) for name, value in found}
    shared = (
        *("NET_REPORT_OFFSET", "NET_REPORT_MAGIC", "NET_FLOWS", "PAYLOAD_MAGIC"),
        *("PORT_ECHO", "PORT_DISCARD", "PORT_SOURCE"),
    )
    assert {name: numbers[name] for name in shared} == {
        name: getattr(net_report, name) for name in shared
    }
    states = {f"NET_LINK_{link.name}": link.value for link in NetLink}
    assert {name: numbers[name] for name in states} == states


def test_counters_have_the_order_of_the_header() -> None:
    body = re.search(r"struct net_report \{(.*?)\};", _header(), re.DOTALL)
    assert body is not None
    names = re.findall(r"u64 (\w+);", body[1])
    assert names == ["magic", *net_report.NetReport.__slots__[:-1]]


def test_flows_are_parsed_and_unused_ones_left_out() -> None:
    flow = (1 << 63 | 7 << 32 | 2, 10, 12, 2, 1, 3, 0)
    report = parse_net(_slot(net_report.NET_REPORT_MAGIC, 1, *range(14), *flow))
    assert report is not None
    assert report.link is NetLink.UP
    assert (report.rx_frames, report.tcp_pattern_errors) == (0, 13)
    found = report.flow(2, run=7)
    assert found is not None
    assert (found.received, found.missing, found.duplicated, found.reordered) == (10, 2, 1, 3)
    assert report.flow(2, run=6) is None
    assert len(report.flows) == 1


def test_a_guest_without_a_network_has_no_report() -> None:
    assert parse_net(bytes(SLOT_SIZE_BYTES)) is None


def test_too_short_a_report_is_refused() -> None:
    with pytest.raises(BootError, match=r"expected at least 16384 bytes, got 100"):
        parse_net(bytes(100))


def test_payload_survives_the_wire_and_other_datagrams_are_not_one() -> None:
    payload = FlowPayload(flow=1, run=2, sequence=3, sent_ns=4)
    assert FlowPayload.unpack(payload.pack() + b"rest") == payload
    assert FlowPayload.unpack(payload.pack()[:31]) is None
    assert FlowPayload.unpack(bytes(32)) is None


def test_byte_source_is_the_same_in_any_pieces() -> None:
    whole = byte_source(0, 64)
    assert whole[:8] == (0x9E37_79B9_7F4A_7C15).to_bytes(8, "little")
    assert b"".join(byte_source(at, 5) for at in range(0, 60, 5)) == whole[:60]
