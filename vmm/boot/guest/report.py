"""What the built-in guest says about itself, read from its RAM.

The guest (guest.c) writes one report slot per vCPU at a fixed guest-physical address, so a tool
that maps the RAM memfd can read it while the guest runs, while it is stopped and after any number
of updates, without asking the guest or changing a byte.

Slot (16 KiB, `layout.h` has the same numbers; every field a little-endian u64):

    0x00 magic          0x28 progress             0x50 longest gap: ns     0x78 first bad address
    0x08 vCPU index     0x30 sequence             0x58 ... ended at, ns    0x80 heartbeats
    0x10 vCPU count     0x38 first pass           0x60 ... at sequence     0x88 boots
    0x18 working pages  0x40 last clock, ns       0x68 clock went backwards
    0x20 RAM not mapped 0x48 first clock, ns      0x70 errors
    0x2000 256 gap entries of 32 bytes: start ns, end ns, sequence, check

`progress` is (pass << 32 | next page), one store, so the two are never seen apart. One iteration:
read the clock, note the gap, stamp one page, store progress, store sequence. From that follow two
laws that no repeated, lost or mixed-up execution can keep (`sequence_problems`, `verify_stamps`).

Reading while the guest runs: each field is one aligned 8-byte store, so it is never torn, but two
fields may be one iteration apart. A gap entry is four stores; its check word is the exclusive-or of
the other three and a constant, and an entry that is being written (check does not match) is left
out: read again if it matters. Entry k holds the longest gap that ended while bits 25.. of the
clock, modulo 256, were k: the longest gap of each 33.5 ms of the last 8.6 s is always there.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from guestram.layout import PAGE_SIZE_BYTES, PC_HOLE_END, PC_HOLE_START
from vmm.errors import BootError

REPORT_ADDRESS = 0x18_0000
SLOT_SIZE_BYTES = 0x4000
MAX_VCPUS = 32
WORK_START = 0x20_0000  # the working set is all RAM from here on; below are image, tables, report
GAP_BUCKET_SHIFT = 25
GAP_ENTRIES = 256

REPORT_MAGIC = int.from_bytes(b"CPRGUES1", "little")
STAMP_MAGIC = 0x5AFE_C0DE_9E37_79B9
GAP_CHECK_MAGIC = 0x6A70_CAFE_0F0F_A5A5

_HEADER = struct.Struct("=18Q")  # native: one 8-byte load each
_GAP = struct.Struct("=4Q")
_GAPS_OFFSET = 0x2000
_PASS_SHIFT = 32
_NEXT_MASK = (1 << _PASS_SHIFT) - 1
_PAGE_WORDS = PAGE_SIZE_BYTES // 8
_VERIFY_CHUNK_PAGES = 1024  # 4 MiB at a time: large enough for speed, small beside any RAM
_PROBLEMS_MAX = 20  # a broken run has millions of bad pages; the first ones tell the story

ReadRam = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class Gap:
    """A time without progress: from one clock reading to the next of the same vCPU."""

    start_ns: int
    end_ns: int
    sequence: int  # of the iteration that came after the gap

    @property
    def length_ns(self) -> int:
        """How long the guest did nothing."""
        return self.end_ns - self.start_ns


@dataclass(frozen=True, slots=True)
class VcpuReport:
    """One slot. Times are the guest's clock, which is the host's CLOCK_MONOTONIC in ns."""

    vcpu: int
    vcpu_count: int
    working_pages: int  # of all vCPUs together; this one stamps pages vcpu, vcpu + vcpu_count, ...
    unmapped_bytes: int  # RAM beyond the identity map, which the guest does not touch
    pass_number: int
    next_page: int
    sequence: int  # iterations = pages stamped since boot
    first_pass: int  # 1, or one more than the last pass before a warm reset
    last_ns: int
    first_ns: int
    max_gap_ns: int
    max_gap_at_ns: int
    max_gap_sequence: int
    clock_backwards: int
    errors: int  # pages whose old stamp was not the previous pass
    first_bad_address: int
    heartbeats: int
    boots: int
    gaps: tuple[Gap, ...]  # in order of time

    def longest_gap(self, since_ns: int, until_ns: int) -> Gap | None:
        """The longest noted gap that overlaps [since_ns, until_ns]; None if nothing overlaps."""
        overlapping = [g for g in self.gaps if g.end_ns >= since_ns and g.start_ns <= until_ns]
        return max(overlapping, key=lambda gap: gap.length_ns, default=None)


@dataclass(frozen=True, slots=True)
class GuestReport:
    """Every vCPU's report."""

    vcpus: tuple[VcpuReport, ...]

    @property
    def sequence(self) -> int:
        """Iterations of all vCPUs together."""
        return sum(vcpu.sequence for vcpu in self.vcpus)

    @property
    def errors(self) -> int:
        """Wrong stamps and clock steps backwards, all vCPUs together; 0 in a healthy guest."""
        return sum(vcpu.errors + vcpu.clock_backwards for vcpu in self.vcpus)

    @property
    def working_pages(self) -> int:
        """Pages that the vCPUs stamp together."""
        return self.vcpus[0].working_pages

    def longest_gap(self, since_ns: int, until_ns: int) -> Gap | None:
        """The longest gap that any vCPU felt in a window."""
        gaps = [gap for vcpu in self.vcpus if (gap := vcpu.longest_gap(since_ns, until_ns))]
        return max(gaps, key=lambda gap: gap.length_ns, default=None)


