"""The path of a frame without an update: UDP echo through tap, card and guest, and back.

Beside it a real QEMU, where one is given: the same guest, on the same tap, one after the other and
again, because a tap has one reader.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace

from tools.lab.argv import GuestSpec
from tools.lab.bench.plan import HEADLINE_RAM_BYTES, SPARSE_PAGES, Group
from tools.lab.bench.results import GroupResult, Row
from tools.lab.bench.rounds import Progress
from tools.lab.bench.suite import PEER_PAIRS, STANDARD_DEVICES, Setting, guest_conditions
from tools.lab.child import ChildSetup
from tools.lab.errors import CheckFailedError, LabError
from tools.lab.launcher import Launcher
from tools.lab.load import LoadSpec
from tools.lab.namespace import NetworkNamespace, TapSpec
from tools.lab.nics import Nic, add_nics
from tools.lab.process import VmmProcess
from tools.lab.procfs import cpu_time_us
from tools.lab.stats import Summary
from tools.peer.microvm import running_microvm
from vmm.boot.guest.net_report import PORT_ECHO, FlowPayload

NS_PER_US, NS_PER_S = 1_000, 1_000_000_000
TURNS = 2  # starts of each VMM
ROUNDS = 3  # measurements in each turn
# As many frames on their way as a small burst has; the tap's queue holds a thousand.
WINDOW = 32
# A lost frame ends the measurement, and on a busy machine a frame may take long.
ECHO_DEADLINE_S = 5.0
ECHO_FLOW, ECHO_RUN = 0, 1
FRAME_BYTES = 64 + 32  # of UDP payload; a small frame, because the cost is per frame
WARM_UP_FRAMES = 50


@dataclass(frozen=True, slots=True)
class PathFigures:
    """One measurement of the echo through tap, device and guest, and back."""

    frames_per_s: float
    cpu_us_per_frame: float  # of the VMM process, guest code included
    round_trips_us: tuple[float, ...]


Start = Callable[[GuestSpec, Nic, ChildSetup], AbstractAsyncContextManager[VmmProcess]]


@dataclass(frozen=True, slots=True)
class Party:
    """One VMM with a card: how it is started, and what its row says of its machine."""

    name: str
    accel: str
    devices: str
    start: Start


async def measure_path(setting: Setting, progress: Progress) -> GroupResult:
    """Frames per second, processor time per frame and round trips, for each accelerator."""
    rows: list[Row] = []
    left_out: list[str] = []
    if setting.qemu is None:
        left_out.append("data path beside QEMU: no --qemu CMD (tools/fetch-peer qemu)")
    for accel in setting.accels:
        try:
            figures = await _take_turns(_parties(setting, accel), setting.scale.frames, progress)
        except LabError as error:
            left_out.append(f"data path, {accel}: {error}")
            continue
        rows += [_row(party, own) for party, own in figures]
    return GroupResult(tuple(rows), left_out=tuple(left_out))


def _parties(setting: Setting, accel: str) -> list[Party]:
    parties = [
        Party(
            f"echo/{accel}",
            accel,
            f"{STANDARD_DEVICES}, 1 virtio-net on a tap",
            lambda guest, nic, child: _our_guest(setting, accel, guest, nic, child),
        )
    ]
    if setting.qemu is not None:
        command, theirs = setting.qemu, PEER_PAIRS[accel]
        parties.append(
            Party(
                f"echo/qemu-{theirs}",
                theirs,
                "QEMU microvm: 16550 serial, 1 virtio-net on the same tap, vhost off",
                lambda guest, nic, child: running_microvm(command, theirs, guest, nic, child),
            )
        )
    return parties


@contextlib.asynccontextmanager
async def _our_guest(
    setting: Setting, accel: str, guest: GuestSpec, nic: Nic, child: ChildSetup
) -> AsyncIterator[VmmProcess]:
    async with Launcher(guest, extra=nic.argv(), first=child) as launcher:
        launched, serial = await launcher.start_first(setting.build(accel))
        await serial.wait_lines(1)
        yield launched.process


async def _take_turns(
    parties: Sequence[Party], frames: int, progress: Progress
) -> list[tuple[Party, list[PathFigures]]]:
    found: dict[str, list[PathFigures]] = {party.name: [] for party in parties}
    with NetworkNamespace.open() as namespace:
        (nic,) = add_nics(namespace, 1, TapSpec())
        guest = replace(_GUEST, network=LoadSpec().guest_words(nic))
        child = ChildSetup(entrance=namespace.entrance())
        for turn in range(TURNS):
            for party in parties:
                progress(f"turn {turn + 1}/{TURNS}: {party.name}")
                async with party.start(guest, nic, child) as process:
                    with echo_socket(namespace, nic) as sock:
                        rounds = asyncio.to_thread(_rounds, sock, process.pid, frames)
                        found[party.name] += await rounds
    return [(party, found[party.name]) for party in parties]


_GUEST = GuestSpec(HEADLINE_RAM_BYTES, pages=SPARSE_PAGES)


def _row(party: Party, figures: Sequence[PathFigures]) -> Row:
    return Row(
        Group.PATH.value,
        party.name,
        guest_conditions(party.accel, _GUEST, party.devices)
        | {"load": f"UDP of {FRAME_BYTES} bytes, {WINDOW} on their way, or 1 (round trip)"},
        {
            "frames_per_s": Summary.of([each.frames_per_s for each in figures]),
            "cpu_us_per_frame": Summary.of([each.cpu_us_per_frame for each in figures]),
            "round_trip_us": Summary.of([trip for each in figures for trip in each.round_trips_us]),
        },
    )


@contextlib.contextmanager
def echo_socket(namespace: NetworkNamespace, nic: Nic) -> Iterator[socket.socket]:
    """A UDP socket inside the namespace, connected to the guest's echo port."""
    with namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(ECHO_DEADLINE_S)
        sock.connect((nic.guest_address, PORT_ECHO))
        yield sock


