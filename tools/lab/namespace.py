"""A network namespace for one pair: its taps, its addresses, and sockets inside it.

Any number of them live side by side, with root or (through a user namespace) without. What runs in
a namespace is an agent process; the lab itself never leaves its own network. Calls are short and
synchronous: they set up and read counters, none is in a measured path.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from tools.lab.errors import LabError
from tools.lab.namespace_wire import CLONE_NEWNET, CLONE_NEWUSER, REQUEST_MAX_BYTES

# A Python start and a few netlink calls: a busy machine may need seconds, a working one no more.
AGENT_DEADLINE_S = 30.0
_INT_SIZE_BYTES = 4
TXQUEUELEN_DEFAULT = 1000  # Linux's own default for a tap


@dataclass(frozen=True, slots=True)
class TapSpec:
    """A tap to be made; `addresses` are the host's, with prefix length."""

    ifname: str = "tap0"
    addresses: tuple[str, ...] = ("10.0.2.2/24",)
    txqueuelen: int = TXQUEUELEN_DEFAULT
    multi_queue: bool = False
    owner_uid: int = 0  # who may open it, inside the namespace


@dataclass(frozen=True, slots=True)
class TapCounters:
    """The kernel's counters of a tap, as the host sees it: tx goes to the guest."""

    tx_packets: int
    tx_dropped: int  # the queue was full: nobody read the tap for too long
    rx_packets: int
    rx_dropped: int
    txqueuelen: int


class NetworkNamespace:
    """One namespace. Made by `open`; leaving the context ends it and everything of it."""

    def __init__(self, agent: subprocess.Popen[bytes], control: socket.socket) -> None:
        self._agent = agent
        self._control = control

    @classmethod
    def open(cls) -> Self:
        """Make a namespace with the loopback interface up. Raises LabError with the reason."""
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        control.settimeout(AGENT_DEADLINE_S)
        with theirs:
            agent = subprocess.Popen(
                [sys.executable, "-m", "tools.lab.namespace_agent", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        namespace = cls(agent, control)
        try:
            namespace._reply()
        except LabError:
            namespace.close()
            raise
        return namespace

    def close(self) -> None:
        """End the agent; the namespace goes with the last process inside."""
        self._control.close()
        try:
            self._agent.wait(AGENT_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._agent.kill()
            self._agent.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close()

    # ---- what is inside -------------------------------------------------------------------------

    def add_tap(self, spec: TapSpec) -> None:
        """Make a persistent tap, up and with its addresses. Raises LabError."""
        self._call(
            "tap",
            ifname=spec.ifname,
            addresses=list(spec.addresses),
            txqueuelen=spec.txqueuelen,
            multi_queue=spec.multi_queue,
            owner_uid=spec.owner_uid,
        )

    def remove(self, ifname: str) -> None:
        """Delete a tap under whoever has it open."""
        self._call("remove", ifname=ifname)

    def counters(self, ifname: str = "tap0") -> TapCounters:
        """Read the counters of a tap."""
        result, _ = self._call("counters", ifname=ifname)
        return TapCounters(**{name: result[name] for name in TapCounters.__slots__})

    def socket(self, family: int, kind: int, proto: int = 0) -> socket.socket:
        """Open a socket that lives in the namespace; the caller owns it."""
        _, fds = self._call("socket", family=int(family), type=int(kind), proto=proto)
        return socket.socket(fileno=fds[0])

    def open_queue(self, ifname: str = "tap0", *, multi_queue: bool = False) -> int:
        """Open a queue of a tap, as a launcher does for `-netdev tap,fd=`; the caller owns it."""
        _, fds = self._call("queue", ifname=ifname, multi_queue=multi_queue)
        return fds[0]

    # ---- running something inside ---------------------------------------------------------------

    def entrance(self) -> Callable[[], None]:
        """What a child calls between fork and exec to be inside (single-threaded, as it is then).

        In a user namespace of our own the child becomes root there. The paths are resolved by the
        child; keep the namespace open until it has started.
        """
        directory = f"/proc/{self._agent.pid}/ns"
        kinds = [("net", CLONE_NEWNET)]
        if os.geteuid() != 0:
            kinds.insert(0, ("user", CLONE_NEWUSER))
        libc = ctypes.CDLL(None, use_errno=True)

        def enter() -> None:
            for name, kind in kinds:
                fd = os.open(f"{directory}/{name}", os.O_RDONLY | os.O_CLOEXEC)
                if libc.setns(fd, kind) != 0:
                    error = ctypes.get_errno()
                    raise OSError(error, f"setns({name}): {os.strerror(error)}")
                os.close(fd)

        return enter

    # ---- the agent ------------------------------------------------------------------------------

    def _call(self, op: str, **request: object) -> tuple[Any, Sequence[int]]:
        self._control.send(json.dumps({"op": op, **request}).encode())
        return self._reply()

    def _reply(self) -> tuple[Any, Sequence[int]]:
        try:
            data, ancillary, _, _ = self._control.recvmsg(
                REQUEST_MAX_BYTES, socket.CMSG_SPACE(_INT_SIZE_BYTES), socket.MSG_CMSG_CLOEXEC
            )
        except TimeoutError as error:
            raise LabError(
                f"the network namespace's agent did not answer within {AGENT_DEADLINE_S:g} s"
            ) from error
        if not data:
            raise LabError(f"the network namespace's agent ended with status {self._agent.wait()}")
        fds = [int.from_bytes(passed, sys.byteorder) for _level, _type, passed in ancillary]
        reply = json.loads(data)
        if "error" in reply:
            raise LabError(f"network namespace: {reply['error']}")
        return reply["result"], fds
