"""Exits as the kernel writes them into the run page, including those that this host never gives."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest

from tests.contract.accel_contract import RecordingBus
from vmm.accel.base import StopReason
from vmm.accel.kvm import abi
from vmm.accel.kvm.exits import RunPage, serve_io, serve_mmio, stop_of

PAGE_SIZE_BYTES = 3 * 4096
DATA_OFFSET = 4096  # where KVM puts port data


@pytest.fixture
def page() -> Iterator[RunPage]:
    fd = os.memfd_create("run-page", os.MFD_CLOEXEC)
    os.ftruncate(fd, PAGE_SIZE_BYTES)
    made = RunPage(fd, PAGE_SIZE_BYTES)
    os.close(fd)
    yield made
    made.close()


def set_io(page: RunPage, *, is_write: bool, size: int, port: int, count: int) -> None:
    struct.pack_into(
        "<BBHIQ", page.u8, abi.RUN_UNION, int(is_write), size, port, count, DATA_OFFSET
    )


def set_mmio(page: RunPage, address: int, length: int, data: bytes | None) -> None:
    is_write = data is not None
    struct.pack_into("<Q8sIB", page.u8, abi.RUN_UNION, address, data or b"", length, is_write)


def set_exit(page: RunPage, reason: int, layout: str = "", *fields: int | bytes) -> None:
    page.u32[abi.RUN_EXIT_REASON_U32] = reason
    struct.pack_into("<" + layout, page.u8, abi.RUN_UNION, *fields)


@pytest.mark.parametrize(
    ("size", "values"),
    [(1, [1, 0x80, 0xFF]), (2, [0x1234, 0xFFFF, 0]), (4, [0x1234_5678, 0xFFFF_FFFF, 1])],
)
def test_string_output_gives_every_element_in_order(
    page: RunPage, size: int, values: list[int]
) -> None:
    set_io(page, is_write=True, size=size, port=0x3F8, count=len(values))
    data = b"".join(value.to_bytes(size, "little") for value in values)
    page.u8[DATA_OFFSET : DATA_OFFSET + len(data)] = data
    bus = RecordingBus()

    serve_io(page, bus)

    assert bus.log == [("out", 0x3F8, size, value) for value in values]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_string_input_fills_every_element(page: RunPage, size: int) -> None:
    set_io(page, is_write=False, size=size, port=0x60, count=3)
    value = 0x1122_3344 & (1 << 8 * size) - 1
    bus = RecordingBus({("in", 0x60): value})

    serve_io(page, bus)

    expected = value.to_bytes(size, "little") * 3
    assert bytes(page.u8[DATA_OFFSET : DATA_OFFSET + len(expected) + 1]) == expected + b"\0"


def test_device_that_answers_with_too_many_bits_is_cut_to_the_access(page: RunPage) -> None:
    set_io(page, is_write=False, size=1, port=0x60, count=1)

    class Wide(RecordingBus):
        def pio_read(self, port: int, size: int) -> int:
            return -1

    serve_io(page, Wide())

    assert bytes(page.u8[DATA_OFFSET : DATA_OFFSET + 2]) == b"\xff\0"


def test_mmio_write_of_odd_length_is_cut_into_powers_of_two(page: RunPage) -> None:
    set_mmio(page, 0xD000_0000, 7, bytes(range(1, 8)))
    bus = RecordingBus()

    serve_mmio(page, bus)

    assert bus.log == [
        ("store", 0xD000_0000, 4, 0x0403_0201),
        ("store", 0xD000_0004, 2, 0x0605),
        ("store", 0xD000_0006, 1, 0x07),
    ]


def test_mmio_read_of_odd_length_is_put_together_from_its_parts(page: RunPage) -> None:
    set_mmio(page, 0xD000_0000, 3, None)
    bus = RecordingBus({("load", 0xD000_0000): 0xBBAA, ("load", 0xD000_0002): 0xCC})

    serve_mmio(page, bus)

    assert bytes(page.u8[abi.RUN_UNION + 8 : abi.RUN_UNION + 12]) == b"\xaa\xbb\xcc\0"


@pytest.mark.parametrize(
    "reason", [abi.EXIT_IRQ_WINDOW_OPEN, abi.EXIT_INTR, abi.EXIT_SET_TPR], ids=str
)
def test_exit_that_asks_for_nothing_lets_the_guest_go_on(page: RunPage, reason: int) -> None:
    set_exit(page, reason)
    assert stop_of(page) is None


@pytest.mark.parametrize(
    ("reason", "layout", "fields", "expected", "detail"),
    [
        (abi.EXIT_HLT, "", (), StopReason.HALTED, ""),
        (abi.EXIT_SHUTDOWN, "", (), StopReason.SHUTDOWN, "triple fault"),
        (abi.EXIT_SYSTEM_EVENT, "II", (2, 0), StopReason.SHUTDOWN, "system event 2"),
        (abi.EXIT_SYSTEM_EVENT, "II", (99, 0), StopReason.ERROR, "unknown system event 99"),
        (abi.EXIT_FAIL_ENTRY, "QI", (0x8000_0021, 3), StopReason.ERROR, "0x80000021 on host CPU 3"),
        (
            abi.EXIT_INTERNAL_ERROR,
            "IIQB15s",
            (1, 4, 1, 3, b"\x0f\xae\x38"),
            StopReason.ERROR,
            "Suberror: 1 (emulation failure), instruction bytes 0f ae 38",
        ),
        (abi.EXIT_INTERNAL_ERROR, "IIQ", (1, 0, 0), StopReason.ERROR, "(emulation failure)"),
        (abi.EXIT_INTERNAL_ERROR, "IIQ", (3, 0, 0), StopReason.ERROR, "Suberror: 3"),
        (77, "", (), StopReason.ERROR, "unknown exit reason 77"),
    ],
)
def test_exit_that_ends_the_run_says_why(
    page: RunPage,
    reason: int,
    layout: str,
    fields: tuple[int | bytes, ...],
    expected: StopReason,
    detail: str,
) -> None:
    set_exit(page, reason, layout, *fields)

    stop = stop_of(page)

    assert stop is not None
    assert stop.reason is expected
    assert detail in stop.detail
