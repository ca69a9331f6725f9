"""`cpr-drill`: live-update a running guest again and again, and prove that it felt next to nothing.

Without options it runs the main job on every accelerator this machine has, and once alternating
between them. Exit status 0 means that every promise held in every update.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from qemu.qmp import ExecuteError

from tools.lab.argv import Build, GuestSpec
from tools.lab.chain import ChainPlan, run_chain
from tools.lab.cliff import run_cliff
from tools.lab.errors import LabError, OptionError
from tools.lab.faults.cases import all_cases, chosen_cases
from tools.lab.faults.matrix import run_matrix
from tools.lab.faults.view import show_matrix, tell_progress
from tools.lab.linux.drill import check_options, linux_drill
from tools.lab.load import parse_load
from tools.lab.options import (
    available_accels,
    own_vmm,
    parse_command,
    parse_count,
    parse_size,
)
from tools.lab.procfs import child_pids
from tools.lab.report_html import render_html
from tools.lab.results import ChainResult, DrillResult, to_json
from tools.lab.table import Screen
from vmm.errors import BootError

EXIT_PASS, EXIT_FAIL, EXIT_USAGE = 0, 1, 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
COUNT_DEFAULT = 20
MEMORY_DEFAULT = "256M"
ALTERNATE, AUTO, LINUX = "alternate", "auto", "linux"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the drill; 0 = everything held, 1 = something did not, 2 = wrong options."""
    options = _parser().parse_args(argv)
    try:
        plans = _checked(options)
    except LabError as error:
        print(f"cpr-drill: {error}", file=sys.stderr)
        return EXIT_USAGE
    try:
        return _run(options, plans)
    except KeyboardInterrupt:
        print("cpr-drill: interrupted; every process has been ended", file=sys.stderr)
        return EXIT_INTERRUPTED


def _checked(options: argparse.Namespace) -> tuple[ChainPlan, ...]:
    """The chains of the built-in guest, if it is asked for. Raises LabError for wrong options."""
    check_options(options)
    plans = () if options.guest == LINUX else make_plans(options)
    if options.faults and options.faults != "list":
        chosen_cases(options.faults)
    for path in (options.json, options.html):
        _check_writable(path)
    return plans


def _run(options: argparse.Namespace, plans: tuple[ChainPlan, ...]) -> int:
    """What the options ask for; an exit status."""
    if options.faults == "list":
        print("\n".join(case.name for case in all_cases()))
        return EXIT_PASS
    if options.guest == LINUX:
        return _linux(options)
    if options.faults:
        return _faults(options, plans)
    if options.cliff:
        return asyncio.run(_cliff(plans))
    return _chain(options, plans)


def _chain(options: argparse.Namespace, plans: tuple[ChainPlan, ...]) -> int:
    result = asyncio.run(_drill(plans, Screen()))
    if options.json:
        Path(options.json).write_text(json.dumps(to_json(result), indent=1) + "\n")
    if options.html:
        Path(options.html).write_text(render_html(result))
    return EXIT_PASS if result.passed else EXIT_FAIL


def _check_writable(path: str | None) -> None:
    """Find out before the drill, not after it, that its report cannot be written."""
    if path is None:
        return
    try:
        Path(path).touch()
    except OSError as error:
        raise OptionError(f"cannot write {path}: {error.strerror}") from error


def make_plans(options: argparse.Namespace) -> tuple[ChainPlan, ...]:
    """One plan for each chain that the options ask for.

    Raises OptionError when the options cannot be fulfilled on this machine.
    """
    if 0 < options.pages < options.vcpus:
        raise OptionError(
            f"--pages {options.pages}: each of the {options.vcpus} vCPUs needs a page to stamp"
        )
    guest = GuestSpec(ram_bytes=options.mem, vcpu_count=options.vcpus, pages=options.pages)
    old, new = options.old or own_vmm(), options.new or options.old or own_vmm()
    return tuple(
        ChainPlan(
            name=name,
            builds=_builds(accels, old, new),
            count=options.count,
            guest=guest,
            seed=options.seed,
            replay=_replay(options, name),
            load=options.load,
        )
        for name, accels in _chains(options.accel, options.vcpus)
    )


def _chains(accel: str, vcpu_count: int) -> list[tuple[str, tuple[str, ...]]]:
    """Name of each chain, and the accelerators that its generations go through in turn."""
    available = available_accels(vcpu_count)
    if accel == AUTO:
        chains = [(name, (name,)) for name in available]
        return chains + ([(ALTERNATE, available)] if len(available) > 1 else [])
    if accel == ALTERNATE:
        if len(available) < 2:
            raise OptionError(
                f"--accel alternate needs kvm and unicorn; here, with {vcpu_count} vCPU(s), there "
                f"is only {available[0]}"
            )
        return [(ALTERNATE, available)]
    if accel not in available:
        raise OptionError(
            f"--accel {accel}: not usable here with {vcpu_count} vCPU(s); usable: "
            f"{', '.join(available)}"
        )
    return [(accel, (accel,))]


def _builds(
    accels: tuple[str, ...], old: tuple[str, ...], new: tuple[str, ...]
) -> tuple[Build, ...]:
    """Even generations run `old`, odd ones `new`: a chain of two builds goes up and down."""
    first, second = accels[0], accels[-1]
    return (Build(old, first), Build(new, second))


