"""What a drill may do to a channel and a driver: nothing unless asked, exactly what was asked."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

from cpr.channel import Channel
from cpr.codec import encode
from cpr.handshake import Action, Event, Phase, Role
from cpr.messages import Commit, Loaded
from tests.unit.cpr.drivers import attached, driver_in
from tests.unit.cpr.pairs import close_all, listen, pair, run


def test_tampering_meets_one_frame_and_no_other() -> None:
    async def story() -> None:
        channel, peer = pair()

        def backwards(frame: bytes, fds: Sequence[int]) -> tuple[bytes, Sequence[int]]:
            return frame[::-1], fds

        channel.tamper = backwards
        channel.send(Commit())
        channel.send(Commit())
        frame = encode(Commit())
        assert peer.recv(4096) == frame[::-1] + frame
        close_all(channel, peer)

    run(story())


def test_shutdown_is_the_end_for_the_peer_and_harmless_the_second_time() -> None:
    async def story() -> None:
        channel, peer = pair()
        channel.shutdown(socket.SHUT_WR)
        assert peer.recv(1) == b""
        peer.close()
        channel.close()
        channel.shutdown(socket.SHUT_RDWR)

    run(story())


def test_break_off_is_a_loss_with_the_reason() -> None:
    async def story() -> None:
        channel, peer = pair()
        ear = listen(channel)
        channel.break_off("Connection reset by peer")
        assert ear.heard == ["lost: receiving failed: Connection reset by peer"]
        close_all(channel, peer)

    run(story())


class Diary:
    """Implements cpr.driver.Steps."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, Action, bool]] = []

    def before(self, action: Action, channel: Channel | None) -> None:
        self.entries.append(("before", action, channel is not None))

    def after(self, action: Action, channel: Channel | None) -> None:
        self.entries.append(("after", action, channel is not None))


def test_driver_tells_of_every_action_before_and_after_it() -> None:
    async def story() -> None:
        driver, performer = driver_in(Role.SOURCE, Phase.STATE_SENT)
        diary = Diary()
        performer.on[Action.SEND_COMMIT] = lambda: diary.entries.append(
            ("in", Action.SEND_COMMIT, True)
        )
        driver.steps = diary
        other = attached(driver)
        other.send(Loaded())
        ear_heard = asyncio.Event()
        performer.on[Action.RELEASE_LEASE] = ear_heard.set
        await ear_heard.wait()
        assert diary.entries == [
            ("before", Action.RELEASE_LEASE, True),
            ("after", Action.RELEASE_LEASE, True),
            ("before", Action.SEND_COMMIT, True),
            ("in", Action.SEND_COMMIT, True),
            ("after", Action.SEND_COMMIT, True),
        ]
        assert driver.record[-1][1] is Event.LOADED
        driver.close()
        other.close()

    run(story())
