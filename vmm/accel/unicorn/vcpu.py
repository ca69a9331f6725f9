"""The one vCPU: guest code in slices, with exact stops between them."""

from __future__ import annotations

import ctypes

from vmm.accel.base import IoBus, StopReason, VcpuStop
from vmm.accel.unicorn import layout, library
from vmm.accel.unicorn.engine import PRIVATE_PAGE, Engine
from vmm.accel.unicorn.hosttsc import HostTsc
from vmm.accel.unicorn.layout import Layout
from vmm.accel.unicorn.mmio import WideAccesses
from vmm.accel.unicorn.registers import RIP_ID
from vmm.accel.unicorn.snapshot import Snapshots
from vmm.accel.unicorn.state import reset_state
from vmm.accel.x86_section import CpuSection
from vmm.accel.x86_state import CpuState

# A kick ends the slice under way, unless it falls into the microsecond in which one is being
# started: then it waits for this many instructions, which take 30 to 120 us.
SLICE_INSTRUCTIONS = 5000

# nop; in al, 0x80; out 0x80, al; hlt - what a first entry needs warm, hooks included.
_REHEARSAL_CODE = b"\x90\xe4\x80\xe6\x80\xf4"
_REHEARSAL_OFFSET = 0

_KICKED = VcpuStop(StopReason.KICKED)
_HALTED = VcpuStop(StopReason.HALTED)
_INVALID_OPCODE, _DOUBLE_FAULT, _GENERAL_PROTECTION = 6, 8, 13
_CR0_PE, _EFER_LMA = 1 << 0, 1 << 10
_U64 = 2**64
_ALL_ONES = _U64 - 1


