"""What cards cost in an update: the blackout with many of them."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from tools.lab.argv import Build, GuestSpec
from tools.lab.bench.plan import HEADLINE_RAM_BYTES, Group
from tools.lab.bench.results import GroupResult, Row, nics_verdict
from tools.lab.bench.rounds import Progress, sample_in_turn
from tools.lab.bench.subjects import OursSubject
from tools.lab.bench.suite import STANDARD_DEVICES, Setting, update_row
from tools.lab.child import ChildSetup
from tools.lab.errors import LabError
from tools.lab.load import LoadSpec
from tools.lab.namespace import NetworkNamespace, TapSpec
from tools.lab.nics import add_nics

NIC_COUNTS = (0, 1, 8)
NIC_JUDGED = 8


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
