"""`cpr-bench`: how long a guest stands still in a live update, and against what that is judged.

Every comparison is taken alternately in one run. Exit status 0 means that everything was measured;
with --check it also means that every target was met.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from qemu.qmp import ExecuteError

from tools.lab.bench.alone import measure_accels, measure_process
from tools.lab.bench.cards import measure_nics
from tools.lab.bench.path import measure_path
from tools.lab.bench.plan import FULL, QUICK, Group
from tools.lab.bench.results import BenchResult, GroupResult, to_json
from tools.lab.bench.rounds import Progress
from tools.lab.bench.suite import (
    Setting,
    measure_devices,
    measure_headline,
    measure_peer,
    measure_ram,
    measure_vcpus,
)
from tools.lab.bench.view import BenchView
from tools.lab.errors import LabError, OptionError
from tools.lab.options import available_accels, own_vmm, parse_command, parse_count
from vmm.errors import VmmError

EXIT_MEASURED, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
AUTO = "auto"

Measure = Callable[[Setting, Progress], Awaitable[GroupResult]]
GROUPS: Mapping[Group, Measure] = {
    Group.HEADLINE: measure_headline,
    Group.RAM: measure_ram,
    Group.VCPUS: measure_vcpus,
    Group.DEVICES: measure_devices,
    Group.NICS: measure_nics,
    Group.PATH: measure_path,
    Group.ACCEL: measure_accels,
    Group.PROCESS: measure_process,
    Group.PEER: measure_peer,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; 0 = done, 1 = measuring failed or --check found a missed target, 2 = options."""
    options = _parser().parse_args(argv)
    try:
        setting = make_setting(options)
    except OptionError as error:
        print(f"cpr-bench: {error}", file=sys.stderr)
        return EXIT_USAGE
    view = BenchView()
    try:
        result = asyncio.run(run(setting, options.only or list(Group), view))
    except (LabError, ExecuteError, VmmError) as error:
        print(f"cpr-bench: measuring failed: {error}", file=sys.stderr)
        return EXIT_FAILED
    view.show_end(result)
    if options.json is not None:
        options.json.write_text(json.dumps(to_json(result), indent=1) + "\n")
    return EXIT_FAILED if options.check and not result.met else EXIT_MEASURED


def make_setting(options: argparse.Namespace) -> Setting:
    """What the options ask for; raises OptionError when this machine cannot do it."""
    available = available_accels(1)
    if options.accel != AUTO and options.accel not in available:
        raise OptionError(
            f"--accel {options.accel}: not usable here; usable: {', '.join(available)}"
        )
    scale = QUICK if options.quick else FULL
    if options.count is not None:
        scale = scale.with_count(options.count)
    return Setting(
        command=options.vmm or own_vmm(),
        accels=available if options.accel == AUTO else (options.accel,),
        scale=scale,
        qemu=options.qemu,
    )


async def run(setting: Setting, groups: Sequence[Group], view: BenchView) -> BenchResult:
    """Measure the groups one after the other, showing each as soon as it is there."""
    results = []
    for group in GROUPS:
        if group not in groups:
            continue
        with view.group(group.value) as progress:
            result = await GROUPS[group](setting, progress)
        view.show_group(result)
        results.append(result)
    return BenchResult(host_conditions(), tuple(results))


def host_conditions() -> dict[str, str]:
    """What all figures of a run have in common (DESIGN 9)."""
    return {
        "clock": "CLOCK_MONOTONIC of this host, read by the guest",
        "load": f"the lab's own processes; load average {os.getloadavg()[0]:.1f} at the end",
        "host": f"{platform.system()} {platform.release()}, {os.cpu_count()} CPUs, "
        f"Python {platform.python_version()}",
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cpr-bench",
        description="Measure the blackout of a live update: against the floor, RAM, vCPUs, "
        "devices, and a real QEMU.",
        epilog="Exit status: 0 measured (with --check: and every target met), 1 not, "
        "2 wrong options.",
    )
    parser.add_argument(
        "--accel",
        choices=("kvm", "unicorn", AUTO),
        default=AUTO,
        help="what runs the guest; auto: all there is (default)",
    )
    parser.add_argument("--quick", action="store_true", help="fewer samples, in about a minute")
    parser.add_argument(
        "--count", type=parse_count, metavar="N", help="samples of each subject (default: 20 to 30)"
    )
    parser.add_argument(
        "--only",
        type=Group,
        action="append",
        metavar="NAME",
        help=f"one group, can be repeated: {', '.join(group.value for group in Group)}",
    )
    parser.add_argument(
        "--qemu", type=parse_command, metavar="CMD", help="a QEMU of version 10 or newer"
    )
    parser.add_argument("--vmm", type=parse_command, metavar="CMD", help="our VMM (default: this)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every row and verdict")
    parser.add_argument("--check", action="store_true", help="fail when a target is missed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
