"""Messages and fds through a Channel, and how it notices that the other end is gone."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket

import pytest

import cpr.channel
import cpr.codec
from cpr.channel import Channel
from cpr.codec import encode
from cpr.errors import ChannelError
from cpr.messages import FDS_PER_FRAME_MAX, Commit, Failed, Fds, Listening, Loaded
from tests.unit.cpr.examples import MESSAGES
from tests.unit.cpr.pairs import (
    BIG,
    close_all,
    fds_frame,
    listen,
    memfds,
    pair,
    run,
    send_raw,
)


def inode(fd: int) -> int:
    return os.fstat(fd).st_ino


# ---- messages and fds ----------------------------------------------------------------------------


def test_every_message_arrives_in_order() -> None:
    async def story() -> None:
        ours, theirs = socket.socketpair()
        loop = asyncio.get_running_loop()
        sender, receiver = Channel(ours, loop), Channel(theirs, loop)
        ear = listen(receiver)
        for message in MESSAGES.values():
            sender.send(message)
        assert await ear.until(len(MESSAGES)) == list(MESSAGES.values())
        assert receiver.peer is not None
        assert receiver.peer.pid == os.getpid()
        assert sender.peer is None  # nothing was heard from there yet
        sender.close()
        receiver.close()

    run(story())


def test_fds_arrive_with_their_frame_close_on_exec() -> None:
    async def story() -> None:
        ours, theirs = socket.socketpair()
        loop = asyncio.get_running_loop()
        sender, receiver = Channel(ours, loop), Channel(theirs, loop)
        ear = listen(receiver)
        sent = memfds(FDS_PER_FRAME_MAX + 3)
        inodes = [inode(fd.fileno()) for fd in sent]
        numbers = [fd.fileno() for fd in sent]
        names = tuple(f"ram:ram{n}:0" for n in range(len(sent)))
        sender.send(Listening())
        sender.send(Fds(names[:FDS_PER_FRAME_MAX], more=True), numbers[:FDS_PER_FRAME_MAX])
        sender.send(Fds(names[FDS_PER_FRAME_MAX:]), numbers[FDS_PER_FRAME_MAX:])
        sender.send(Commit())
        await ear.until(4)
        assert [inode(fd.fileno()) for fd in ear.fds] == inodes
        assert all(fcntl.fcntl(fd.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in ear.fds)
        close_all(*sent, ear, sender, receiver)

    run(story())


@pytest.mark.parametrize("step", [1, 33, 1 << 20])
def test_frames_survive_any_cut(step: int) -> None:
    async def story() -> None:
        channel, theirs = pair()
        ear = listen(channel)
        data = b"".join(encode(message) for message in MESSAGES.values())
        theirs.setblocking(False)
        with theirs:
            for start in range(0, len(data), step):
                await asyncio.get_running_loop().sock_sendall(theirs, data[start : start + step])
                await asyncio.sleep(0)  # one turn of the loop: the channel reads
            assert await ear.until(len(MESSAGES)) == list(MESSAGES.values())
        channel.close()

    run(story())


def test_a_frame_larger_than_the_socket_buffer_is_sent_as_the_peer_reads() -> None:
    async def story() -> None:
        ours, theirs = socket.socketpair()
        loop = asyncio.get_running_loop()
        sender, receiver = Channel(ours, loop), Channel(theirs, loop)
        sent = memfds(1)
        number = inode(sent[0].fileno())
        sender.send(BIG)
        sender.send(Fds(("ram:ram0:0",)), [sent[0].fileno()])
        sent[0].close()  # what waits has its own duplicate
        sender.send(Commit())
        ear = listen(receiver)
        assert await ear.until(3) == [BIG, Fds(("ram:ram0:0",)), Commit()]
        assert inode(ear.fds[0].fileno()) == number
        sender.send(Listening())  # the queue is empty again: at once
        await ear.until(4)
        close_all(ear, sender, receiver)

    run(story())


def test_fds_wait_while_the_peer_does_not_read() -> None:
    async def story() -> None:
        ours, theirs = socket.socketpair()
        loop = asyncio.get_running_loop()
        sender, receiver = Channel(ours, loop), Channel(theirs, loop)
        sent = memfds(1)
        number = inode(sent[0].fileno())
        count = 0
        while not sender._unsent:
            sender.send(Fds(("ram:ram0:0",)), [sent[0].fileno()])
            count += 1
        sent[0].close()  # what waits has its own duplicate
        sender._send_rest()  # woken for nothing: there is still no room
        ear = listen(receiver)
        await ear.until(count)
        assert [inode(fd.fileno()) for fd in ear.fds] == [number] * count
        close_all(ear, sender, receiver)

    run(story())


def test_a_peer_that_does_not_read_fills_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpr.channel, "SEND_QUEUE_MAX_BYTES", 5 << 20)

    async def story() -> None:
        channel, theirs = pair()
        channel.send(BIG)
        with pytest.raises(ChannelError, match="STATE was not sent: the peer does not read"):
            channel.send(BIG)
        channel.send(Commit())  # small things still fit
        channel.close()
        theirs.close()

    run(story())


# ---- loss ----------------------------------------------------------------------------------------


def test_loss_comes_once_and_after_every_complete_message() -> None:
    async def story() -> None:
        channel, theirs = pair()
        send_raw(theirs, encode(Commit()) + encode(Failed("why")) + encode(Loaded())[:-1])
        theirs.close()
        ear = listen(channel)
        heard = await ear.until(3)
        assert heard == [
            Commit(),
            Failed("why"),
            "lost: the peer closed the channel after 32 bytes of an unfinished frame",
        ]
        with pytest.raises(ChannelError, match="COMMIT was not sent: the channel is closed"):
            channel.send(Commit())
        assert len(heard) == 3
        channel.close()

    run(story())


def test_fds_of_an_unfinished_frame_are_closed_with_the_channel() -> None:
    async def story() -> None:
        channel, theirs = pair()
        sent = memfds(2)
        send_raw(theirs, fds_frame(2)[:40], [fd.fileno() for fd in sent])
        theirs.close()
        ear = listen(channel)
        assert await ear.until(1) == [
            "lost: the peer closed the channel after 40 bytes of an unfinished frame"
        ]
        close_all(*sent, channel)

    run(story())


def test_a_reset_is_a_loss_with_the_kernels_words() -> None:
    async def story() -> None:
        channel, theirs = pair()
        ear = listen(channel)
        channel.send(Commit())
        theirs.close()  # with our message unread
        assert await ear.until(1) == ["lost: receiving failed: Connection reset by peer"]
        channel.close()

    run(story())


def test_what_a_gone_peer_said_last_is_heard_before_a_send_to_it_fails() -> None:
    async def story() -> None:
        channel, theirs = pair()
        ear = listen(channel)
        send_raw(theirs, encode(Commit()) + encode(Failed("why")))
        theirs.close()
        with pytest.raises(ChannelError, match="sending failed: Broken pipe"):
            channel.send(Commit())
        assert ear.heard == [Commit(), Failed("why"), "lost: the peer closed the channel"]
        channel.close()

    run(story())


def test_what_came_with_a_message_is_heard_before_the_answer_to_it_fails() -> None:
    """Both in one read, and the peer is gone: it said Failed before it went."""

    async def story() -> None:
        channel, theirs = pair()
        ear = listen(channel)

        def answer() -> None:
            ear.then = lambda: None
            with pytest.raises(ChannelError, match="sending failed"):
                channel.send(Listening())

        ear.then = answer
        send_raw(theirs, encode(Commit()) + encode(Failed("no room")))
        theirs.close()
        lost = "lost: the peer closed the channel"
        assert await ear.until(3) == [Commit(), Failed("no room"), lost]
        channel.close()

    run(story())


def test_a_send_before_start_fails_without_anybody_to_tell() -> None:
    async def story() -> None:
        channel, theirs = pair()
        theirs.close()
        with pytest.raises(ChannelError, match="Broken pipe"):
            channel.send(Commit())
        channel.close()

    run(story())


def test_a_peer_that_hangs_up_on_a_waiting_frame_is_a_loss() -> None:
    async def story() -> None:
        channel, theirs = pair()
        channel.send(BIG)
        ear = listen(channel)
        theirs.close()
        (heard,) = await ear.until(1)
        assert str(heard).startswith("lost: ")
        channel.close()

    run(story())


def test_closing_releases_everything_and_calls_nobody() -> None:
    async def story() -> None:
        channel, theirs = pair()
        sent = memfds(1)
        channel.send(BIG)
        channel.send(Fds(("ram:ram0:0",)), [sent[0].fileno()])
        send_raw(theirs, fds_frame(1)[:40], [sent[0].fileno()])
        ear = listen(channel)
        await asyncio.sleep(0)  # one turn of the loop: the half frame is read
        channel.close()
        channel.close()
        theirs.close()
        sent[0].close()
        await asyncio.sleep(0)
        assert ear.heard == []

    run(story())


def test_a_channel_may_be_closed_by_what_a_message_causes() -> None:
    async def story() -> None:
        channel, theirs = pair()
        ear = listen(channel)
        ear.then = channel.close
        send_raw(theirs, encode(Commit()) + encode(Loaded()))
        assert await ear.until(1) == [Commit()]
        theirs.close()

    run(story())


def test_what_is_sent_says_the_protocol_that_was_agreed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        channel, peer = pair()
        monkeypatch.setattr(cpr.codec, "PROTOCOL_MAX", 2)
        channel.protocol = 2
        channel.send(Commit())
        assert int.from_bytes(peer.recv(4096)[4:6], "big") == 2
        close_all(channel, peer)

    run(story())
