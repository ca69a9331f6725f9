from __future__ import annotations

import re
import struct
from pathlib import Path

from guestram.layout import PC_HOLE_END, PC_HOLE_START
from tests.framework.fake_char import FakeChar
from tests.unit.boot.bare_machine import BareMachine, BareRam
from vmm.boot.direct import BOOT_INFO_ADDRESS
from vmm.boot.guest.report import (
    REPORT_ADDRESS,
    SLOT_SIZE_BYTES,
    STAMP_MAGIC,
    WORK_START,
    page_address,
    parse_slot,
    sequence_problems,
    verify_stamps,
)
from vmm.boot.image import plan_boot
from vmm.boot.plan import BootPlan
from vmm.config import VmmConfig
from vmm.devices.bus import SystemBus
from vmm.devices.clock import Clock
from vmm.devices.serial import Serial

MIB = 1 << 20
RAM_BYTES = 4 * MIB  # 512 working pages
BOOT_INFO_VCPUS_OFFSET = 40
ITERATION = 80  # instructions, about


class Guest:
    """The built-in guest on the bare machine, with its devices."""

    def __init__(self, ram: BareRam, append: str = "", kernel: Path | None = None) -> None:
        config = VmmConfig(
            memory_size_bytes=ram.size_bytes, serials=("s",), append=append, kernel=kernel
        )
        self.plan: BootPlan = plan_boot(config)
        self.console = FakeChar()
        self.serial = Serial(self.console, lambda _level: None)
        self._bus = SystemBus()
        self._bus.attach(Clock(1))
        self._bus.attach(self.serial)
        self.ram = ram
        self.power_on()

    def power_on(self) -> None:
        """Also what a reset does: RAM outside the boot pieces stays as it is."""
        self.plan.write_to(self.ram)
        self.machine = BareMachine(self.ram, self._bus, self.plan)

    def problems(self) -> list[str]:
        report = self.machine.report()
        stamps = verify_stamps(self.ram.read, report, self.ram.size_bytes)
        return sequence_problems(report) + stamps


def test_guest_stamps_all_ram_in_passes_and_keeps_its_laws_wherever_it_is_stopped() -> None:
    guest = Guest(BareRam(RAM_BYTES), append="heartbeat_ms=0")
    for slice_instructions in (40_003, 7, 11, 13, 60_007):
        guest.machine.run(slice_instructions)
        assert guest.problems() == []
    for _ in range(2 * ITERATION):  # every instruction of an iteration is a stop point
        guest.machine.run(1)
        assert guest.problems() == []
    report = guest.machine.report()
    assert report.errors == 0
    assert report.working_pages == (RAM_BYTES - WORK_START) // 4096
    assert report.vcpus[0].pass_number >= 2
    assert guest.console.written == b""


def test_heartbeat_lines_come_whole_and_count_up() -> None:
    guest = Guest(BareRam(RAM_BYTES), append="pages=16 heartbeat_ms=1")
    lines: list[str] = []
    while len(lines) < 4:
        guest.machine.run(20_000)
        lines = guest.console.written.decode().splitlines()
    fields = [
        re.fullmatch(r"cpr-guest seq=(\d+) pass=(\d+) gap_us=(\d+) errors=(\d+)", line)
        for line in lines[:-1]
    ]
    assert all(fields)
    sequences = [int(match[1]) for match in fields if match]
    assert sequences == sorted(set(sequences))
    assert [match[4] for match in fields if match] == ["0"] * len(fields)
    heartbeats = guest.machine.report().vcpus[0].heartbeats
    assert heartbeats == guest.console.written.count(b"\n")


def test_a_busy_uart_delays_the_line_but_not_the_guest() -> None:
    guest = Guest(BareRam(RAM_BYTES), append="pages=16 heartbeat_ms=1")
    while not guest.console.written:
        guest.machine.run(20_000)
    guest.console.accepts = 0
    guest.machine.run(5_000)
    before = guest.machine.report().sequence
    guest.machine.run(200 * ITERATION)
    assert guest.machine.report().sequence > before + 100
    guest.console.unblock()
    while b"\n" not in guest.console.written:
        guest.machine.run(20_000)
    first = guest.console.written.split(b"\n")[0].decode()
    assert re.fullmatch(r"cpr-guest seq=\d+ pass=\d+ gap_us=\d+ errors=0", first)


def test_pages_option_limits_the_working_set() -> None:
    guest = Guest(BareRam(RAM_BYTES), append="root=none pages=10")
    guest.machine.run(100 * ITERATION)
    report = guest.machine.report()
    assert report.working_pages == 10
    assert guest.ram.read(page_address(10, RAM_BYTES), 16) == bytes(16)
    assert guest.problems() == []


def test_a_changed_page_is_found_by_the_guest_and_by_the_verifier() -> None:
    guest = Guest(BareRam(RAM_BYTES), append="pages=64 heartbeat_ms=0")
    guest.machine.run(55 * ITERATION)
    next_page = guest.machine.report().vcpus[0].next_page
    assert 20 < next_page < 60
    address = page_address(3, RAM_BYTES)
    guest.ram.write(address + 8, b"\xff")
    assert any(problem.startswith("page 3 at 0x203000") for problem in guest.problems())
    guest.machine.run(64 * ITERATION)
    vcpu = guest.machine.report().vcpus[0]
    assert (vcpu.errors, vcpu.first_bad_address) == (1, address)


