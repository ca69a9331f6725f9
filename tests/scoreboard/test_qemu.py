"""QEMU's weaknesses W1 to W20 (facts sheet on cpr, section 10), and what happens here instead."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import socket
from pathlib import Path

import pytest
from qemu.qmp import ExecuteError, QMPClient

from cpr.codec import encode
from tests.framework.taps import taps_of
from tests.scoreboard.rig import BUILD, GUEST, Rig, ended, marks, rig, status
from tests.skew import skewed_vmm
from tests.skew.flavours import EXTRA_NAME
from tests.unit.cpr.examples import HELLO
from tools.lab.argv import Build, migrate_channels
from tools.lab.child import ChildSetup
from tools.lab.deadlines import QMP_REPLY_MS, within
from tools.lab.launcher import Launcher
from tools.lab.namespace import NetworkNamespace, TapSpec
from tools.lab.nics import add_nics
from tools.lab.process import listen_unix
from tools.lab.procfs import find_memfd
from tools.lab.update import EVENTS_ON, live_update

STATE_MAX_BYTES = 16 << 10
NOBODY = 65534


async def test_w01_success_is_reported_only_when_the_successor_has_loaded_and_runs() -> None:
    async with rig() as r:
        new = await r.successor()
        await r.fault(r.old, "source/before/SEND_STATE/flip")
        assert await r.update_ends(new) == "failed"
        assert "completed" not in r.said
        assert "digest" in await r.reason()
        assert await status(r.old) == "running"
        await r.guest_goes_on()


async def test_w02_cont_on_the_old_process_is_refused_while_and_after_the_successor_runs() -> None:
    async with rig() as r:
        new = await r.update()
        with pytest.raises(ExecuteError, match="run lease"):
            await r.old.execute("cont")
        await new.process.terminate()
        with pytest.raises(ExecuteError, match="older than the RAM"):
            await r.old.execute("cont")
        assert await status(r.old) == "postmigrate"


async def test_w03_a_ram_fd_that_is_missing_or_another_is_refused_and_never_replaced() -> None:
    async with rig() as r:
        for fault, said in (
            ("fd-missing", "FDS announces 4 fds, and 3 came"),
            ("fd-wrong", "memfd 'ram0': the fd must be a memfd"),
        ):
            new = await r.successor()
            await r.fault(r.old, f"source/before/SEND_FDS/{fault}")
            assert await r.update_ends(new) == "failed"
            assert said in await r.reason()
            assert await ended(new.process) == 1
            await r.guest_goes_on()


async def test_w04_the_successor_answers_qmp_before_anything_was_sent() -> None:
    async with rig() as r:
        new = await r.successor()
        assert await status(new.process) == "inmigrate"
        await new.process.execute("migrate-set-capabilities", {"capabilities": []})
        assert await new.process.quit() == 0


@pytest.mark.parametrize("step", ["before/SEND_ACCEPT", "before/SEND_LOADED"])
async def test_w05_every_wait_has_a_deadline_with_a_name(step: str) -> None:
    async with rig() as r:
        new = await r.successor()
        await r.fault(new.process, f"target/{step}/hang")
        await r.old.execute("migrate-set-parameters", {"x-cpr-timeout-ms": 1500})
        assert await r.update_ends(new) == "failed"
        assert "did not answer within 1500 ms" in await r.reason()
        assert "(deadline '" in await r.reason()
        await r.guest_goes_on()
        os.kill(new.process.pid, signal.SIGCONT)


async def test_w06_a_listener_that_never_accepts_does_not_freeze_the_monitor(
    tmp_path: Path,
) -> None:
    stuck = tmp_path / "cpr.sock"
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listener.bind(str(stuck))
        listener.listen(0)
        for _ in range(2):  # now its backlog is full
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(str(stuck))
        monitor = tmp_path / "second.qmp"
        async with rig("-qmp", f"unix:{monitor},server=on,wait=off") as r:
            await r.old.execute("migrate-set-parameters", {"mode": "cpr-transfer"})
            arguments = migrate_channels(stuck, tmp_path / "main.sock")
            migrate = asyncio.ensure_future(r.old.execute("migrate", arguments))
            client = QMPClient("second")
            await client.connect(str(monitor))
            reply = await within(QMP_REPLY_MS, "a reply", client.execute("query-status"))
            assert isinstance(reply, dict)
            assert reply["status"] == "running"
            assert not migrate.done()
            await client.execute("migrate_cancel")
            with pytest.raises(ExecuteError, match="cancelled"):
                await migrate
            await client.disconnect()
            await r.guest_goes_on()


async def test_w07_the_old_process_reports_the_successor_s_own_reason() -> None:
    async with rig() as r:
        new = await r.successor()
        await r.fault(new.process, "target/before/BUILD/no-fds")
        assert await r.update_ends(new) == "failed"
        assert "Too many open files" in await r.reason()
        assert await ended(new.process) == 1
        assert "Too many open files" in new.process.log_path.read_text()
        await r.guest_goes_on()


async def test_w08_every_difference_is_found_by_the_handshake_before_the_stop() -> None:
    async with rig() as r:
        new = await r.successor("-device", "isa-debug-exit", "-cpu", "host")
        assert await r.update_ends(new) == "failed"
        reason = await r.reason()
        assert "'debug-exit0' exists only here" in reason
        assert "cpu-model is max there and host here" in reason
        assert "kick" not in await marks(r.old)
        await r.guest_goes_on()


async def test_w09_an_update_to_an_older_version_works_or_is_refused_while_the_guest_runs() -> None:
    newer = Build(skewed_vmm.command("future-optional"), "unicorn")
    async with Launcher(GUEST) as launcher:
        old, serial = await launcher.start_first(newer)
        r = Rig(launcher, old, serial)
        older = await r.update()  # its unknown section is optional, and skipped
        assert await status(older.process) == "running"
        await r.guest_goes_on()
    newer = Build(skewed_vmm.command("future-mandatory"), "unicorn")
    async with Launcher(GUEST) as launcher:
        old, serial = await launcher.start_first(newer)
        r = Rig(launcher, old, serial)
        assert await r.update_ends(await r.successor()) == "failed"
        assert f"'{EXTRA_NAME}'" in await r.reason()
        assert "kick" not in await marks(r.old)
        await r.guest_goes_on()


async def test_w10_channel_lists_that_make_no_sense_are_errors_and_the_guest_lives() -> None:
    main: object = {
        "channel-type": "main",
        "addr": {"transport": "socket", "type": "unix", "path": "/m"},
    }
    cpr: object = {
        "channel-type": "cpr",
        "addr": {"transport": "socket", "type": "unix", "path": "/c"},
    }
    async with rig() as r:
        for mode in ("cpr-transfer", "normal", "cpr-reboot"):
            await r.old.execute("migrate-set-parameters", {"mode": mode})
            for channels in ([cpr], [], [main, main], [cpr, cpr]):
                with pytest.raises(ExecuteError):
                    await r.old.execute("migrate", {"channels": channels})
        await r.old.execute("migrate-set-parameters", {"mode": "cpr-transfer"})
        with pytest.raises(ExecuteError, match="missing 'cpr' migration channel"):
            await r.old.execute("migrate", {"uri": "unix:/m"})
        await r.guest_goes_on()


@pytest.mark.needs_tun
async def test_w11_taps_and_sockets_are_handed_over_without_any_order_of_hot_plugging() -> None:
    with NetworkNamespace.open() as namespace:
        (nic,) = add_nics(namespace, 1, TapSpec())
        first = ChildSetup(entrance=namespace.entrance())
        async with Launcher(GUEST, extra=nic.argv(), first=first) as launcher:
            old, serial = await launcher.start_first(BUILD)
            new = await launcher.start_successor(BUILD)  # outside: it could open no tap
            await live_update(old.process, new.process, new.sockets.migrate_arguments())
            assert taps_of(new.process.pid) == [nic.ifname]
            await Rig(launcher, new, serial).guest_goes_on()  # on the same serial connection


async def test_w12_everything_slow_is_over_before_the_guest_stops() -> None:
    async with rig() as r:
        new = await r.update()
        stop_ns = (await marks(r.old))["kick"]
        theirs = await marks(new.process)
        for step in ("BUILT->LISTENING", "MAIN_CHECKED->CONNECTED", "REHEARSED->PREPARED"):
            assert theirs[step] < stop_ns, step


async def test_w13_the_successor_writes_no_byte_of_guest_ram_before_it_owns_the_guest() -> None:
    async with rig() as r:
        await r.old.execute("stop")
        ram = find_memfd(r.old.pid, GUEST.ram_bytes)
        before = hashlib.sha256(ram.read_bytes()).digest()
        new = await r.successor()
        # LOAD_STATE only verifies; the state is put into the machine after it, before the lease.
        await r.fault(new.process, "target/before/TAKE_LEASE/kill")
        assert await r.update_ends(new) == "failed"
        assert hashlib.sha256(ram.read_bytes()).digest() == before
        await r.old.execute("cont")
        await r.guest_goes_on()


async def test_w14_what_is_sent_in_the_pause_is_state_and_nothing_else() -> None:
    async with rig() as r:
        await r.update()
        sent = (await r.old.execute("query-migrate"))["ram"]["transferred"]
        assert 0 < sent <= STATE_MAX_BYTES


async def test_w15_a_device_that_only_one_side_has_is_named_before_the_stop() -> None:
    async with rig() as r:
        more = await r.successor("-chardev", "null,id=n", "-device", "isa-debugcon,chardev=n")
        assert await r.update_ends(more) == "failed"
        assert "'debugcon0' exists only here" in await r.reason()
        assert "kick" not in await marks(r.old)
        await r.guest_goes_on()


async def test_w16_after_a_failure_or_a_cancel_the_next_successor_works_and_no_orphan_stays() -> (
    None
):
    async with rig() as r:
        failing = await r.successor()
        await r.fault(failing.process, "target/before/LOAD_REHEARSAL/eof")
        assert await r.update_ends(failing) == "failed"
        assert await ended(failing.process) == 1

        cancelled = await r.successor()
        await r.fault(cancelled.process, "target/before/SEND_LISTENING/hang")
        await r.begin(cancelled)
        hung = asyncio.to_thread(
            os.waitid, os.P_PID, cancelled.process.pid, os.WSTOPPED | os.WNOWAIT
        )
        await within(QMP_REPLY_MS, "the successor hangs", hung)
        await r.old.execute("migrate_cancel")
        assert await r.last_word() == "cancelled"
        os.kill(cancelled.process.pid, signal.SIGCONT)
        assert await ended(cancelled.process) == 1
        assert "cancel" in cancelled.process.log_path.read_text()

        orphan = await r.successor()
        await r.fault(orphan.process, "target/before/SEND_CONNECTED/hang")
        await r.begin(orphan)
        hung = asyncio.to_thread(os.waitid, os.P_PID, orphan.process.pid, os.WSTOPPED | os.WNOWAIT)
        await within(QMP_REPLY_MS, "the successor hangs", hung)
        await r.old.terminate()
        os.kill(orphan.process.pid, signal.SIGCONT)
        assert await ended(orphan.process) == 1  # it does not keep the dead guest's RAM


async def test_w17_no_object_can_be_added_between_the_offer_and_the_end() -> None:
    async with rig() as r:
        commands = {each["name"] for each in await r.old.execute("query-commands")}
        assert not commands & {"object-add", "device_add", "netdev_add", "chardev-add"}
        for line in ("object_add", "device_add", "netdev_add", "chardev-add"):
            said = await r.old.execute("human-monitor-command", {"command-line": f"{line} x"})
            assert said.startswith("unknown command"), said


# Connects, says HELLO, and ends well unless the answer is ACCEPT (kind 16).
LIAR = """
import socket, sys
peer = socket.socket(socket.AF_UNIX)
peer.connect(sys.argv[1])
peer.sendall(bytes.fromhex(sys.argv[2]))
try:
    answer = peer.recv(4096)
