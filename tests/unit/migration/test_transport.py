"""Where a main channel listens and connects: addresses that parse and yet cannot be used."""

from __future__ import annotations

import pytest

from vmm.config import MigrationAddress, SocketFd, SocketInet, SocketVsock
from vmm.errors import MigrationError
from vmm.migration.transport import Listener, connect

DEADLINE_MS = 10_000
NO_SERVICE = "Servname not supported for ai_socktype"

BAD = [
    (SocketInet("127.0.0.1", "abc"), f"address resolution failed for 127.0.0.1:abc: {NO_SERVICE}"),
    (SocketInet("", "65536"), f"address resolution failed for :65536: {NO_SERVICE}"),
    (SocketInet("", "²"), f"address resolution failed for :²: {NO_SERVICE}"),
    (SocketInet("", "1" * 5000), f"address resolution failed for :{'1' * 5000}: {NO_SERVICE}"),
    (SocketVsock("a", "1"), "Failed to parse cid 'a'"),
    (SocketVsock("1", "b"), "Failed to parse port 'b'"),
    (SocketVsock("1", str(1 << 32)), f"Failed to parse port '{1 << 32}'"),
]


@pytest.mark.parametrize(("address", "text"), BAD)
async def test_numbers_that_are_none_get_qemus_text(address: MigrationAddress, text: str) -> None:
    with pytest.raises(MigrationError) as listening:
        Listener.open(address)
    with pytest.raises(MigrationError) as connecting:
        await connect(address, DEADLINE_MS)
    assert str(listening.value) == str(connecting.value) == text


@pytest.mark.parametrize("host", ["a..b", "é" * 70, "a\0b", "no-such-host.invalid"])
def test_a_name_that_is_no_host_cannot_be_listened_on(host: str) -> None:
    with pytest.raises(MigrationError, match=r"^Failed to bind socket to .*:4444: ."):
        Listener.open(SocketInet(host, "4444"))


@pytest.mark.parametrize("host", ["a..b", "é" * 70, "a\0b"])
async def test_a_name_that_is_no_host_cannot_be_connected_to(host: str) -> None:
    """Such a name raises what is no OSError; nobody up there would catch that."""
    with pytest.raises((MigrationError, OSError)) as caught:
        await connect(SocketInet(host, "4444"), DEADLINE_MS)
    assert "resolution" in str(caught.value) or "not known" in str(caught.value)


@pytest.mark.parametrize("name", ["x", "²", "-1", "1" * 5000, str(1 << 31)])
def test_an_fd_that_is_no_number_is_no_listener(name: str) -> None:
    with pytest.raises(MigrationError, match=r"File descriptor named '.*' has not been found"):
        Listener.open(SocketFd(name))
