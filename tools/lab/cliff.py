"""The law that decides loss, shown on both sides: pps x blackout <= txqueuelen.

While nobody reads a tap the kernel keeps `txqueuelen` frames for it and drops the rest. So the
guest is paused for a known time, far longer than any live update takes, under a steady stream of
datagrams: once for half the time that fills the queue, once for twice that time. The prediction
comes from rate, measured pause and queue length alone; the kernel's counter and the ledger by
sequence numbers must both agree with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, replace

from tools.lab.argv import Build, GuestSpec
from tools.lab.launcher import Launcher
from tools.lab.load import UDP_FLOWS, LoadRun, LoadSpec
from tools.lab.load_ledger import predicted_loss
from tools.lab.namespace import TapSpec
from tools.lab.process import VmmProcess
from tools.lab.ramview import RamView
from tools.lab.traffic import Traffic

TXQUEUELEN = 150
CLIFF_PPS = 150  # of each flow; slow enough that every accelerator carries it with ease
PAUSES = (0.5, 2.0)  # in times that fill the queue
_PPS_TOTAL = CLIFF_PPS * UDP_FLOWS
# The sender has a schedule of its own and the queue is not empty when the pause begins: frames
# within so much of the prediction are agreement.
TOLERANCE_SHARE = 0.1
TOLERANCE_FRAMES = 10
_NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class CliffPoint:
    """One pause and what it cost, in frames towards the guest."""

    pause_s: float
    pps: int
    txqueuelen: int
    predicted: int
    dropped_by_tap: int  # the kernel's counter
    lost: int  # by sequence number

    @property
    def agrees(self) -> bool:
        """Whether both measurements are what the law says."""
        # The kernel's own frames (neighbour and router discovery) share the queue: a few more.
        if not 0 <= self.dropped_by_tap - self.lost <= TOLERANCE_FRAMES:
            return False
        if not self.predicted:
            return self.lost == 0
        return abs(self.lost - self.predicted) <= TOLERANCE_FRAMES + (
            TOLERANCE_SHARE * self.predicted
        )

    def __str__(self) -> str:
        frames = self.pps * self.pause_s
        sign = "<=" if frames <= self.txqueuelen else ">"
        return (
            f"{self.pps} frames/s x {self.pause_s * 1000:.0f} ms = {frames:.0f} {sign} txqueuelen "
            f"{self.txqueuelen}: predicted loss {self.predicted}, the tap dropped "
            f"{self.dropped_by_tap}, missing in the ledger {self.lost} - "
            f"{'agrees' if self.agrees else 'DOES NOT AGREE'}"
        )


async def run_cliff(build: Build, guest: GuestSpec) -> tuple[CliffPoint, ...]:
    """Boot a guest and pause it on both sides of the cliff. Raises LabError, ExecuteError."""
    with contextlib.ExitStack() as stack:
        spec = LoadSpec(udp_pps=CLIFF_PPS)
        traffic = Traffic.prepare(spec, stack, TapSpec(txqueuelen=TXQUEUELEN))
        guest = replace(guest, network=f"ip={traffic.nic.guest_address}/24")  # no flow of its own
        launcher = Launcher(guest, extra=traffic.nic.argv(), first=traffic.child)
        async with launcher:
            first, serial = await launcher.start_first(build)
            await serial.wait_lines(1)
            with RamView(first.process.pid, guest.ram_bytes, guest.vcpu_count) as ram:
                return tuple(
                    [
                        await _pause(first.process, traffic, ram, run, fills)
                        for run, fills in enumerate(PAUSES, 1)
                    ]
                )


async def _pause(
    process: VmmProcess, traffic: Traffic, ram: RamView, run: int, fills: float
) -> CliffPoint:
    load = await LoadRun.start(
        traffic.load, traffic.namespace, traffic.nic, run=run, guest=ram.net_report()
    )
    try:
        await process.execute("stop")
        begin_ns = time.monotonic_ns()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(fills * TXQUEUELEN / _PPS_TOTAL):
                await asyncio.get_running_loop().create_future()  # the pause is the experiment
        pause_s = (time.monotonic_ns() - begin_ns) / _NS_PER_S
        await process.execute("cont")
        result = await load.stop(ram.net_report)
    finally:
        await load.kill()
    return CliffPoint(
        pause_s=pause_s,
        pps=_PPS_TOTAL,
        txqueuelen=TXQUEUELEN,
        predicted=predicted_loss(_PPS_TOTAL * pause_s, TXQUEUELEN),
        dropped_by_tap=result.tap_tx_dropped,
        lost=sum(way.lost for way in result.directions if way.name.endswith("to the guest")),
    )
