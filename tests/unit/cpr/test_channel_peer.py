"""What a Channel does with a peer that misbehaves, is somebody else, or dies."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from cpr.channel import Channel, PeerIdentity
from cpr.codec import encode
from cpr.errors import ChannelError
from cpr.messages import FDS_PER_FRAME_MAX, Commit, Failed, Loaded, Message
from tests.unit.cpr.pairs import (
    BIG,
    Ear,
    child_that_writes,
    close_all,
    fds_frame,
    listen,
    memfds,
    pair,
    run,
    send_raw,
)

ME = PeerIdentity(os.getpid(), os.getuid(), os.getgid(), None)


# ---- violations ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "fd_count", "problem"),
    [
        (fds_frame(2), 1, "FDS announces 2 fds, and 1 came"),
        (fds_frame(1), 2, "1 fds came that no frame announces"),
        (encode(Commit()), 1, "1 fds came that no frame announces"),
        (fds_frame(1), FDS_PER_FRAME_MAX + 1, "fds were lost on their way: more than 64"),
        (b"GET / HTTP/1.1\r\n", 0, "does not speak this protocol"),
    ],
)
@pytest.mark.parametrize("violations", [True, False])
def test_what_does_not_add_up_ends_reading(
    data: bytes, fd_count: int, problem: str, *, violations: bool
) -> None:
    async def story() -> None:
        channel, theirs = pair()
        ear = listen(channel, violations=violations)
        sent = memfds(fd_count)
        send_raw(theirs, data, [fd.fileno() for fd in sent])
        send_raw(theirs, encode(Commit()))
        heard = [what for what in await _until_text(ear) if isinstance(what, str)]
        assert len(heard) == 1
        assert heard[0].startswith("violation: " if violations else "lost: ")
        assert problem in heard[0]
        close_all(*sent, ear, channel, theirs)

    run(story())


async def _until_text(ear: Ear) -> list[str | Message]:
    while not any(isinstance(what, str) for what in ear.heard):
        await ear.until(len(ear.heard) + 1)
    return ear.heard


def test_fds_dripped_over_one_frame_are_limited() -> None:
    async def story() -> None:
        channel, theirs = pair()
        ear = listen(channel)
        sent = memfds(FDS_PER_FRAME_MAX)
        frame = fds_frame(FDS_PER_FRAME_MAX)
        for part in (frame[:1], frame[1:2]):
            send_raw(theirs, part, [fd.fileno() for fd in sent])
        assert await ear.until(1) == ["violation: 128 fds came with one frame"]
        close_all(*sent, channel, theirs)

    run(story())


def test_after_a_violation_the_peer_can_still_be_told_and_its_loss_is_seen_in_sending() -> None:
    async def story() -> None:
        channel, theirs = pair()
        ear = listen(channel)
        send_raw(theirs, b"nonsense")
        await ear.until(1)
        channel.send(Failed("you talk nonsense"))
        assert theirs.recv(1000) == encode(Failed("you talk nonsense"))
        theirs.close()
        with pytest.raises(ChannelError, match=r"Broken pipe|reset"):
            channel.send(Commit())
        assert len(ear.heard) == 2
        assert str(ear.heard[1]).startswith("lost: sending failed")
        channel.close()

    run(story())


def test_after_a_violation_loss_is_seen_when_the_rest_of_a_frame_is_sent() -> None:
    async def story() -> None:
        channel, theirs = pair()
        ear = listen(channel)
        send_raw(theirs, b"nonsense")
        await ear.until(1)
        channel.send(BIG)
        theirs.close()
        heard = await ear.until(2)
        assert str(heard[1]).startswith("lost: sending failed")
        channel.close()

    run(story())


# ---- who the peer is -----------------------------------------------------------------------------


def test_a_peer_of_another_user_is_refused_before_anything_is_delivered() -> None:
    async def story() -> None:
        channel, theirs = pair(allowed_uids=frozenset({os.getuid() + 1}))
        ear = listen(channel)
        sent = memfds(1)
        send_raw(theirs, fds_frame(1), [sent[0].fileno()])
        (heard,) = await ear.until(1)
        assert f"belongs to user {os.getuid()}; an update is allowed with user" in str(heard)
        close_all(*sent, channel, theirs)

    run(story())


def test_a_known_peer_of_another_user_is_refused_at_once() -> None:
    async def story() -> None:
        ours, theirs = socket.socketpair()
        with theirs, pytest.raises(ChannelError, match="belongs to user 4711"):
            Channel(ours, asyncio.get_running_loop(), peer=PeerIdentity(1, 4711, 1, None))
        assert ours.fileno() == -1

    run(story())


def test_a_known_peer_is_believed() -> None:
    async def story() -> None:
        channel, theirs = pair(peer=ME)
        assert channel.peer == ME
        ear = listen(channel)
        send_raw(theirs, encode(Commit()))
        heard = await ear.until(2)
        assert set(map(str, heard)) == {"died", str(Commit())}  # no pidfd: gone before we looked
        channel.close()
        theirs.close()

    run(story())


def test_a_socket_that_cannot_tell_who_sends_is_refused_and_closed() -> None:
    async def story() -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        with pytest.raises(OSError, match="not supported"):
            Channel(sock, asyncio.get_running_loop())
        assert sock.fileno() == -1

    run(story())


def test_another_process_that_joins_in_is_a_violation() -> None:
    async def story() -> None:
        channel, theirs = pair()
        ear = listen(channel)
        send_raw(theirs, encode(Commit()))
        await ear.until(1)
        with child_that_writes(theirs, encode(Commit())) as child:
            heard = await ear.until(2)
            child.communicate()
        assert "violation: another process sends on this channel" in str(heard[1])
        channel.close()
        theirs.close()

    run(story())


# ---- the peer's death ----------------------------------------------------------------------------


@pytest.mark.parametrize("held_open", [True, False])
def test_death_comes_after_what_the_dead_had_sent(*, held_open: bool) -> None:
    async def story() -> None:
        channel, theirs = pair()
        ear = listen(channel)
        with child_that_writes(theirs, encode(Commit()) + encode(Loaded())) as child:
            if not held_open:
                theirs.close()
            await ear.until(2)
            child.kill()
            heard = await ear.until(3 if held_open else 4)
        lost = [] if held_open else ["lost: the peer closed the channel"]
        assert heard[:2] == [Commit(), Loaded()]
        assert sorted(map(str, heard[2:])) == sorted(["died", *lost])
        channel.close()
        theirs.close()

    run(story())


def test_unread_messages_of_a_dead_peer_are_delivered_before_its_death() -> None:
    async def story() -> None:
        channel, theirs = pair()
        ear = listen(channel)
        with child_that_writes(theirs, encode(Commit()), encode(Loaded())) as child:
            await ear.until(1)
            # As if the death were the first that the loop looks at.
            asyncio.get_running_loop().remove_reader(channel._sock.fileno())
            child.communicate()
            assert await ear.until(3) == [Commit(), Loaded(), "died"]
        channel.close()
        theirs.close()

    run(story())


def test_a_peer_that_nobody_watches_may_die() -> None:
    async def story() -> None:
        channel, theirs = pair()
        ear = Ear()
        channel.start(ear.on_message, ear.on_lost)
        with child_that_writes(theirs, encode(Commit())) as child:
            theirs.close()
            await ear.until(1)
            child.communicate()
            assert await ear.until(2) == [Commit(), "lost: the peer closed the channel"]
        channel.close()

    run(story())


@pytest.mark.parametrize("pid", [0, 1])
def test_without_a_pidfd_death_is_known_at_once_or_never(pid: int) -> None:
    async def story() -> None:
        channel, theirs = pair(peer=PeerIdentity(pid, os.getuid(), 0, None))
        ear = listen(channel)
        await asyncio.sleep(0)
        assert ear.heard == (["died"] if pid else [])
        channel.close()
        theirs.close()

    run(story())


def test_a_death_after_close_is_not_told() -> None:
    async def story() -> None:
        channel, theirs = pair(peer=PeerIdentity(1, os.getuid(), 0, None))
        ear = listen(channel)
        channel.close()
        await asyncio.sleep(0)
        assert ear.heard == []
        theirs.close()

    run(story())
