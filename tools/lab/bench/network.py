"""What cards cost: the blackout with many of them, and the path of a frame without an update."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tools.lab.argv import Build, GuestSpec
from tools.lab.bench.plan import HEADLINE_RAM_BYTES, Group
from tools.lab.bench.results import GroupResult, Row, nics_verdict
from tools.lab.bench.rounds import Progress, sample_in_turn
from tools.lab.bench.subjects import OursSubject
from tools.lab.bench.suite import STANDARD_DEVICES, Setting, guest_conditions, update_row
from tools.lab.child import ChildSetup
from tools.lab.errors import CheckFailedError, LabError
from tools.lab.launcher import Launcher
from tools.lab.load import LoadSpec
from tools.lab.namespace import NetworkNamespace, TapSpec
from tools.lab.nics import Nic, add_nics
from tools.lab.stats import Summary
from vmm.boot.guest.net_report import PORT_ECHO, FlowPayload

NIC_COUNTS = (0, 1, 8)
NIC_JUDGED = 8
NS_PER_US, NS_PER_S = 1_000, 1_000_000_000

# ---- many cards, and an update -------------------------------------------------------------------


async def measure_nics(setting: Setting, progress: Progress) -> GroupResult:
    """Blackout with no card, one and eight; the guest drives the first."""
    rows: list[Row] = []
    verdicts = []
    for accel in setting.swept_accels:
        names = {count: f"{count} cards/{accel}" for count in NIC_COUNTS}
        with contextlib.ExitStack() as stack:
            try:
                subjects = [
                    _subject(name, setting.build(accel), count, stack)
                    for count, name in names.items()
                ]
            except LabError as error:
                return GroupResult((), left_out=(f"cards: {error}",))
            samples = await sample_in_turn(subjects, setting.scale.devices, progress)
        own = {
            count: update_row(
                Group.NICS,
                name,
                samples,
                accel,
                GuestSpec(HEADLINE_RAM_BYTES),
                devices=f"{STANDARD_DEVICES}, {count} virtio-net on taps",
            )
            for count, name in names.items()
        }
        rows += own.values()
        none, many = (own[count].figures["blackout_ms"] for count in (0, NIC_JUDGED))
        verdicts.append(nics_verdict(accel, none, many, NIC_JUDGED))
    return GroupResult(tuple(rows), tuple(verdicts))


def _subject(name: str, build: Build, count: int, stack: contextlib.ExitStack) -> OursSubject:
    """A guest with `count` cards on taps of its own, so that several live side by side."""
    guest = GuestSpec(HEADLINE_RAM_BYTES)
    if not count:
        return OursSubject(name, build, guest)
    namespace = stack.enter_context(NetworkNamespace.open())
    nics = add_nics(namespace, count, TapSpec())
    return OursSubject(
        name,
        build,
        replace(guest, network=LoadSpec().guest_words(nics[0])),
        extra=[word for nic in nics for word in nic.argv()],
        first=ChildSetup(entrance=namespace.entrance()),
    )


# ---- the path of a frame, without an update ------------------------------------------------------

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


async def measure_path(setting: Setting, progress: Progress) -> GroupResult:
    """Frames per second, processor time per frame and round trips of UDP echo, no update."""
    rows: list[Row] = []
    guest = GuestSpec(HEADLINE_RAM_BYTES)
    for accel in setting.accels:
        progress(f"{accel}: echo")
        try:
            figures = await _path_figures(setting.build(accel), guest, setting.scale.frames)
        except LabError as error:
            return GroupResult(tuple(rows), left_out=(f"data path, {accel}: {error}",))
        rows.append(
            Row(
                Group.PATH.value,
                f"echo/{accel}",
                guest_conditions(accel, guest, f"{STANDARD_DEVICES}, 1 virtio-net on a tap")
                | {"load": f"UDP of {FRAME_BYTES} bytes, {WINDOW} on their way, or 1 (round trip)"},
                {
                    "frames_per_s": Summary.of([each.frames_per_s for each in figures]),
                    "cpu_us_per_frame": Summary.of([each.cpu_us_per_frame for each in figures]),
                    "round_trip_us": Summary.of(
                        [trip for each in figures for trip in each.round_trips_us]
                    ),
                },
            )
        )
    return GroupResult(tuple(rows))


PATH_ROUNDS = 5


async def _path_figures(build: Build, guest: GuestSpec, frames: int) -> list[PathFigures]:
    with NetworkNamespace.open() as namespace:
        (nic,) = add_nics(namespace, 1, TapSpec())
        guest = replace(guest, network=LoadSpec().guest_words(nic))
        first = ChildSetup(entrance=namespace.entrance())
        async with Launcher(guest, extra=nic.argv(), first=first) as launcher:
            launched, serial = await launcher.start_first(build)
            await serial.wait_lines(1)
            with echo_socket(namespace, nic) as sock:
                await asyncio.to_thread(echo, sock, WARM_UP_FRAMES, 1)
                return [
                    await asyncio.to_thread(_one_round, sock, launched.process.pid, frames)
                    for _round in range(PATH_ROUNDS)
                ]


@contextlib.contextmanager
def echo_socket(namespace: NetworkNamespace, nic: Nic) -> Iterator[socket.socket]:
    """A UDP socket inside the namespace, connected to the guest's echo port."""
    with namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(ECHO_DEADLINE_S)
        sock.connect((nic.guest_address, PORT_ECHO))
        yield sock


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


def cpu_time_us(pid: int) -> float:
    """User and system time of a process so far (proc(5), fields 14 and 15 of stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1e6 / os.sysconf("SC_CLK_TCK")
