"""`cpr-pair`: start an old and a waiting new VMM, print how to reach them, and hold them.

For people and programs that do the update themselves, over QMP, as they would with QEMU. The pair
lives until Ctrl-C, SIGTERM, the end of standard input (a pipe or a terminal), or until both
processes have ended; then everything is ended and removed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import select
import signal
import sys
from collections.abc import Sequence
from typing import Any

from qemu.qmp import QMPError

from tools.lab.argv import Build, GuestSpec
from tools.lab.child import PLAIN_CHILD, ChildSetup
from tools.lab.errors import LabError
from tools.lab.launcher import Launched, Launcher
from tools.lab.namespace import NetworkNamespace, TapSpec
from tools.lab.nics import add_nics
from tools.lab.options import own_vmm, parse_command, parse_count, parse_size
from tools.lab.process import VmmProcess

EXIT_OK, EXIT_FAIL = 0, 1
STDIN_CHUNK_BYTES = 4096


def main(argv: Sequence[str] | None = None) -> int:
    """Hold a pair until told to stop; 1 when it could not be started."""
    options = _parser().parse_args(argv)
    try:
        asyncio.run(_hold(options))
    except (LabError, QMPError) as error:
        print(f"cpr-pair: {error}", file=sys.stderr)
        return EXIT_FAIL
    return EXIT_OK


async def _hold(options: argparse.Namespace) -> None:
    guest = GuestSpec(options.mem, options.vcpus, options.pages)
    with contextlib.ExitStack() as stack:
        first, nics = PLAIN_CHILD, []
        if options.net:
            namespace = stack.enter_context(NetworkNamespace.open())
            for nic in add_nics(namespace, options.net, TapSpec()):
                nics += nic.argv()
            first = ChildSetup(entrance=namespace.entrance())
        launcher = Launcher(guest, extra=[*nics, *_extra(options)], first=first)
        await _hold_pair(options, launcher)


async def _hold_pair(options: argparse.Namespace, launcher: Launcher) -> None:
    command = options.vmm or own_vmm()
    async with launcher:
        stop = _stop_requests()
        serial = ["-serial", f"file:{launcher.run_dir / 'serial.log'}"]
        old = await launcher.start_plain(Build(command, options.accel), serial)
        pair = [old]
        if not options.single:
            new_build = Build(command, options.new_accel or options.accel)
            pair.append(await launcher.start_successor(new_build, serial))
        for launched in pair:
            await launched.process.hang_up()  # QEMU serves one client at a time: leave it free
        print(_as_json(pair) if options.json else _as_text(pair), flush=True)
        await _first(stop.wait(), _all_ended([launched.process for launched in pair]))


def _stop_requests() -> asyncio.Event:
    """Return an event that SIGINT, SIGTERM or the end of standard input sets."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if _stdin_has_an_end():
        loop.add_reader(sys.stdin.fileno(), _watch_stdin, stop)
    return stop


def _stdin_has_an_end() -> bool:
    """Tell a pipe, socket or terminal from a file or /dev/null, which epoll cannot watch."""
    try:
        with select.epoll() as poll:
            poll.register(sys.stdin.fileno(), select.EPOLLIN)
    except (OSError, ValueError):
        return False
    return True


def _watch_stdin(stop: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), STDIN_CHUNK_BYTES):
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        stop.set()


async def _all_ended(processes: Sequence[VmmProcess]) -> None:
    for process in processes:
        await process.wait_exit()


async def _first(*events: Any) -> None:
    tasks = [asyncio.ensure_future(event) for event in events]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _describe(launched: Launched) -> dict[str, Any]:
    sockets = launched.sockets
    described: dict[str, Any] = {"pid": launched.process.pid, "qmp": str(sockets.qmp)}
    if sockets.cpr is not None:
        described |= {"cpr": str(sockets.cpr), "main": str(sockets.main)}
    return described


def _as_json(pair: Sequence[Launched]) -> str:
    roles = dict(zip(("old", "new"), map(_describe, pair), strict=False))
    document: dict[str, Any] = dict(roles)
    if len(pair) > 1:
        document["migrate"] = pair[1].sockets.migrate_arguments()
    return json.dumps(document)


def _as_text(pair: Sequence[Launched]) -> str:
    lines = []
    for role, launched in zip(("old", "new"), pair, strict=False):
        lines.append(f"{role}:")
        lines += [f"  {key:5}{value}" for key, value in _describe(launched).items()]
    if len(pair) > 1:
        arguments = json.dumps(pair[1].sockets.migrate_arguments())
        lines += [
            "to update, on old's QMP socket:",
            '  {"execute": "qmp_capabilities"}',
            '  {"execute": "migrate-set-parameters", "arguments": {"mode": "cpr-transfer"}}',
            f'  {{"execute": "migrate", "arguments": {arguments}}}',
        ]
    return "\n".join(lines)


def _extra(options: argparse.Namespace) -> list[str]:
    words = list(options.extra)
    return words[1:] if words[:1] == ["--"] else words


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cpr-pair", description="Start an old and a waiting new VMM and hold them."
    )
    parser.add_argument("--single", action="store_true", help="start only the old one")
    parser.add_argument("--accel", metavar="NAME", help="kvm or unicorn (default: the VMM's)")
    parser.add_argument("--new-accel", metavar="NAME", help="of the new one (default: --accel)")
    parser.add_argument(
        "--mem", type=parse_size, default=parse_size("256M"), metavar="SIZE", help="(default 256M)"
    )
    parser.add_argument("--vcpus", type=parse_count, default=1, metavar="N", help="(default 1)")
    parser.add_argument("--pages", type=int, default=0, metavar="N", help="pages the guest stamps")
    parser.add_argument("--vmm", type=parse_command, metavar="CMD", help="what to run")
    parser.add_argument(
        "--net",
        type=parse_count,
        default=0,
        metavar="N",
        help="N network cards on taps in a network namespace of the pair's own",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    parser.add_argument(
        "extra", nargs=argparse.REMAINDER, metavar="-- ARGS", help="more arguments for both VMMs"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
