from __future__ import annotations

import errno
import os
import select

import pytest

from cpr.errors import ChannelError
from cpr.peer import UCRED, PeerIdentity, check_uid, default_allowed_uids


def _fails_with(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def test_a_living_process_has_a_pidfd_that_tells_its_death() -> None:
    child = os.posix_spawn("/bin/cat", ["cat"], {}, file_actions=[(os.POSIX_SPAWN_CLOSE, 0)])
    identity = PeerIdentity.of_ucred(UCRED.pack(child, 5, 6))
    try:
        assert (identity.pid, identity.uid, identity.gid) == (child, 5, 6)
        assert identity.pidfd is not None
        assert select.select([identity.pidfd.fileno()], [], [], 30)[0]
    finally:
        os.waitpid(child, 0)
        identity.close()
    assert identity.pidfd.closed


def test_a_process_of_another_pid_namespace_cannot_be_watched() -> None:
    identity = PeerIdentity.of_ucred(UCRED.pack(0, 5, 6))
    assert identity.pidfd is None
    identity.close()


def test_a_process_that_is_gone_cannot_be_watched() -> None:
    def gone(_pid: int) -> int:
        raise _fails_with(errno.ESRCH)

    assert PeerIdentity.of_ucred(UCRED.pack(7, 5, 6), gone).pidfd is None


def test_a_pidfd_that_cannot_be_opened_is_an_error_with_the_reason() -> None:
    def too_many(_pid: int) -> int:
        raise _fails_with(errno.EMFILE)

    with pytest.raises(ChannelError, match="cannot watch the peer, process 7: Too many open files"):
        PeerIdentity.of_ucred(UCRED.pack(7, 5, 6), too_many)


def test_by_default_we_and_root_are_allowed() -> None:
    assert default_allowed_uids() == {os.getuid(), os.geteuid(), 0}


def test_another_user_is_refused_by_name() -> None:
    identity = PeerIdentity(7, 4711, 1, None)
    check_uid(identity, frozenset({4711}))
    with pytest.raises(
        ChannelError, match=r"\(process 7\) belongs to user 4711; .* with user 0, 5"
    ):
        check_uid(identity, frozenset({5, 0}))