def report_size_bytes(vcpu_count: int) -> int:
    """How much to read at REPORT_ADDRESS for `vcpu_count` vCPUs."""
    return vcpu_count * SLOT_SIZE_BYTES


def parse(data: bytes) -> GuestReport:
    """Decode what was read at REPORT_ADDRESS (`report_size_bytes` of it).

    Raises BootError when a vCPU has not started (no magic) or `data` is too short.
    """
    first = parse_slot(data, 0)
    return GuestReport((first, *(parse_slot(data, index) for index in range(1, first.vcpu_count))))


def parse_slot(data: bytes, vcpu: int) -> VcpuReport:
    """Decode one vCPU's slot of the report area; errors as `parse`."""
    start = vcpu * SLOT_SIZE_BYTES
    if len(data) < start + SLOT_SIZE_BYTES:
        raise BootError(
            f"guest report: expected at least {start + SLOT_SIZE_BYTES} bytes for vCPU {vcpu}, "
            f"got {len(data)}; read report_size_bytes(vcpu_count)"
        )
    words = _HEADER.unpack_from(data, start)
    if words[0] != REPORT_MAGIC or words[1] != vcpu:
        raise BootError(
            f"guest report: vCPU {vcpu} has no report (magic {words[0]:#x}); the built-in guest is "
            "not the guest here, or has not started yet"
        )
    return VcpuReport(
        vcpu=vcpu,
        vcpu_count=words[2],
        working_pages=words[3],
        unmapped_bytes=words[4],
        pass_number=words[5] >> _PASS_SHIFT,
        next_page=words[5] & _NEXT_MASK,
        sequence=words[6],
        first_pass=words[7],
        last_ns=words[8],
        first_ns=words[9],
        max_gap_ns=words[10],
        max_gap_at_ns=words[11],
        max_gap_sequence=words[12],
        clock_backwards=words[13],
        errors=words[14],
        first_bad_address=words[15],
        heartbeats=words[16],
        boots=words[17],
        gaps=tuple(sorted(_gaps(data, start + _GAPS_OFFSET), key=lambda gap: gap.end_ns)),
    )


def _gaps(data: bytes, offset: int) -> Iterator[Gap]:
    end = offset + GAP_ENTRIES * _GAP.size
    for start_ns, end_ns, sequence, check in _GAP.iter_unpack(data[offset:end]):
        if end_ns and start_ns ^ end_ns ^ sequence ^ check == GAP_CHECK_MAGIC:
            yield Gap(start_ns, end_ns, sequence)


def page_address(index: int, ram_bytes: int) -> int:
    """Guest-physical address of page `index` of the working set of a guest with `ram_bytes`."""
    address = WORK_START + index * PAGE_SIZE_BYTES
    ram_below_4g = min(ram_bytes, PC_HOLE_START)
    return address if address < ram_below_4g else address - ram_below_4g + PC_HOLE_END


def sequence_problems(report: GuestReport) -> list[str]:
    """Check that no iteration was lost or repeated: the sequence must match the pages stamped.

    The sequence is stored after progress, so it may be one behind. Meant for a stopped guest; on a
    running one read progress and sequence may be further apart.
    """
    problems = []
    for cpu in report.vcpus:
        own_pages = len(range(cpu.vcpu, cpu.working_pages, cpu.vcpu_count))
        in_this_pass = (cpu.next_page - cpu.vcpu) // cpu.vcpu_count
        stamped = (cpu.pass_number - cpu.first_pass) * own_pages + in_this_pass
        if stamped - cpu.sequence not in (0, 1):
            problems.append(
                f"vCPU {cpu.vcpu}: {stamped} pages stamped (pass {cpu.pass_number}, next page "
                f"{cpu.next_page}) but sequence is {cpu.sequence}"
            )
    return problems


