"""The process that is a network namespace: it lives inside, and does there what the lab asks.

    python -m tools.lab.namespace_agent FD

FD is one end of a SOCK_SEQPACKET pair. Each request is one JSON object with `op`, each reply one
with the result or `error`; a socket that was asked for comes along as an fd. The namespace and its
taps go when this process and everybody inside has gone; this process goes with its launcher.

Root makes a network namespace; anybody else first makes a user namespace in which they are root.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import prctl
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from tools.lab.namespace_wire import CLONE_NEWNET, CLONE_NEWUSER, REQUEST_MAX_BYTES
from vmm.devices.net.tun import open_tap
from vmm.errors import DeviceError

_IFA_F_NODAD = 0x02  # linux/if_addr.h: usable at once, nobody else is on this link

_TAP_FLAGS = {
    **dict.fromkeys(("no_pi", "vnet_hdr", "persist"), 1),
    **dict.fromkeys(("one_queue", "tun_excl", "nofilter"), 0),
}

Operation = Callable[[IPRoute, Mapping[str, Any]], tuple[Any, list[int]]]


def unshare_network() -> None:
    """Leave the launcher's network; OSError when this system allows it to nobody but root."""
    if os.geteuid() == 0:
        _unshare(CLONE_NEWNET)
        return
    uid, gid = os.geteuid(), os.getegid()
    _unshare(CLONE_NEWUSER | CLONE_NEWNET)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")


def _unshare(flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"unshare({flags:#x}): {os.strerror(error)}")


def _add_tap(route: IPRoute, request: Mapping[str, Any]) -> tuple[Any, list[int]]:
    """Make a persistent tap, up, with its addresses."""
    ifname = request["ifname"]
    route.link(
        "add",
        ifname=ifname,
        kind="tuntap",
        mode="tap",
        uid=request["owner_uid"],
        ifr={**_TAP_FLAGS, "multi_queue": int(request["multi_queue"])},
    )
    if not any(":" in address for address in request["addresses"]):
        # Without it the kernel's router solicitations mix with the frames that are counted. Not
        # possible where /proc/sys is read-only; a ledger by sequence numbers does not mind.
        with contextlib.suppress(OSError):
            Path(f"/proc/sys/net/ipv6/conf/{ifname}/disable_ipv6").write_text("1")
    index = route.link_lookup(ifname=ifname)[0]
    for text in request["addresses"]:
        address, _, prefix = text.partition("/")
        flags = {"flags": _IFA_F_NODAD} if ":" in address else {}
        route.addr("add", index=index, address=address, prefixlen=int(prefix), **flags)
    route.link("set", index=index, state="up", txqlen=request["txqueuelen"])
    return index, []


def _remove(route: IPRoute, request: Mapping[str, Any]) -> tuple[Any, list[int]]:
    route.link("del", index=route.link_lookup(ifname=request["ifname"])[0])
    return None, []


def _counters(route: IPRoute, request: Mapping[str, Any]) -> tuple[Any, list[int]]:
    index = route.link_lookup(ifname=request["ifname"])[0]
    link = route.get_links(index)[0]
    counters = dict(link.get_attr("IFLA_STATS64"))
    counters["txqueuelen"] = link.get_attr("IFLA_TXQLEN")
    return counters, []


def _open_socket(_route: IPRoute, request: Mapping[str, Any]) -> tuple[Any, list[int]]:
    family, kind, protocol = request["family"], request["type"], request["proto"]
    return None, [socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol).detach()]


def _open_queue(_route: IPRoute, request: Mapping[str, Any]) -> tuple[Any, list[int]]:
    return None, [open_tap(request["ifname"], multi_queue=request["multi_queue"])]


_OPERATIONS: Mapping[str, Operation] = {
    "tap": _add_tap,
    "remove": _remove,
    "counters": _counters,
    "socket": _open_socket,
    "queue": _open_queue,
}


def serve(control: socket.socket) -> None:
    """Answer requests until the launcher hangs up."""
    with IPRoute() as route:
        route.link("set", index=route.link_lookup(ifname="lo")[0], state="up")
        control.send(b'{"result": null}')  # the namespace is there
        while data := control.recv(REQUEST_MAX_BYTES):
            request = json.loads(data)
            fds: list[int] = []
            try:
                result, fds = _OPERATIONS[request["op"]](route, request)
                reply = {"result": result}
            except (OSError, NetlinkError, IndexError, DeviceError) as error:
                reply = {"error": f"{request['op']}: {error or type(error).__name__}"}
            socket.send_fds(control, [json.dumps(reply).encode()], fds)
            for fd in fds:
                os.close(fd)


def main() -> None:
    """See the module's text."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    try:
        unshare_network()
    except OSError as error:
        control.send(json.dumps({"error": str(error)}).encode())
        return
    prctl.set_pdeathsig(signal.SIGKILL)  # after the change of credentials, which clears it
    serve(control)


if __name__ == "__main__":
    main()
