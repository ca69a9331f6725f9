"""Who is at the other end of the channel.

With an inherited listening socket SO_PEERCRED names the launcher that called listen(), not the
process that accepted. So both ends turn on SO_PASSCRED before they send, and take the credentials
that the kernel attaches to the first bytes received (unix(7), SCM_CREDENTIALS).
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

from cpr.errors import ChannelError
from cpr.ownedfd import OwnedFd

UCRED = struct.Struct("iII")  # struct ucred of <sys/socket.h>: pid, uid, gid


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """The peer as the kernel sees it.

    `pidfd` becomes readable when the peer dies. It is None when the peer lives in a pid namespace
    that we cannot see (pid 0), or is already gone; its loss then shows on the channel only.
    """

    pid: int
    uid: int
    gid: int
    pidfd: OwnedFd | None

    @classmethod
    def of_ucred(
        cls, ucred: bytes, open_pidfd: Callable[[int], int] = os.pidfd_open
    ) -> PeerIdentity:
        """The identity in the bytes of a `struct ucred`.

        Raises ChannelError when the kernel attached no credentials, or has no pidfd for us.
        """
        pid, uid, gid = UCRED.unpack(ucred)
        if pid == 0:
            return cls(pid, uid, gid, None)
        try:
            return cls(pid, uid, gid, OwnedFd(open_pidfd(pid), f"pidfd:{pid}:0"))
        except ProcessLookupError:
            return cls(pid, uid, gid, None)
        except OSError as error:
            raise ChannelError(f"cannot watch the peer, process {pid}: {error.strerror}") from error

    def close(self) -> None:
        """Close the pidfd."""
        if self.pidfd is not None:
            self.pidfd.close()


def default_allowed_uids() -> frozenset[int]:
    """Our own user, and root, who could read our memory anyway.

    Both our ids: the kernel attaches the real one.
    """
    return frozenset({os.getuid(), os.geteuid(), 0})


def check_uid(identity: PeerIdentity, allowed_uids: frozenset[int]) -> None:
    """Raise ChannelError unless the peer's user may have the guest."""
    if identity.uid not in allowed_uids:
        allowed = ", ".join(map(str, sorted(allowed_uids)))
        raise ChannelError(
            f"the peer (process {identity.pid}) belongs to user {identity.uid}; "
            f"an update is allowed with user {allowed}"
        )


def ask_for_credentials(sock: socket.socket) -> None:
    """Have the kernel attach credentials to everything sent and received on `sock`."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