def test_old_ram_under_a_new_cpu_breaks_the_laws() -> None:
    """What a wrong update would do: the CPU goes on, RAM is from before."""
    guest = Guest(BareRam(RAM_BYTES), append="pages=64 heartbeat_ms=0")
    guest.machine.run(100 * ITERATION)
    old = guest.ram.read(0, RAM_BYTES)
    guest.machine.run(100 * ITERATION)
    guest.ram.write(0, old)
    guest.machine.run(100 * ITERATION)
    assert guest.machine.report().errors > 0 or guest.problems()


def test_a_reset_goes_on_with_the_next_pass_and_sequence_restarts() -> None:
    guest = Guest(BareRam(RAM_BYTES), append="pages=64 heartbeat_ms=0")
    guest.machine.run(100 * ITERATION)
    before = guest.machine.report().vcpus[0]
    guest.power_on()
    guest.machine.run(40 * ITERATION)
    after = guest.machine.report().vcpus[0]
    assert (after.boots, after.first_pass) == (2, before.pass_number + 1)
    assert after.sequence < before.sequence
    assert guest.problems() == []
    guest.machine.run(200 * ITERATION)
    assert guest.machine.report().errors == 0
    assert guest.problems() == []


def test_gap_is_noted_with_its_time_and_the_largest_is_kept() -> None:
    guest = Guest(BareRam(RAM_BYTES), append="pages=64 heartbeat_ms=0")
    guest.machine.run(50 * ITERATION)
    clock = Clock(1)
    clock.port_read(0, 4)
    stopped_ns = clock.save().latched_ns[0]
    while True:  # nothing runs the guest for 20 ms of the clock it reads
        clock.port_read(0, 4)
        if clock.save().latched_ns[0] > stopped_ns + 20_000_000:
            break
    guest.machine.run(50 * ITERATION)
    report = guest.machine.report()
    gap = report.longest_gap(stopped_ns, stopped_ns + 20_000_000)
    assert gap is not None
    assert gap.length_ns >= 20_000_000
    assert gap.start_ns <= stopped_ns < gap.end_ns
    vcpu = report.vcpus[0]
    assert vcpu.max_gap_ns >= gap.length_ns
    assert vcpu.clock_backwards == 0


def test_builtin_is_also_there_by_name() -> None:
    guest = Guest(BareRam(RAM_BYTES), append="pages=4", kernel=Path("builtin"))
    guest.machine.run(40 * ITERATION)
    assert guest.machine.report().sequence > 0


def test_ram_above_the_pc_hole_is_stamped() -> None:
    """A stride of 100 000 pages, as if there were that many vCPUs, crosses the hole in one pass."""
    stride = 100_000
    ram = BareRam(4200 * MIB)
    guest = Guest(ram, append="heartbeat_ms=0")
    ram.write(BOOT_INFO_ADDRESS + BOOT_INFO_VCPUS_OFFSET, struct.pack("<I", stride))
    guest.machine.run(200 * ITERATION)
    vcpu = parse_slot(ram.read(REPORT_ADDRESS, SLOT_SIZE_BYTES), 0)
    assert vcpu.working_pages == (ram.size_bytes - WORK_START) // 4096
    assert vcpu.errors == 0
    assert vcpu.pass_number > 3
    addresses = []
    for index in range(0, vcpu.working_pages, stride):
        address = page_address(index, ram.size_bytes)
        addresses.append(address)
        pass_number, stamp = struct.unpack("<QQ", ram.read(address, 16))
        assert pass_number in (vcpu.pass_number, vcpu.pass_number - 1)
        assert stamp == index ^ STAMP_MAGIC ^ pass_number
    assert addresses[0] < PC_HOLE_START < PC_HOLE_END <= addresses[-1]


def test_more_vcpus_than_pages_leaves_the_last_ones_without_work() -> None:
    ram = BareRam(RAM_BYTES)
    plan = plan_boot(VmmConfig(memory_size_bytes=RAM_BYTES, vcpu_count=2, append="pages=1"))
    bus = SystemBus()
    bus.attach(Clock(2))
    plan.write_to(ram)
    idle = BareMachine(ram, bus, plan, vcpu=1)
    idle.run(100 * ITERATION)
    busy = BareMachine(ram, bus, plan, vcpu=0)
    busy.run(100 * ITERATION)
    report = busy.report(vcpu_count=2)
    assert report.vcpus[1].sequence == 0
    assert report.vcpus[0].sequence > 0
    assert sequence_problems(report) + verify_stamps(ram.read, report, RAM_BYTES) == []


def test_two_vcpus_share_the_pages_without_meeting() -> None:
    ram = BareRam(RAM_BYTES)
    plan = plan_boot(VmmConfig(memory_size_bytes=RAM_BYTES, vcpu_count=2, append="pages=33"))
    bus = SystemBus()
    bus.attach(Clock(2))
    plan.write_to(ram)
    machines = [BareMachine(ram, bus, plan, vcpu=index) for index in range(2)]
    for instructions in (9_001, 2_003, 3, 11_007, 501):
        for machine in machines:
            machine.run(instructions)
    report = machines[0].report(vcpu_count=2)
    assert [vcpu.vcpu for vcpu in report.vcpus] == [0, 1]
    assert report.errors == 0
    assert all(vcpu.pass_number >= 2 for vcpu in report.vcpus)
    assert sequence_problems(report) + verify_stamps(ram.read, report, RAM_BYTES) == []