def verify_stamps(read: ReadRam, report: GuestReport, ram_bytes: int) -> list[str]:
    """Check every page of the working set of a *stopped* guest; an empty list means all is right.

    Law, per vCPU: page i < next carries pass P, page i > next carries P - 1 (zeros for P = 1 of a
    cold boot; unspecified in the first pass after a warm reset), page `next` may be half-way.
    `read(gpa, size)` returns guest RAM; build it on `os.pread` of the memfd and not on a mapping if
    holes of a sparse memfd must stay holes. At most 20 problems are listed.
    """
    problems: list[str] = []
    for start in range(0, report.working_pages, _VERIFY_CHUNK_PAGES):
        count = min(_VERIFY_CHUNK_PAGES, report.working_pages - start)
        passes, stamps = _read_stamps(read, start, count, ram_bytes)
        for cpu in report.vcpus:
            _check_chunk(cpu, start, passes, stamps, ram_bytes, problems)
            if len(problems) >= _PROBLEMS_MAX:
                return problems[:_PROBLEMS_MAX]
    return problems


def _read_stamps(
    read: ReadRam, start: int, count: int, ram_bytes: int
) -> tuple[list[int], list[int]]:
    """First and second u64 of `count` pages; a chunk may lie on both sides of the PC hole."""
    below = max(
        0, min(count, (min(ram_bytes, PC_HOLE_START) - WORK_START) // PAGE_SIZE_BYTES - start)
    )
    passes: list[int] = []
    stamps: list[int] = []
    for first, pages in ((start, below), (start + below, count - below)):
        if pages:
            data = read(page_address(first, ram_bytes), pages * PAGE_SIZE_BYTES)
            words = memoryview(data).cast("Q")
            passes += words[0::_PAGE_WORDS].tolist()
            stamps += words[1::_PAGE_WORDS].tolist()
    return passes, stamps


def _check_chunk(
    cpu: VcpuReport,
    start: int,
    passes: list[int],
    stamps: list[int],
    ram_bytes: int,
    problems: list[str],
) -> None:
    offset = (cpu.vcpu - start) % cpu.vcpu_count  # this vCPU's first page in the chunk
    own = slice(offset, None, cpu.vcpu_count)
    if _all_as_expected(cpu, start + offset, passes[own], stamps[own]):
        return
    for position in range(offset, len(passes), cpu.vcpu_count):
        index = start + position
        old, new = _stamp(index, cpu.pass_number - 1), _stamp(index, cpu.pass_number)
        found = (passes[position], stamps[position])
        if index < cpu.next_page:
            right = found == new
        elif cpu.pass_number == cpu.first_pass and cpu.boots > 1:
            right = True
        elif index > cpu.next_page:
            right = found == old
        else:
            right = found[0] in (old[0], new[0]) and found[1] in (old[1], new[1])
        if not right:
            expected = new if index < cpu.next_page else old
            problems.append(
                f"page {index} at {page_address(index, ram_bytes):#x}: expected pass {expected[0]} "
                f"stamp {expected[1]:#x}, found pass {found[0]} stamp {found[1]:#x} (vCPU "
                f"{cpu.vcpu}, pass {cpu.pass_number}, next page {cpu.next_page})"
            )


def _all_as_expected(cpu: VcpuReport, first: int, passes: list[int], stamps: list[int]) -> bool:
    """The fast path of a chunk: everything is exactly as expected, whole lists compared at once."""
    step, new = cpu.vcpu_count, cpu.pass_number
    indexes = range(first, first + len(passes) * step, step)
    done = min(len(range(first, cpu.next_page, step)), len(passes))
    new_key, old_key = STAMP_MAGIC ^ new, STAMP_MAGIC ^ (new - 1)
    done_stamps = [index ^ new_key for index in indexes[:done]]
    if new == cpu.first_pass and cpu.boots > 1:  # what is not done is unspecified
        return passes[:done] == [new] * done and stamps[:done] == done_stamps
    left = len(passes) - done
    left_stamps = [0] * left if new == 1 else [index ^ old_key for index in indexes[done:]]
    return passes == [new] * done + [new - 1] * left and stamps == done_stamps + left_stamps


def _stamp(index: int, pass_number: int) -> tuple[int, int]:
    """Both words of a page; pass 0 is memory that nobody has written."""
    if pass_number == 0:
        return 0, 0
    return pass_number, index ^ STAMP_MAGIC ^ pass_number
