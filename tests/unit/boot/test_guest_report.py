from __future__ import annotations

import struct

import pytest

from vmm.boot.guest.report import (
    GAP_CHECK_MAGIC,
    REPORT_MAGIC,
    SLOT_SIZE_BYTES,
    WORK_START,
    Gap,
    GuestReport,
    page_address,
    parse,
    parse_slot,
    report_size_bytes,
    sequence_problems,
    verify_stamps,
)
from vmm.errors import BootError

MIB = 1 << 20


def _slot(
    *, vcpu: int = 0, vcpus: int = 1, pages: int = 8, passed: int = 1, next_page: int = 0,
    sequence: int = 0, boots: int = 1, gaps: tuple[tuple[int, int, int, int], ...] = (),
) -> bytes:  # fmt: skip
    header = (
        *(REPORT_MAGIC, vcpu, vcpus, pages, 0, passed << 32 | next_page, sequence),
        *(1, 900, 100, 50, 600, 7, 0, 0, 0, 3, boots),
    )
    entries = b"".join(struct.pack("<4Q", *gap) for gap in gaps)
    return struct.pack("<18Q", *header).ljust(0x2000, b"\0") + entries.ljust(0x2000, b"\0")


def _gap(start: int, end: int, sequence: int) -> tuple[int, int, int, int]:
    return start, end, sequence, start ^ end ^ sequence ^ GAP_CHECK_MAGIC


def test_every_vcpu_slot_is_parsed() -> None:
    data = _slot(vcpus=2, next_page=2, sequence=1) + _slot(vcpu=1, vcpus=2, next_page=1)
    report = parse(data)
    assert len(data) == report_size_bytes(2)
    assert [vcpu.vcpu for vcpu in report.vcpus] == [0, 1]
    assert report.sequence == 1
    assert report.errors == 0
    assert report.working_pages == 8


def test_no_magic_says_that_the_guest_has_not_started() -> None:
    with pytest.raises(BootError, match="has not started yet"):
        parse(bytes(SLOT_SIZE_BYTES))


def test_too_little_data_says_how_much_is_needed() -> None:
    with pytest.raises(BootError, match="expected at least 32768 bytes for vCPU 1"):
        parse(_slot(vcpus=2))


def test_gap_entries_come_in_time_order_and_half_written_ones_are_left_out() -> None:
    torn = (500, 700, 9, 0)
    vcpu = parse_slot(_slot(gaps=(_gap(300, 420, 5), torn, _gap(100, 150, 2))), 0)
    assert vcpu.gaps == (Gap(100, 150, 2), Gap(300, 420, 5))


def test_longest_gap_counts_only_what_overlaps_the_window() -> None:
    report = parse(_slot(gaps=(_gap(100, 900, 1), _gap(1000, 1100, 2), _gap(1200, 1250, 3))))
    assert report.longest_gap(950, 2000) == Gap(1000, 1100, 2)
    assert report.longest_gap(900, 2000) == Gap(100, 900, 1)
    assert report.longest_gap(1300, 2000) is None


def test_longest_gap_of_several_vcpus_is_the_longest_of_any() -> None:
    data = _slot(vcpus=2, gaps=(_gap(10, 20, 1),)) + _slot(vcpu=1, vcpus=2, gaps=(_gap(10, 40, 1),))
    assert parse(data).longest_gap(0, 100) == Gap(10, 40, 1)


@pytest.mark.parametrize("sequence", [18, 19])
def test_sequence_may_be_one_behind_progress(sequence: int) -> None:
    assert sequence_problems(parse(_slot(passed=3, next_page=3, sequence=sequence))) == []


@pytest.mark.parametrize("sequence", [0, 17, 20])
def test_lost_or_repeated_iterations_show_in_the_sequence(sequence: int) -> None:
    (problem,) = sequence_problems(parse(_slot(passed=3, next_page=3, sequence=sequence)))
    assert f"19 pages stamped (pass 3, next page 3) but sequence is {sequence}" in problem


class _Ram:
    """Sparse pages of two words."""

    def __init__(self, ram_bytes: int) -> None:
        self.ram_bytes = ram_bytes
        self.pages: dict[int, tuple[int, int]] = {}

    def stamp(self, index: int, passed: int) -> None:
        key = index ^ 0x5AFE_C0DE_9E37_79B9 ^ passed
        self.pages[page_address(index, self.ram_bytes)] = (passed, key)

    def read(self, gpa: int, size: int) -> bytes:
        data = bytearray(size)
        for address in range(gpa, gpa + size, 4096):
            struct.pack_into("<2Q", data, address - gpa, *self.pages.get(address, (0, 0)))
        return bytes(data)


def _report(**fields: int) -> GuestReport:
    return parse(_slot(**fields))  # type: ignore[arg-type]


def test_stamps_on_both_sides_of_the_pc_hole_are_verified() -> None:
    ram_bytes = (3 << 30) + MIB
    ram = _Ram(ram_bytes)
    pages = (ram_bytes - WORK_START) // 4096
    assert page_address(pages - 256, ram_bytes) == 1 << 32
    last = pages - 1
    for index in (*range(10), last):
        ram.stamp(index, 1)
    problems = verify_stamps(ram.read, _report(pages=pages, next_page=10), ram_bytes)
    assert [problem.split(":")[0] for problem in problems] == [
        f"page {last} at {(1 << 32) + 0xFF000:#x}"
    ]


@pytest.mark.parametrize(("word", "value"), [(0, 1), (0, 3), (1, 12345)])
@pytest.mark.parametrize("index", [2, 6])
def test_a_wrong_word_before_or_after_next_is_found(index: int, word: int, value: int) -> None:
    ram = _Ram(4 * MIB)
    for page in range(8):
        ram.stamp(page, 2 if page < 4 else 1)
    report = _report(passed=2, next_page=4)
    assert verify_stamps(ram.read, report, 4 * MIB) == []
    address = page_address(index, 4 * MIB)
    words = list(ram.pages[address])
    if words[word] == value:
        value += 1
    words[word] = value
    ram.pages[address] = (words[0], words[1])
    (problem,) = verify_stamps(ram.read, report, 4 * MIB)
    assert problem.startswith(f"page {index} at {address:#x}")


def test_the_page_being_stamped_may_be_half_way_but_not_anything() -> None:
    ram = _Ram(4 * MIB)
    for page in range(8):
        ram.stamp(page, 2 if page < 4 else 1)
    address = page_address(4, 4 * MIB)
    ram.pages[address] = (2, ram.pages[address][1])
    report = _report(passed=2, next_page=4)
    assert verify_stamps(ram.read, report, 4 * MIB) == []
    ram.pages[address] = (9, ram.pages[address][1])
    assert len(verify_stamps(ram.read, report, 4 * MIB)) == 1


def test_untouched_memory_must_be_zero_after_a_cold_boot_and_may_be_anything_after_a_reset() -> (
    None
):
    ram = _Ram(4 * MIB)
    ram.stamp(0, 1)
    ram.stamp(5, 77)
    assert len(verify_stamps(ram.read, _report(next_page=1), 4 * MIB)) == 1
    assert verify_stamps(ram.read, _report(next_page=1, boots=2), 4 * MIB) == []


def test_a_broken_run_lists_a_bounded_number_of_problems() -> None:
    report = _report(pages=500, passed=3, next_page=100)
    assert len(verify_stamps(_Ram(4 * MIB).read, report, 4 * MIB)) == 20
