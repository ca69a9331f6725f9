"""The process that loads a guest with traffic, from inside the pair's network namespace.

    python -m tools.lab.load_agent SPEC

SPEC is the JSON of `AgentSpec`. It sends until its standard input ends, then waits until everything
has come back or DRAIN_S is over, and prints what it found as one line of JSON.

* UDP: frames with sequence number and time to the guest's echo port, at a steady rate each.
* TCP: paced writes to the guest's echo service; both directions hashed.
* ping: one ICMP echo every `ping_ms`.
* It also receives the UDP flow that the guest itself sends.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import random
import selectors
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from tools.lab.load_ledger import SequenceLedger, StreamResult
from vmm.boot.guest.net_report import PORT_ECHO, FlowPayload

NS_PER_S, NS_PER_MS = 1_000_000_000, 1_000_000
DRAIN_S = 5.0  # longer than a guest that is still paused, and than TCP's first retransmissions
FRAME_PADDING = b"\0" * 32  # 64 bytes of payload, as a small RPC has
# Slot 0 of the watched flows is that of the guest's own; ours come after it.
FIRST_FLOW = 1
GUEST_FLOW_PORT = 5000  # where the guest's own UDP flow arrives
TCP_CHUNK_BYTES = 2048
# A backlog of sends after this process itself was not scheduled is sent in pieces of this size, so
# that the replies are read in between.
SEND_BURST = 16
_RECEIVE_BYTES = 1 << 16
_ICMP = struct.Struct("!BBHHH")
_ICMP_ECHO, _ICMP_REPLY, _IP_HEADER_BYTES = 8, 0, 20
_PING_ID = 0x4350


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """What to send where; `run` tells the flows of one run from those of another."""

    guest_address: str
    host_address: str
    run: int
    udp_flows: int
    udp_pps: int  # of each flow
    tcp_streams: int
    tcp_writes_per_s: int  # of each stream, TCP_CHUNK_BYTES each
    ping_ms: int  # 0: none
    guest_flow: bool


class _Load:
    """Everything that is going on; one thread, one selector, one heap of due times."""

    def __init__(self, spec: AgentSpec) -> None:
        self.spec = spec
        self.selector = selectors.DefaultSelector()
        self.sending = True
        self.started_ns = time.monotonic_ns()
        self.longest_trip_ns = 0
        self._due: list[tuple[int, int, Callable[[], int]]] = []
        self.udp = [_UdpFlow(self, number) for number in range(spec.udp_flows)]
        self.tcp = [_Stream(self, number) for number in range(spec.tcp_streams)]
        self.ping = _Ping(self) if spec.ping_ms else None
        self.guest_flow = _GuestFlow(self) if spec.guest_flow else None

    def every(self, interval_ns: int, action: Callable[[], None]) -> None:
        """Call `action` at a steady rate while sending; what was missed is made up for."""

        def step() -> int:
            action()
            return interval_ns

        first = time.monotonic_ns() + interval_ns
        heapq.heappush(self._due, (first, len(self._due), step))

    def watch(self, sock: socket.socket, on_readable: Callable[[], None]) -> None:
        """Call `on_readable` whenever there is something to read."""
        self.selector.register(sock, selectors.EVENT_READ, on_readable)

    def run(self) -> None:
        """Send and receive until standard input ends, then drain."""
        self.selector.register(sys.stdin, selectors.EVENT_READ, self._stop)
        while self.sending:
            self._send_due()
            self._poll(self._due[0][0] if self._due else time.monotonic_ns() + NS_PER_S)
        for stream in self.tcp:
            stream.finish()
        until = time.monotonic_ns() + int(DRAIN_S * NS_PER_S)
        while self._outstanding() and time.monotonic_ns() < until:
            self._poll(until)

    def _stop(self) -> None:
        self.selector.unregister(sys.stdin)
        self.sending = False

    def _send_due(self) -> None:
        now = time.monotonic_ns()
        for _ in range(SEND_BURST):
            if not self._due or self._due[0][0] > now:
                return
            due, order, step = self._due[0]
            heapq.heapreplace(self._due, (due + step(), order, step))

    def _poll(self, until_ns: int) -> None:
        timeout_s = max(0, until_ns - time.monotonic_ns()) / NS_PER_S
        for key, _events in self.selector.select(timeout_s):
            key.data()

    def _outstanding(self) -> bool:
        parts: list[_UdpFlow | _Stream | _Ping] = [*self.udp, *self.tcp]
        if self.ping is not None:
            parts.append(self.ping)
        return any(not part.done for part in parts)

    def result(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "seconds": (time.monotonic_ns() - self.started_ns) / NS_PER_S,
            "longest_trip_ns": self.longest_trip_ns,
            "udp": [_counts(flow.ledger, flow.sent) for flow in self.udp],
            "tcp": [asdict(stream.result()) for stream in self.tcp],
            "ping": self.ping
            and {
                **_counts(self.ping.ledger, self.ping.sent),
                "longest_hole_ns": self.ping.longest_hole_ns,
            },
            "guest_flow": self.guest_flow and _counts(self.guest_flow.ledger, 0),
        }


def _counts(ledger: SequenceLedger, sent: int) -> dict[str, int]:
    return {
        "sent": sent,
        "received": ledger.received,
        "duplicated": ledger.duplicated,
        "reordered": ledger.reordered,
        "first": ledger.first,
        "next": ledger.next,
    }


class _UdpFlow:
    def __init__(self, load: _Load, number: int) -> None:
        self._load, self._number = load, number
        self.sent = 0
        self.ledger = SequenceLedger()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.connect((load.spec.guest_address, PORT_ECHO))
        self._socket.setblocking(False)
        load.watch(self._socket, self._receive)
        load.every(NS_PER_S // load.spec.udp_pps, self._send)

    @property
    def done(self) -> bool:
        return self.ledger.received - self.ledger.duplicated >= self.sent

    def _send(self) -> None:
        now = time.monotonic_ns()
        payload = FlowPayload(self._number + FIRST_FLOW, self._load.spec.run, self.sent, now)
        try:
            self._socket.send(payload.pack() + FRAME_PADDING)
        except BlockingIOError:
            return  # not sent and not counted; the next time is soon
        self.sent += 1

    def _receive(self) -> None:
        payload = FlowPayload.unpack(self._socket.recv(_RECEIVE_BYTES))
        if payload is not None and payload.run == self._load.spec.run:
            self.ledger.note(payload.sequence)
            trip = time.monotonic_ns() - payload.sent_ns
            self._load.longest_trip_ns = max(self._load.longest_trip_ns, trip)


class _GuestFlow:
    def __init__(self, load: _Load) -> None:
        self.ledger = SequenceLedger()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((load.spec.host_address, GUEST_FLOW_PORT))
        self._socket.setblocking(False)
        load.watch(self._socket, self._receive)

    def _receive(self) -> None:
        payload = FlowPayload.unpack(self._socket.recv(_RECEIVE_BYTES))
        if payload is not None:
            self.ledger.note(payload.sequence)


class _Ping:
    def __init__(self, load: _Load) -> None:
        self.sent = 0
        self.ledger = SequenceLedger()
        self.longest_hole_ns = 0
        self._last_ns = time.monotonic_ns()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self._socket.connect((load.spec.guest_address, 0))
        self._socket.setblocking(False)
        load.watch(self._socket, self._receive)
        load.every(load.spec.ping_ms * NS_PER_MS, self._send)

    @property
    def done(self) -> bool:
        return self.ledger.received >= self.sent

    def _send(self) -> None:
        header = _ICMP.pack(_ICMP_ECHO, 0, 0, _PING_ID, self.sent & 0xFFFF)
        body = struct.pack("!Q", self.sent)
        self._socket.send(
            _ICMP.pack(_ICMP_ECHO, 0, _checksum(header + body), _PING_ID, self.sent & 0xFFFF) + body
        )
        self.sent += 1

    def _receive(self) -> None:
        packet = self._socket.recv(_RECEIVE_BYTES)[_IP_HEADER_BYTES:]
        if len(packet) < _ICMP.size + 8:
            return
        kind, _code, _sum, identity, _sequence = _ICMP.unpack_from(packet)
        if kind != _ICMP_REPLY or identity != _PING_ID:
            return
        now = time.monotonic_ns()
        self.longest_hole_ns = max(self.longest_hole_ns, now - self._last_ns)
        self._last_ns = now
        self.ledger.note(int.from_bytes(packet[_ICMP.size : _ICMP.size + 8], "big"))


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    folded: int = total + (total >> 16)
    return ~folded & 0xFFFF


class _Stream:
    """One TCP stream to the echo service; ends when the guest has closed its side as well."""

    def __init__(self, load: _Load, number: int) -> None:
        self._load = load
        self._random = random.Random(number)
        self._out, self._in = hashlib.sha256(), hashlib.sha256()
        self._sent = self._received = 0
        self._rest = b""
        self.done = False
        self._error = ""
        self._socket = socket.create_connection((load.spec.guest_address, PORT_ECHO), DRAIN_S)
        self._socket.setblocking(False)
        load.watch(self._socket, self._receive)
        load.every(NS_PER_S // load.spec.tcp_writes_per_s, self._send)

    def finish(self) -> None:
        """Send no more, not even the rest of a chunk; the guest answers with its FIN."""
        if self.done:
            return
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._end(str(error))

    def result(self) -> StreamResult:
        error = self._error if self.done else self._error or "no end within the drain time"
        exact = self._out.digest() == self._in.digest()
        return StreamResult(self._sent, self._received, exact, error)

    def _send(self) -> None:
        if self.done or not self._load.sending:
            return
        if not self._rest:
            self._rest = self._random.randbytes(TCP_CHUNK_BYTES)
        try:
            size = self._socket.send(self._rest)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(str(error))
            return
        self._out.update(self._rest[:size])
        self._sent += size
        self._rest = self._rest[size:]

    def _receive(self) -> None:
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except OSError as error:
            self._end(str(error))
            return
        if not data:
            self._end("" if not self._load.sending else "the guest closed the stream")
            return
        self._in.update(data)
        self._received += len(data)

    def _end(self, error: str) -> None:
        self.done = True
        self._error = self._error or error
        self._load.selector.unregister(self._socket)
        self._socket.close()


def main() -> None:
    """See the module's text."""
    load = _Load(AgentSpec(**json.loads(sys.argv[1])))
    print("ready", flush=True)
    load.run()
    print(json.dumps(load.result()), flush=True)


if __name__ == "__main__":
    main()