def _rounds(sock: socket.socket, pid: int, frames: int) -> list[PathFigures]:
    echo(sock, WARM_UP_FRAMES, 1)
    return [_one_round(sock, pid, frames) for _round in range(ROUNDS)]


def _one_round(sock: socket.socket, pid: int, frames: int) -> PathFigures:
    trips = echo(sock, frames // WINDOW, 1)
    cpu_before_us, began_ns = cpu_time_us(pid), time.monotonic_ns()
    echo(sock, frames, WINDOW)
    elapsed_s = (time.monotonic_ns() - began_ns) / NS_PER_S
    return PathFigures(
        frames_per_s=frames / elapsed_s,
        cpu_us_per_frame=(cpu_time_us(pid) - cpu_before_us) / frames,
        round_trips_us=tuple(trip / NS_PER_US for trip in trips),
    )


def echo(sock: socket.socket, frames: int, window: int) -> list[int]:
    """Send `frames` with at most `window` unanswered; every round trip in ns, in order.

    Raises CheckFailedError when an answer does not come, or is another than the one expected.
    """
    trips: list[int] = []
    sent = 0
    while len(trips) < frames:
        while sent < frames and sent - len(trips) < window:
            sock.send(_payload(sent))
            sent += 1
        try:
            answer = FlowPayload.unpack(sock.recv(FRAME_BYTES))
        except TimeoutError:
            raise CheckFailedError(
                f"echo {len(trips)} of {frames} did not come back within {ECHO_DEADLINE_S:g} s"
            ) from None
        if answer is None or answer.sequence != len(trips):
            raise CheckFailedError(f"echo {len(trips)} of {frames}: {answer} came back instead")
        trips.append(time.monotonic_ns() - answer.sent_ns)
    return trips


def _payload(sequence: int) -> bytes:
    payload = FlowPayload(ECHO_FLOW, ECHO_RUN, sequence, time.monotonic_ns()).pack()
    return payload.ljust(FRAME_BYTES, b"\0")
