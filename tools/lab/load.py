"""Traffic for the guest of a chain: `--load udp=PPS,tcp=N[@WRITES],ping`, run and accounted for.

Per UDP flow there are two entries in the ledger: towards the guest, as the guest counted (its
report in RAM), and from the guest, as the load process counted the echoes. The flow that the guest
sends by itself has one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tools.lab.child import ChildSetup
from tools.lab.deadlines import LAUNCH_MS, within
from tools.lab.errors import LabError
from tools.lab.load_agent import DRAIN_S, FIRST_FLOW, GUEST_FLOW_PORT, AgentSpec
from tools.lab.load_ledger import Direction, LoadResult, StreamResult
from tools.lab.namespace import NetworkNamespace
from tools.lab.nics import Nic
from vmm.boot.guest.net_report import NetReport

UDP_FLOWS = 2
PING_MS = 10
GUEST_FLOW_PPS_MAX = 100  # the guest pays for each with work that it would have stamped pages in
STOP_MS = int(DRAIN_S * 1000) + LAUNCH_MS  # drain, then the result
TCP_STREAMS_MAX = 7  # the guest has eight connections
TCP_WRITES_PER_S = 50  # of 2 KiB: about 100 kB/s for each stream
_TCP = re.compile(rf"tcp=([1-{TCP_STREAMS_MAX}])(?:@([1-9]\d{{0,3}}))?")


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """What `--load` asks for."""

    udp_pps: int = 0  # of each of UDP_FLOWS flows, each way
    tcp_streams: int = 0
    ping: bool = False
    tcp_writes_per_s: int = TCP_WRITES_PER_S  # of each stream; fewer for an emulated processor

    def __str__(self) -> str:
        parts = [f"udp={self.udp_pps}"] if self.udp_pps else []
        if self.tcp_streams:
            usual = self.tcp_writes_per_s == TCP_WRITES_PER_S
            parts.append(f"tcp={self.tcp_streams}{'' if usual else f'@{self.tcp_writes_per_s}'}")
        return ",".join([*parts, "ping"] if self.ping else parts)

    def guest_words(self, nic: Nic) -> str:
        """Words of the built-in guest's command line."""
        words = f"ip={nic.guest_address}/24 ip6={nic.guest_address6}"
        if not self.udp_pps:
            return words
        pps = min(self.udp_pps, GUEST_FLOW_PPS_MAX)
        return f"{words} udp={nic.host_address}:{GUEST_FLOW_PORT}:{pps}"


def parse_load(text: str) -> LoadSpec:
    """`udp=1000,tcp=4@50,ping`; raises argparse.ArgumentTypeError."""
    udp = tcp = 0
    writes = TCP_WRITES_PER_S
    ping = False
    for word in text.split(","):
        name, _, value = word.partition("=")
        if name == "ping" and not value:
            ping = True
        elif name == "udp" and value.isdecimal() and int(value):
            udp = int(value)
        elif found := _TCP.fullmatch(word):
            tcp, writes = int(found[1]), int(found[2] or TCP_WRITES_PER_S)
        else:
            raise argparse.ArgumentTypeError(
                f"{word!r} is not udp=FRAMES_PER_SECOND, tcp=1..{TCP_STREAMS_MAX}"
                "[@WRITES_PER_SECOND] or ping"
            )
    return LoadSpec(udp, tcp, ping, writes)


class LoadRun:
    """A load process that is running. Made by `start`; `stop` or `kill` must follow."""

    def __init__(
        self,
        spec: AgentSpec,
        process: asyncio.subprocess.Process,
        namespace: NetworkNamespace,
        nic: Nic,
    ) -> None:
        self._spec, self._process = spec, process
        self._namespace, self._nic = namespace, nic
        self._dropped_before = namespace.counters(nic.ifname).tx_dropped
        self._resets_before = 0

    @classmethod
    async def start(
        cls, load: LoadSpec, namespace: NetworkNamespace, nic: Nic, *, run: int, guest: NetReport
    ) -> LoadRun:
        """Start sending; returns when all streams are connected. Raises LabError."""
        spec = AgentSpec(
            guest_address=nic.guest_address,
            host_address=nic.host_address,
            run=run,
            udp_flows=UDP_FLOWS if load.udp_pps else 0,
            udp_pps=load.udp_pps,
            tcp_streams=load.tcp_streams,
            tcp_writes_per_s=load.tcp_writes_per_s,
            ping_ms=PING_MS if load.ping else 0,
            guest_flow=bool(load.udp_pps),
        )
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tools.lab.load_agent", json.dumps(asdict(spec))),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            preexec_fn=ChildSetup(entrance=namespace.entrance()).apply,
        )
        self = cls(spec, process, namespace, nic)
        self._resets_before = guest.tcp_resets
        try:
            if await within(LAUNCH_MS, "load process: ready", self._line()) != "ready":
                raise LabError("the load process did not start; its stderr says why")
        except BaseException:
            await self.kill()
            raise
        return self

    async def stop(self, guest: Callable[[], NetReport]) -> LoadResult:
        """Stop sending, wait for what is on its way, and make the ledger. Raises LabError."""
        try:
            assert self._process.stdin is not None
            self._process.stdin.close()
            text = await within(STOP_MS, "load process: result", self._line())
            await within(LAUNCH_MS, "load process: exit", self._process.wait())
        finally:
            await self.kill()
        if not text:
            raise LabError(f"the load process ended with status {self._process.returncode}")
        return self._result(json.loads(text), guest())

    async def kill(self) -> None:
        """End it whatever it does; harmless when it has ended."""
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def _line(self) -> str:
        assert self._process.stdout is not None
        return (await self._process.stdout.readline()).decode().strip()

    def _result(self, found: Mapping[str, Any], guest: NetReport) -> LoadResult:
        directions = []
        for number, counts in enumerate(found["udp"]):
            name = f"UDP flow {number}"
            there = _to_guest(f"{name} to the guest", counts["sent"], guest, number, self._spec.run)
            # The guest answers each frame that reached it, so that is what it sent.
            directions += [there, _direction(f"{name} from the guest", there.received, counts)]
        if ping := found["ping"]:
            directions.append(_direction("ping, there and back", ping["sent"], ping))
        if (own := found["guest_flow"]) and own["received"]:
            directions.append(_direction("the guest's UDP flow", own["next"] - own["first"], own))
        dropped = self._namespace.counters(self._nic.ifname).tx_dropped
        return LoadResult(
            seconds=found["seconds"],
            directions=tuple(directions),
            streams=tuple(StreamResult(**stream) for stream in found["tcp"]),
            longest_ping_hole_ms=ping["longest_hole_ns"] / 1e6 if ping else None,
            longest_round_trip_ms=found["longest_trip_ns"] / 1e6,
            tap_tx_dropped=dropped - self._dropped_before,
            guest_resets=guest.tcp_resets - self._resets_before,
        )


def _direction(name: str, sent: int, counts: Mapping[str, int]) -> Direction:
    lost = sent - (counts["received"] - counts["duplicated"])
    return Direction(
        name, sent, counts["received"], lost, counts["duplicated"], counts["reordered"]
    )


def _to_guest(name: str, sent: int, guest: NetReport, number: int, run: int) -> Direction:
    flow = guest.flow(number + FIRST_FLOW, run)
    if flow is None:
        return Direction(name, sent, 0, sent, 0, 0)
    lost = sent - (flow.received - flow.duplicated)
    return Direction(name, sent, flow.received, lost, flow.duplicated, flow.reordered)