class UnicornVcpu:
    """Implements `vmm.accel.base.Vcpu`."""

    index = 0

    def __init__(self, engine: Engine, where: Layout, host_tsc: HostTsc) -> None:
        self._engine = engine
        self._snapshots = Snapshots(engine, where, host_tsc)
        self._limit = ctypes.c_uint64.from_address(engine.handle + where.limit)
        self._stop_requested = ctypes.c_bool.from_address(engine.handle + where.stop_requested)
        executed = ctypes.c_uint64.from_address(engine.handle + where.counter)
        self._wide = WideAccesses(engine, executed, self._snapshots.is_64_bit_code)
        self._rip = ctypes.c_uint64()
        self._rip_pointer = ctypes.addressof(self._rip)
        self._next_rip = 0  # where the guest goes on
        self._halted = False
        self._kicked = False
        self._bus: IoBus = InertBus()
        self._bus_error: BaseException | None = None  # what a device raised in a callback
        self._exception: int | None = None  # vector of the guest's exception
        engine.write_private_page(_REHEARSAL_OFFSET, _REHEARSAL_CODE)
        engine.hook_ports(self._port_read, self._port_write)
        engine.hook_exceptions(self._guest_exception)
        host_ns, tsc = host_tsc.read()
        self.load(reset_state(host_ns, -tsc % _U64))

    # ---- control --------------------------------------------------------------------------------

    def run(self, bus: IoBus) -> VcpuStop:
        """See Vcpu.run. Raises what a device's access raised."""
        if self._kicked:
            return _KICKED
        self._bus = bus
        self._halted = False
        engine, stop_requested, rip = self._engine, self._stop_requested, self._rip
        handle, rip_pointer = engine.handle, self._rip_pointer
        emu_start, reg_read = engine.library.emu_start, engine.library.reg_read
        while True:
            error = emu_start(handle, self._next_rip, 0, 0, SLICE_INSTRUCTIONS)
            reg_read(handle, RIP_ID, rip_pointer)
            self._next_rip = rip.value
            if error or self._exception is not None or self._bus_error is not None:
                return self._failed(error)
            if not stop_requested.value:  # neither the limit nor an exception: it was hlt
                self._halted = True
                return _HALTED
            if self._kicked:
                return _KICKED

    def kick(self) -> None:
        """See Vcpu.kick: the slice under way is the last, and has reached its limit now.

        A guest that has just executed hlt is HALTED all the same; the next run is KICKED.
        """
        self._kicked = True
        self._limit.value = 0

    def clear_kick(self) -> None:
        """See Vcpu.clear_kick."""
        self._kicked = False

    def capture(self) -> CpuSection:
        """See Vcpu.capture."""
        return CpuSection.of(self.save())

    def restore(self, saved: CpuSection) -> None:
        """See Vcpu.restore."""
        self.load(saved.state())

    def save(self) -> CpuState:
        """See Vcpu.save; after hlt the MP state is "halted", and another run goes on behind it."""
        return self._snapshots.save(rip=self._next_rip, halted=self._halted)

    def load(self, state: CpuState) -> None:
        """See Vcpu.load."""
        self._snapshots.load(state)
        self._next_rip = state.general["rip"]
        self._halted = state.mp_state == "halted"

    def rehearse(self) -> None:
        """See Vcpu.rehearse."""
        self._engine.make_pristine()
        self._next_rip = PRIVATE_PAGE + _REHEARSAL_OFFSET
        self.run(InertBus())

    def detach(self) -> None:
        """The engine is about to go: a late kick must not write to what was its memory."""
        self._limit = ctypes.c_uint64()

    # ---- called by the engine; ctypes would print and drop an exception, so `run` raises it ------

    def mmio_read(self, addr: int, size: int) -> int:
        """The guest reads what is not RAM."""
        value = _ALL_ONES
        try:
            value = self._wide.read(self._bus, addr, size)
        except BaseException as error:
            self._bus_error = error
        self._end_access()
        return value

    def mmio_write(self, addr: int, size: int, value: int) -> None:
        """The guest writes what is not RAM."""
        try:
            self._wide.write(self._bus, addr, size, value)
        except BaseException as error:
            self._bus_error = error
        self._end_access()

    def _port_read(self, port: int, size: int) -> int:
        value = _ALL_ONES
        try:
            value = self._bus.pio_read(port, size)
        except BaseException as error:
            self._bus_error = error
        self._end_access()
        return value

    def _port_write(self, port: int, size: int, value: int) -> None:
        try:
            self._bus.pio_write(port, size, value)
        except BaseException as error:
            self._bus_error = error
        self._end_access()

    def _end_access(self) -> None:
        """Let the slice end before the next instruction, if it must, as if it had run its count.

        (Asking the engine to stop here would repeat the access that is under way.)
        """
        if self._kicked or self._bus_error is not None:
            self._limit.value = 0

    def _guest_exception(self, vector: int) -> None:
        self._exception = vector
        self._engine.stop()

    # ---- what else ends a slice -----------------------------------------------------------------

    def _failed(self, error: int) -> VcpuStop:
        bus_error, self._bus_error = self._bus_error, None
        vector, self._exception = self._exception, None
        if bus_error is not None:
            raise bus_error
        if error == library.ERROR_INVALID_INSTRUCTION:
            vector = _INVALID_OPCODE
        self._snapshots.forget_exception()
        if vector is None:
            text = self._engine.library.error_text(error)
            return VcpuStop(StopReason.ERROR, f"unicorn: {text} at rip {self._next_rip:#x}")
        return self._undeliverable(vector)

    def _undeliverable(self, vector: int) -> VcpuStop:
        """Without an IDT entry for it and for the faults that follow it is a triple fault."""
        block = self._snapshots.segment_block()
        cr0, cr2, idt_limit = block[36], block[38], block[35]
        detail = f"exception {vector} at rip {self._next_rip:#x}, cr2 {cr2:#x}"
        long_mode = self._snapshots.u64(layout.EFER) & _EFER_LMA
        entry_bytes = 16 if long_mode else 8 if cr0 & _CR0_PE else 4
        chain = (vector, _GENERAL_PROTECTION, _DOUBLE_FAULT)
        if all((number + 1) * entry_bytes - 1 > idt_limit for number in chain):
            return VcpuStop(StopReason.SHUTDOWN, f"triple fault: {detail}, no IDT entry")
        return VcpuStop(
            StopReason.ERROR, f"guest {detail}: unicorn does not deliver exceptions; use -accel kvm"
        )


class InertBus:
    """The bus of a machine without devices: reads give all ones, writes are dropped."""

    def pio_read(self, port: int, size: int) -> int:
        """All ones."""
        return (1 << 8 * size) - 1

    def pio_write(self, port: int, size: int, value: int) -> None:
        """Dropped."""

    def mmio_read(self, addr: int, size: int) -> int:
        """All ones."""
        return (1 << 8 * size) - 1

    def mmio_write(self, addr: int, size: int, value: int) -> None:
        """Dropped."""