def _replay(options: argparse.Namespace, chain: str) -> str:
    words = ["cpr-drill", "--accel", chain, "--count", str(options.count)]
    words += ["--seed", str(options.seed), "--mem", f"{options.mem >> 20}M"]
    words += ["--vcpus", str(options.vcpus), "--pages", str(options.pages)]
    for name in ("old", "new"):
        if command := getattr(options, name):
            words += [f"--{name}", shlex.join(command)]
    if options.load:
        words += ["--load", str(options.load)]
    return shlex.join(words)


async def _drill(plans: Sequence[ChainPlan], screen: Screen) -> DrillResult:
    before = set(child_pids("self"))
    chains: list[ChainResult] = []
    for plan in plans:
        with screen.chain(plan) as progress:
            chains.append(await run_chain(plan, progress))
    result = DrillResult(tuple(chains), len(set(child_pids("self")) - before))
    screen.show(result)
    return result


def _faults(options: argparse.Namespace, plans: Sequence[ChainPlan]) -> int:
    """Run the fault matrix on the accelerators of the plans; an exit status."""
    builds = {plan.build(0).accel: plan.build(0) for plan in plans}
    began_s = time.monotonic()
    result = asyncio.run(
        run_matrix(
            chosen_cases(options.faults),
            next(iter(builds.values())).command,
            [accel for accel in builds if accel is not None],
            options.seed,
            tell_progress,
            options.load,
        )
    )
    show_matrix(result, time.monotonic() - began_s)
    if options.json:
        Path(options.json).write_text(json.dumps(result.to_json(), indent=1) + "\n")
    return EXIT_PASS if result.passed else EXIT_FAIL


def _linux(options: argparse.Namespace) -> int:
    """Run a Linux guest's chain; an exit status."""
    try:
        return linux_drill(options)
    except LabError as error:
        print(f"FAIL cpr-drill --guest linux: {error}", file=sys.stderr)
        return EXIT_FAIL


async def _cliff(plans: Sequence[ChainPlan]) -> int:
    """Show the law of loss on the first accelerator of each chain; an exit status."""
    agrees = True
    for accel, build in {plan.build(0).accel: plan.build(0) for plan in plans}.items():
        try:
            points = await run_cliff(build, plans[0].guest)
        except (LabError, ExecuteError, BootError) as error:
            print(f"FAIL {accel}: {error}")
            return EXIT_FAIL
        for point in points:
            print(f"{accel}: {point}")
        agrees = agrees and all(point.agrees for point in points)
    return EXIT_PASS if agrees else EXIT_FAIL


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cpr-drill",
        description="Live-update a running guest again and again and check every promise.",
        epilog="Exit status: 0 every check held, 1 one did not (the replay command is printed), "
        "2 wrong options.",
    )
    parser.add_argument(
        "--accel",
        choices=("kvm", "unicorn", ALTERNATE, AUTO),
        default=AUTO,
        help="what runs the guest; auto: all there is, and alternating (default)",
    )
    parser.add_argument(
        "--mem",
        type=parse_size,
        default=parse_size(MEMORY_DEFAULT),
        metavar="SIZE",
        help=f"guest RAM (default {MEMORY_DEFAULT})",
    )
    parser.add_argument("--vcpus", type=parse_count, default=1, metavar="N", help="(default 1)")
    parser.add_argument(
        "--count",
        type=parse_count,
        default=COUNT_DEFAULT,
        metavar="N",
        help=f"updates in a chain (default {COUNT_DEFAULT}; 200 is the full proof)",
    )
    parser.add_argument("--seed", type=int, default=1, help="of the pauses between updates")
    parser.add_argument(
        "--pages", type=int, default=0, metavar="N", help="pages the guest stamps (default: all)"
    )
    parser.add_argument(
        "--old", type=parse_command, metavar="CMD", help="VMM of even generations (default: ours)"
    )
    parser.add_argument(
        "--new", type=parse_command, metavar="CMD", help="VMM of odd generations (default: --old)"
    )
    parser.add_argument(
        "--load",
        type=parse_load,
        metavar="LOAD",
        help="traffic over a tap during all updates, every frame accounted for: udp=PPS (of each "
        "of two flows, each way), tcp=STREAMS[@WRITES_PER_SECOND], ping; for example "
        "udp=1000,tcp=4,ping (with --faults few frames: a hung process leaves them in the tap's "
        "queue for seconds)",
    )
    parser.add_argument(
        "--cliff",
        action="store_true",
        help="instead of updates: pause the guest under load for less and for more than the tap's "
        "queue holds, and compare the loss with pps x blackout - txqueuelen",
    )
    parser.add_argument(
        "--faults",
        metavar="CASES",
        help="instead of a chain: one update for each case, in which one side fails at one step; "
        "'all', 'list', or patterns of names with commas, such as target/*/LOAD_STATE/*,*/kill",
    )
    _add_guest_options(parser)
    parser.add_argument("--json", metavar="FILE", help="write every figure of every update")
    parser.add_argument("--html", metavar="FILE", help="write one self-contained page")
    return parser


def _add_guest_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--guest",
        choices=("built-in", LINUX),
        default="built-in",
        help="linux: a distribution's kernel with a load agent, where need be in an emulated "
        "machine (root; tools/fetch-peer qemu)",
    )
    parser.add_argument(
        "--kernel",
        type=Path,
        metavar="FILE",
        help="with --guest linux: a bzImage whose modules lie in ../lib/modules (default: the "
        "distribution's, from tools/fetch-peer linux)",
    )
    parser.add_argument(
        "--initrd", type=Path, metavar="FILE", help="… and what its initramfs begins with"
    )


if __name__ == "__main__":
    sys.exit(main())