except ConnectionResetError:
    answer = b""
sys.exit(answer[6:8] == bytes((0, 16)))
"""
STRANGER = """
import socket, sys
end, _address = socket.socket(fileno=int(sys.argv[1])).accept()
end.recv(1 << 20)
end.send(b"x")
end.recv(1)
"""


@pytest.mark.needs_root
async def test_w18_a_peer_of_another_user_gets_no_fd(tmp_path: Path) -> None:
    path = tmp_path / "cpr.sock"
    async with rig() as r:
        await r.old.execute("migrate-set-parameters", {"mode": "cpr-transfer"})
        with listen_unix(path) as listener:
            stranger = await asyncio.create_subprocess_exec(
                *("/usr/bin/python3", "-c", STRANGER, str(listener.fileno())),
                pass_fds=[listener.fileno()],
                preexec_fn=ChildSetup(uid=NOBODY).apply,
            )
            arguments = migrate_channels(path, tmp_path / "main.sock")
            await r.old.execute("migrate-set-capabilities", EVENTS_ON)
            await r.old.execute("migrate", arguments)
            assert await r.last_word() == "failed"
            assert await within(QMP_REPLY_MS, "the stranger's end", stranger.wait()) == 0
        assert f"belongs to user {NOBODY}" in await r.reason()
        await r.guest_goes_on()


@pytest.mark.needs_root
async def test_w18_a_successor_believes_nothing_that_another_user_says() -> None:
    """The stranger can connect (the directory lets it) and begins with a perfect HELLO."""
    async with rig() as r:
        new = await r.successor()
        assert new.sockets.cpr is not None
        new.sockets.cpr.parent.chmod(0o755)
        new.sockets.cpr.chmod(0o777)
        stranger = await asyncio.create_subprocess_exec(
            *("/usr/bin/python3", "-c", LIAR, str(new.sockets.cpr), encode(HELLO).hex()),
            preexec_fn=ChildSetup(uid=NOBODY).apply,
        )
        assert await ended(new.process) == 1
        assert await within(QMP_REPLY_MS, "the stranger's end", stranger.wait()) == 0
        assert f"belongs to user {NOBODY}" in new.process.log_path.read_text()
        await r.guest_goes_on()
        await r.update()
        await r.guest_goes_on()
