from __future__ import annotations

from array import array
from collections.abc import Callable

import pytest

from vmm.accel.kvm import abi, state
from vmm.accel.kvm.state import VcpuBuffers
from vmm.errors import AccelError

ALL_FLAGS = 63


@pytest.fixture
def buffers() -> VcpuBuffers:
    return VcpuBuffers((0x10, 0x174, 0xC000_0081), abi.XSAVE_SIZE_BYTES)


def test_registers_written_to_the_kernel_structs_read_back_the_same(buffers: VcpuBuffers) -> None:
    state.write_xcr0(buffers, 7)
    state.write_mp_state(buffers, "halted")

    assert state.read_xcr0(buffers) == 7
    assert state.read_mp_state(buffers) == "halted"


def test_msr_values_are_set_in_list_order_and_moved_by_count(buffers: VcpuBuffers) -> None:
    buffers.msrs.set_values(array("Q", [1, 2**64 - 1]))
    buffers.msrs.set_count(2)

    assert buffers.msrs.values() == [1, 2**64 - 1, 0]
    assert abi.MSR_HEADER.unpack_from(buffers.msrs.data) == (2, 0)
    assert abi.MSR_ENTRY.unpack_from(buffers.msrs.data, 8 + 16) == (0x174, 0, 2**64 - 1)


def test_xsave_without_extended_components_is_cut_after_its_header(buffers: VcpuBuffers) -> None:
    area = bytes(range(256)) * 2 + (0b11).to_bytes(8, "little") + bytes(56)

    state.write_xsave(buffers, area)

    assert len(buffers.xsave.data) == abi.XSAVE_SIZE_BYTES
    assert state.read_xsave(buffers) == area


def test_xsave_with_avx_in_use_is_kept_to_its_last_byte(buffers: VcpuBuffers) -> None:
    area = bytes(512) + (0b111).to_bytes(8, "little") + bytes(56) + b"\xa5" * 256

    state.write_xsave(buffers, area + bytes(100))

    assert state.read_xsave(buffers) == area


@pytest.mark.parametrize("area", [b"", bytes(575), bytes(4096) + b"\x01"], ids=len)
def test_xsave_of_a_size_this_cpu_cannot_hold_is_refused(buffers: VcpuBuffers, area: bytes) -> None:
    with pytest.raises(AccelError, match=f"XSAVE area has {len(area)} bytes"):
        state.write_xsave(buffers, area)


@pytest.mark.parametrize(
    "events",
    [
        {},
        {"nmi_pending": 1, "nmi_masked": 1, "interrupt_shadow": 1},
        {"exception_injected": 1, "exception_nr": 14, "exception_has_error_code": 1}
        | {"exception_error_code": 2},
        {"exception_pending": 1, "exception_nr": 14, "exception_has_payload": 1}
        | {"exception_payload": 0xDEAD_B000},
        {"interrupt_injected": 1, "interrupt_nr": 0x30, "interrupt_soft": 1},
        {"triple_fault_pending": 1, "smi_latched_init": 1},
    ],
    ids=lambda events: "+".join(events) or "none",
)
def test_events_survive_the_way_through_the_kernel_struct(
    buffers: VcpuBuffers, events: dict[str, int]
) -> None:
    state.write_events(buffers, events, ALL_FLAGS)

    assert state.read_events(buffers) == events
    assert state.read_event_flags(buffers) == ALL_FLAGS


def test_vector_of_an_event_that_is_over_is_not_state(buffers: VcpuBuffers) -> None:
    over = {"exception_nr": 14, "exception_error_code": 2, "interrupt_nr": 0x30}
    state.write_events(buffers, over, ALL_FLAGS)

    assert state.read_events(buffers) == {}


def test_event_that_this_kernel_cannot_take_is_refused_by_name(buffers: VcpuBuffers) -> None:
    with pytest.raises(AccelError, match="triple_fault_pending"):
        state.write_events(buffers, {"triple_fault_pending": 1}, abi.EVENT_VALID_NMI_PENDING)


def test_unknown_event_is_refused_by_name(buffers: VcpuBuffers) -> None:
    with pytest.raises(AccelError, match="machine_check_pending"):
        state.write_events(buffers, {"machine_check_pending": 1}, ALL_FLAGS)


def test_mp_state_of_another_architecture_is_refused(buffers: VcpuBuffers) -> None:
    with pytest.raises(AccelError, match="'stopped' is not one of"):
        state.write_mp_state(buffers, "stopped")
    abi.MP_STATE.pack_into(buffers.mp_state.data, 0, 9)
    with pytest.raises(AccelError, match="MP state 9"):
        state.read_mp_state(buffers)


@pytest.mark.parametrize(
    ("write", "named"),
    [
        (lambda to: state.write_xcr0(to, -1), "xcr0=-1"),
        (lambda to: state.write_events(to, {"nmi_pending": 256}, ALL_FLAGS), "nmi_pending=256"),
    ],
)
def test_register_that_is_missing_or_does_not_fit_is_named(
    buffers: VcpuBuffers, write: Callable[[VcpuBuffers], None], named: str
) -> None:
    with pytest.raises(AccelError, match=named):
        write(buffers)
