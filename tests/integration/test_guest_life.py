"""Halt, reset, triple fault, several vCPUs and the in-kernel chips, booted and live-updated."""

from __future__ import annotations

import struct

import pytest
from qemu.qmp import ExecuteError

from tests.framework.guest_rig import MIB, RAM_BYTES, VMM, Rig, exit_status, next_event, runstate
from tests.framework.rounds import goes_on
from tests.integration.conftest import MakeGuest
from tools.lab.argv import Build, GuestSpec
from tools.lab.launcher import Launcher
from tools.lab.ramview import RamView
from tools.lab.update import live_update
from vmm.boot.guest.report import sequence_problems

pytestmark = pytest.mark.needs_assembler

IRQCHIP = ("-machine", "kernel-irqchip=on")
TICKS = 0x500
TICKS_PER_B = 4
RESETTERS = ["triple", "reset"]


async def started(rig: Rig, life: str) -> None:
    """The guest has said 'A' and waits for a byte, or halts."""
    await rig.boot()
    await rig.line.until_count(b"A", 1)
    if life == "updated":
        await rig.update()


async def test_halted_guest_stays_halted_until_it_is_reset(
    accel: str, life: str, guest: MakeGuest
) -> None:
    async with Rig(accel, "-kernel", str(guest("halt"))) as rig:
        await started(rig, life)
        assert await runstate(rig.vmm) == "running"
        await rig.vmm.execute("system_reset")
        event = await next_event(rig.vmm, "RESET")
        assert event["data"] == {"guest": False, "reason": "host-qmp-system-reset"}
        await rig.line.until("a second start", lambda received: received.count(b"A") == 2)
        assert rig.line.received == b"AA"
        assert await rig.vmm.quit() == 0


@pytest.mark.parametrize("name", RESETTERS)
async def test_guest_that_resets_starts_again_with_an_event(
    accel: str, life: str, guest: MakeGuest, name: str
) -> None:
    async with Rig(accel, "-kernel", str(guest(name))) as rig:
        await started(rig, life)
        rig.line.send(b"!")
        event = await next_event(rig.vmm, "RESET")
        assert event["data"] == {"guest": True, "reason": "guest-reset"}
        await rig.line.until_count(b"A", 2)
        assert await runstate(rig.vmm) == "running"


async def test_guest_that_resets_ends_the_process_with_no_reboot(
    accel: str, life: str, guest: MakeGuest
) -> None:
    async with Rig(accel, "-kernel", str(guest("triple")), "-no-reboot") as rig:
        await started(rig, life)
        rig.line.send(b"!")
        event = await next_event(rig.vmm, "SHUTDOWN")
        assert event["data"] == {"guest": True, "reason": "guest-reset"}
        assert await exit_status(rig.vmm) == 0


async def test_guest_that_was_shut_down_stays_for_its_owner_with_no_shutdown(
    life: str, guest: MakeGuest
) -> None:
    options = ("-no-reboot", "-no-shutdown")
    async with Rig("unicorn", "-kernel", str(guest("triple")), *options) as rig:
        await started(rig, life)
        rig.line.send(b"!")
        await next_event(rig.vmm, "SHUTDOWN")
        assert await runstate(rig.vmm) == "shutdown"
        with pytest.raises(ExecuteError, match="Resetting the Virtual Machine is required"):
            await rig.vmm.execute("cont")
        assert await rig.vmm.quit() == 0


async def test_reset_during_an_update_s_setup_is_what_the_successor_gets(
    accel: str, guest: MakeGuest
) -> None:
    async with Rig(accel, "-kernel", str(guest("real"))) as rig:
        await rig.boot()
        await goes_on(rig.line)
        new = await rig.successor(defer=True)
        await rig.migrate(new)
        await rig.vmm.execute("system_reset")
        await rig.line.until_count(b"A", 2)
        await new.process.execute("migrate-incoming", {"uri": f"unix:{new.main_path}"})
        await next_event(new.process, "RESUME")
        await rig.line.more(b"B", 300)  # more than was said before the update
        assert rig.line.received.count(b"A") == 2


@pytest.mark.parametrize(
    ("accel", "vcpus"),
    [("unicorn", 1), *(pytest.param("kvm", n, marks=pytest.mark.needs_kvm) for n in (1, 2))],
)
async def test_built_in_guest_on_each_vcpu_loses_nothing(accel: str, vcpus: int, life: str) -> None:
    spec = GuestSpec(ram_bytes=32 * MIB, vcpu_count=vcpus, pages=256, heartbeat_ms=5)
    build = Build(VMM, accel)
    async with Launcher(spec) as launcher:
        old, serial = await launcher.start_first(build)
        process = old.process
        await serial.wait_lines(3)
        if life == "updated":
            new = await launcher.start_successor(build)
            await live_update(process, new.process, new.sockets.migrate_arguments())
            process = new.process
        with RamView(process.pid, spec.ram_bytes, vcpus) as ram:
            before = ram.report()
            await serial.wait_lines(10)
            await process.execute("stop")
            after = ram.report()
        assert len(after.vcpus) == vcpus
        for earlier, later in zip(before.vcpus, after.vcpus, strict=True):
            assert later.sequence > earlier.sequence
            assert later.boots == 1
        assert (after.errors, sequence_problems(after), serial.problems) == (0, [], [])


@pytest.mark.needs_kvm
async def test_guest_on_the_kernel_s_timer_and_interrupt_controller_keeps_ticking(
    life: str, guest: MakeGuest
) -> None:
    async with Rig("kvm", "-kernel", str(guest("ticks")), *IRQCHIP) as rig:
        await rig.boot()
        await goes_on(rig.line)
        if life == "updated":
            await rig.update()
            await goes_on(rig.line)
        await rig.vmm.execute("stop")
        with rig.ram(RAM_BYTES) as ram:
            (ticks,) = struct.unpack("<H", ram.read(TICKS, 2))
        await rig.line.until(
            "a 'B' for every fourth tick",
            lambda received: 0 <= ticks // TICKS_PER_B - received.count(b"B") <= 1,
        )


@pytest.mark.needs_kvm
async def test_guest_on_the_kernel_s_timer_starts_over_when_it_is_reset(
    life: str, guest: MakeGuest
) -> None:
    async with Rig("kvm", "-kernel", str(guest("ticks")), *IRQCHIP) as rig:
        await started(rig, life)
        await rig.line.more(b"B", 2)
        await rig.vmm.execute("system_reset")
        await rig.line.until_count(b"A", 2)
        await rig.line.more(b"B", 2)


@pytest.mark.needs_kvm
async def test_several_vcpus_with_the_kernel_s_irqchip_wait_for_the_first_one(
    life: str, guest: MakeGuest
) -> None:
    async with Rig("kvm", "-kernel", str(guest("ticks")), *IRQCHIP, "-smp", "2") as rig:
        await rig.boot()
        await goes_on(rig.line)
        if life == "updated":
            await rig.update()
            await goes_on(rig.line)
        await rig.vmm.execute("system_reset")
        await rig.line.until_count(b"A", 2)
        await rig.line.more(b"B", 2)
