"""One example of every kind of section, with no field at its default and none of them zero."""

from __future__ import annotations

from collections.abc import Mapping

from cpr.vmstate import VmState
from tests.unit.accel.test_x86_section import cpu
from vmm.accel.kvm.chips import ClockState as KvmClockState
from vmm.accel.kvm.chips import IrqchipState, PitState
from vmm.accel.x86_section import CpuSection
from vmm.devices.acpi_sleep import AcpiSleepState
from vmm.devices.clock import ClockState
from vmm.devices.debug_console import DebugConsoleState
from vmm.devices.debug_exit import DebugExitState
from vmm.devices.keyboard_controller import KeyboardControllerState
from vmm.devices.pc_ports import PcPortsState
from vmm.devices.rtc import RtcState
from vmm.devices.serial_state import SerialState
from vmm.devices.virtio.blk_state import BlkState
from vmm.devices.virtio.console import ConsoleState
from vmm.devices.virtio.net_state import NetState, RxFilter
from vmm.devices.virtio.rng import RngState
from vmm.devices.virtio.virtio_state import QueueState, TransportState

_QUEUE = QueueState(
    size=256,
    ready=True,
    desc_addr=0x10_0000,
    driver_addr=0x10_1000,
    device_addr=0x10_2000,
    next_avail=7,
    next_used=6,
    signalled_used=5,
)
_TRANSPORT = TransportState(
    device_features_sel=1,
    driver_features_sel=1,
    queue_sel=1,
    driver_features=1 << 32 | 0x20,
    status=0x0F,
    interrupt_status=1,
    config_generation=3,
    queues=(_QUEUE,),
)
_STATES: tuple[VmState, ...] = (
    CpuSection.of(cpu()),
    IrqchipState(pic_master=bytes(range(256)) * 2, pic_slave=b"\x01" * 512, ioapic=b"\x02" * 512),
    PitState(pit=bytes(range(112))),
    KvmClockState(clock_ns=123_456_789, host_ns=987_654_321),
    ClockState(latched_ns=(5, 6)),
    SerialState(
        ier=0x0F,
        fcr=0xC1,
        lcr=0x03,
        mcr=0x0B,
        msr_delta=0x09,
        scr=0x5A,
        divisor=12,
        overrun=True,
        thr_interrupt=True,
        rx_fifo=b"in",
        tx_fifo=b"out",
    ),
    DebugConsoleState(backlog=b"unwritten", dropped_bytes=3),
    DebugExitState(),
    PcPortsState(post_code=0x55, port_a=0x02),
    RtcState(index=0x0B, cmos=bytes(range(1, 129)), offset_s=-3600),
    KeyboardControllerState(pending_command=0xD1),
    AcpiSleepState(control=0x14),
    BlkState(transport=_TRANSPORT, capacity_sectors=2048),
    NetState(
        transport=_TRANSPORT,
        mac=bytes.fromhex("525400123456"),
        link_up=True,
        announce_pending=True,
        rx_filter=RxFilter(
            promiscuous=False,
            all_multicast=True,
            all_unicast=True,
            no_multicast=True,
            no_unicast=True,
            no_broadcast=True,
            unicast=(b"\x02" * 6,),
            multicast=(b"\x03" * 6,),
        ),
        held_frame=b"a frame",
    ),
    RngState(transport=_TRANSPORT),
    ConsoleState(transport=_TRANSPORT, backlog=b"out", unread=b"in", dropped_bytes=3),
)
STATES: Mapping[str, VmState] = {state.NAME: state for state in _STATES}
