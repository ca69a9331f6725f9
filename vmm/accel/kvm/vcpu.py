"""One KVM vCPU: run it, kick it out of the kernel, read and replace its state.

A kick is two things: `immediate_exit` in the shared page, which makes KVM_RUN return EINTR once it
has completed the pending device access, and a signal, which brings a thread that is already inside
KVM_RUN back to that test. Whichever side of KVM_RUN the thread is on, it leaves with exact state.
The signal's handler is installed by the process (`vmm.accel.kick.install_kick_handler`).
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from array import array
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

from vmm.accel.base import IoBus, StopReason, VcpuStop
from vmm.accel.kick import KICK_SIGNAL
from vmm.accel.kvm import abi, state
from vmm.accel.kvm.exits import RunPage, serve_io, serve_mmio, stop_of
from vmm.accel.kvm.ioctl import (
    Buffer,
    blocking_ioctl,
    get_errno,
    os_refusal,
    state_ioctl,
)
from vmm.accel.kvm.msrs import NOT_MSR_STATE, name_of
from vmm.accel.kvm.rehearsal import RehearsalCode
from vmm.accel.kvm.tsc import MSR_TSC, VcpuTsc
from vmm.accel.tsc import TscReading
from vmm.accel.x86_section import CpuSection
from vmm.accel.x86_state import CpuState
from vmm.errors import AccelError

_KICKED = VcpuStop(StopReason.KICKED)

# A string instruction may have this many elements in 16-bit code; more is a guest gone mad.
_MAX_UNSERVED_ACCESSES = 1 << 16


@dataclass(frozen=True, slots=True)
class VcpuContext:
    """What a vCPU needs to know of its VM."""

    run_page_size_bytes: int
    xsave_size_bytes: int
    has_xsave2: bool
    has_lapic: bool
    msr_indices: tuple[int, ...]
    tsc: TscReading
    rehearsal_memory: Callable[[], AbstractContextManager[RehearsalCode]]


class KvmVcpu:
    """Owns the vCPU's fd and run page."""

    def __init__(self, fd: int, index: int, context: VcpuContext) -> None:
        self.index = index
        self._fd = fd
        self._context = context
        self._runner_lock = threading.Lock()
        self._runner: int | None = None  # ident of the thread that is inside run()
        # The TSC is read in one call with the MSRs, but it is not set with them.
        self._msr_indices = context.msr_indices
        self._packed_indices = array("I", context.msr_indices).tobytes()
        self._buffers = state.VcpuBuffers((*context.msr_indices, MSR_TSC), context.xsave_size_bytes)
        self._tsc = VcpuTsc(fd)
        self._gets, self._sets = _plan(self._buffers, context)
        self._reset_msrs: dict[int, int] = {}
        self._page = RunPage(fd, context.run_page_size_bytes)
        try:
            self._reset_state = self._read_reset_state()
        except BaseException:
            self._page.close()
            raise

    # ---- running --------------------------------------------------------------------------------

    def run(self, bus: IoBus) -> VcpuStop:
        """Run the guest on the calling thread until something stops it (see `Vcpu.run`)."""
        page = self._page
        with self._runner_lock:
            self._runner = threading.get_ident()
        try:
            return self._run(page, bus)
        except BaseException:
            self._finish_access(page)
            raise
        finally:
            with self._runner_lock:
                self._runner = None

    def kick(self) -> None:
        """Make the present or the next `run` return KICKED; any thread, not a signal handler."""
        self._page.u8[abi.RUN_IMMEDIATE_EXIT] = 1
        with self._runner_lock:  # a thread that has left run() may be gone: never signal it
            runner = self._runner
            if runner is not None and runner != threading.get_ident():  # a device callback
                signal.pthread_kill(runner, KICK_SIGNAL)

    def clear_kick(self) -> None:
        """Forget a kick; called before the vCPU thread enters `run` again."""
        self._page.u8[abi.RUN_IMMEDIATE_EXIT] = 0

    def _run(self, page: RunPage, bus: IoBus) -> VcpuStop:
        fd, run, exit_reason = self._fd, blocking_ioctl, page.u32
        while True:
            if run(fd, abi.RUN, None) < 0:
                number = get_errno()
                if number not in (errno.EINTR, errno.EAGAIN):
                    return VcpuStop(
                        StopReason.ERROR, f"KVM_RUN of vCPU {self.index}: {os.strerror(number)}"
                    )
                if page.u8[abi.RUN_IMMEDIATE_EXIT]:
                    return _KICKED
                continue  # a signal for somebody else, or an idle vCPU that is to look again
            reason = exit_reason[abi.RUN_EXIT_REASON_U32]
            if reason == abi.EXIT_IO:
                serve_io(page, bus)
            elif reason == abi.EXIT_MMIO:
                serve_mmio(page, bus)
            else:
                stop = stop_of(page)
                if stop is not None:
                    return stop

    def _finish_access(self, page: RunPage) -> None:
        """Let KVM complete an access that a failing device left open; its value is arbitrary.

        Otherwise the next KVM_RUN would do so on top of whatever state is loaded until then.
        """
        kicked = page.u8[abi.RUN_IMMEDIATE_EXIT]
        page.u8[abi.RUN_IMMEDIATE_EXIT] = 1
        for _ in range(_MAX_UNSERVED_ACCESSES):
            if blocking_ioctl(self._fd, abi.RUN, None) < 0:
                break
        page.u8[abi.RUN_IMMEDIATE_EXIT] = kicked

    # ---- state ----------------------------------------------------------------------------------

    def save(self) -> CpuState:
        """See Vcpu.save."""
        return self.capture().state()

    def load(self, state: CpuState) -> None:
        """See Vcpu.load."""
        self.restore(CpuSection.of(state))

    def capture(self) -> CpuSection:
        """Read the whole CPU state; the vCPU must be stopped.

        Raises AccelError when it runs, or when KVM refuses (then the text names the call).
        """
        self._require_stopped("saved")
        fd, buffers, has_lapic = self._fd, self._buffers, self._context.has_lapic
        for request, address, what in self._gets:
            if state_ioctl(fd, request, address) < 0:
                raise os_refusal(f"reading the {what} of vCPU {self.index}")
        tsc_host_ns = time.monotonic_ns()
        count = len(self._msr_indices)
        self._transfer_msrs(abi.GET_MSRS, count + 1)
        return CpuSection(
            general=bytes(buffers.regs.data),
            system=bytes(buffers.system),
            debug=bytes(buffers.debug),
            msr_indices=self._packed_indices,
            msr_values=buffers.msrs.first(count),
            xcr0=state.read_xcr0(buffers),
            xsave=state.read_xsave(buffers),
            events=state.read_events(buffers),
            mp_state=state.read_mp_state(buffers) if has_lapic else "runnable",
            tsc=buffers.msrs.value_at(count),
            tsc_host_ns=tsc_host_ns,
            tsc_offset=self._tsc.read_offset(),
            lapic=bytes(buffers.lapic.data) if has_lapic else None,
        )

    def restore(self, saved: CpuSection) -> None:
        """Replace the whole CPU state; callable again and again.

        Raises AccelError that names the register, MSR or event this vCPU cannot hold; the vCPU is
        then partly loaded and must be loaded again before it runs.
        """
        self._require_stopped("loaded")
        self._fill(saved)
        fd = self._fd
        for request, address, what in self._sets:
            if state_ioctl(fd, request, address) < 0:
                raise self._refusal(what, saved)
        # KVM_RUN takes CR8 from the page when there is no in-kernel LAPIC (KVM API, kvm_run.cr8).
        self._page.u64[abi.RUN_CR8_U64] = saved.cr8
        self._tsc.set(self._context.tsc, saved.tsc, saved.tsc_host_ns, saved.tsc_offset)
        # After the LAPIC and the TSC: arming the TSC deadline (last of the list) needs both.
        self._transfer_msrs(abi.SET_MSRS, len(self._msr_indices))

    def _fill(self, saved: CpuSection) -> None:
        """Put every part of `saved` into its kernel struct."""
        buffers = self._buffers
        buffers.regs.data[:] = saved.general
        buffers.system[:] = saved.system
        buffers.debug[:] = saved.debug
        state.write_xcr0(buffers, saved.xcr0)
        state.write_xsave(buffers, saved.xsave)
        state.write_events(buffers, saved.events, self._event_flags)
        buffers.msrs.set_values(memoryview(self._msr_values(saved)).cast("Q"))
        if self._context.has_lapic != (saved.lapic is not None):
            raise AccelError(
                f"the saved CPU has {'a' if saved.lapic is not None else 'no'} local APIC, vCPU "
                f"{self.index} has {'one' if self._context.has_lapic else 'none'}: the machines "
                "differ in kernel-irqchip"
            )
        if saved.lapic is not None:
            if len(saved.lapic) != abi.LAPIC_SIZE_BYTES:
                raise AccelError(
                    f"the local APIC has {len(saved.lapic)} bytes, not {abi.LAPIC_SIZE_BYTES}"
                )
            buffers.lapic.data[:] = saved.lapic
            state.write_mp_state(buffers, saved.mp_state)
        elif saved.mp_state not in ("runnable", "halted"):  # halted: the VMM waits, not the kernel
            raise AccelError(f"MP state '{saved.mp_state}' needs an in-kernel irqchip")

    def _msr_values(self, saved: CpuSection) -> bytes:
        """Values in list order; an MSR that the state does not have gets its reset value."""
        if saved.msr_indices == self._packed_indices:  # from a host like this one
            return saved.msr_values
        msrs, reset = saved.msrs(), self._reset_msrs
        unknown = sorted(msrs.keys() - reset.keys() - NOT_MSR_STATE)
        if unknown:
            names = ", ".join(f"{name_of(index)} = {msrs[index]:#x}" for index in unknown)
            raise AccelError(f"this host's KVM cannot hold MSR(s) {names}")
        return array("Q", [msrs.get(index, reset[index]) for index in self._msr_indices]).tobytes()

    def _transfer_msrs(self, request: int, count: int) -> None:
        """KVM stops at the first MSR it refuses and returns how many it took."""
        buffer = self._buffers.msrs
        buffer.set_count(count)
        done = state_ioctl(self._fd, request, buffer.address)
        if done == count:
            return
        if done < 0:
            raise os_refusal(f"moving the MSRs of vCPU {self.index}")
        index, value = buffer.indices[done], buffer.values()[done]
        verb = "read" if request == abi.GET_MSRS else f"set to {value:#x}"
        raise AccelError(f"MSR {name_of(index)} of vCPU {self.index} cannot be {verb}")

    def _refusal(self, what: str, section: CpuSection) -> AccelError:
        error = os_refusal(f"setting the {what} of vCPU {self.index}")
        saved = section.state()
        values: Mapping[str, object] = {
            "segment and control registers": saved.control,
            "extended control registers": {"xcr0": saved.xcr0},
            "debug registers": saved.debug,
            "run state": {"mp_state": saved.mp_state},
            "events": saved.events,
        }.get(what, {})
        shown = ", ".join(
            f"{name}={value:#x}" if isinstance(value, int) else f"{name}={value}"
            for name, value in values.items()
        )
        return AccelError(f"{error}: {shown}" if shown else str(error))

    def was_paused(self) -> None:
        """Let the guest's kvmclock say at the next entry that the host stopped it.

        Raises AccelError when KVM refuses for another reason than that the guest does not use it.
        """
        refused = state_ioctl(self._fd, abi.KVMCLOCK_CTRL, None) < 0
        if refused and get_errno() != errno.EINVAL:
            raise os_refusal(f"vCPU {self.index}: telling its clock of the pause")

    # ---- rehearsal, end -------------------------------------------------------------------------

    def rehearse(self) -> None:
        """Load a state and run two instructions outside guest RAM (see `Vcpu.rehearse`).

        Best called on the thread that will run this vCPU: kernels before 6.12 wait for an RCU grace
        period (milliseconds) when the thread changes. Takes about 5 ms, nearly all of it the
        removal of the memory slot. Any pending kick is forgotten.

        Raises AccelError when the code does not run as it must.
        """
        with self._context.rehearsal_memory() as code:
            self.clear_kick()
            self.load(code.entry_state(self._reset_state))
            stop = self.run(_RehearsalBus(self.kick))
        self.clear_kick()
        if stop.reason is not StopReason.KICKED:
            raise AccelError(f"the rehearsal of vCPU {self.index} ended with {stop}")

    def close(self) -> None:
        """Unmap the run page and close the fd; the vCPU's thread is not in `run`."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._page.close()
            os.close(fd)

    def _require_stopped(self, what: str) -> None:
        if self._runner is not None:
            raise AccelError(f"vCPU {self.index} runs; it must be stopped before it can be {what}")

    def _read_reset_state(self) -> CpuState:
        """The state KVM gives a new vCPU; also learns what this kernel's events can carry."""
        self._event_flags = 0
        first = self.save()
        self._event_flags = (
            state.read_event_flags(self._buffers)
            | abi.EVENT_VALID_NMI_PENDING
            | abi.EVENT_VALID_SHADOW
        )
        self._reset_msrs = dict(first.msrs)
        return first


class _RehearsalBus:
    """Takes the rehearsal's one device access and asks for the end."""

    def __init__(self, kick: Callable[[], None]) -> None:
        self._kick = kick

    def pio_read(self, port: int, size: int) -> int:
        raise AccelError(f"the rehearsal read {size} byte(s) from port {port:#x}")

    def pio_write(self, _port: int, _size: int, _value: int) -> None:
        self._kick()

    def mmio_read(self, addr: int, size: int) -> int:
        raise AccelError(f"the rehearsal read {size} byte(s) at {addr:#x}, where it maps nothing")

    def mmio_write(self, addr: int, size: int, _value: int) -> None:
        raise AccelError(f"the rehearsal wrote {size} byte(s) at {addr:#x}, where it maps nothing")


_Plan = tuple[tuple[int, int, str], ...]


def _plan(buffers: state.VcpuBuffers, context: VcpuContext) -> tuple[_Plan, _Plan]:
    """(gets, sets) in order: request, address, what it moves.

    MP_STATE is read first because that lets KVM take a waiting INIT or SIPI. The order of setting:
    control registers before what they enable (XCR0, APIC base), REGS before events because it drops
    a pending exception, LAPIC before events because a pending interrupt lives in it.
    """
    get_xsave = abi.GET_XSAVE2 if context.has_xsave2 else abi.GET_XSAVE
    table = (
        (abi.GET_REGS, abi.SET_REGS, buffers.regs, "general registers"),
        (abi.GET_SREGS, abi.SET_SREGS, buffers.sregs, "segment and control registers"),
        (abi.GET_XCRS, abi.SET_XCRS, buffers.xcrs, "extended control registers"),
        (get_xsave, abi.SET_XSAVE, buffers.xsave, "FPU and vector registers"),
        (abi.GET_DEBUGREGS, abi.SET_DEBUGREGS, buffers.debugregs, "debug registers"),
        (abi.GET_LAPIC, abi.SET_LAPIC, buffers.lapic, "local APIC"),
        (abi.GET_MP_STATE, abi.SET_MP_STATE, buffers.mp_state, "run state"),
        (abi.GET_VCPU_EVENTS, abi.SET_VCPU_EVENTS, buffers.events, "events"),
    )
    kept = [row for row in table if context.has_lapic or row[2] not in _lapic_only(buffers)]
    sets = tuple((set_, buffer.address, what) for _, set_, buffer, what in kept)
    gets = tuple((get, buffer.address, what) for get, _, buffer, what in kept)
    return _first(gets, abi.GET_MP_STATE), sets


def _lapic_only(buffers: state.VcpuBuffers) -> tuple[Buffer, Buffer]:
    """What exists only beside an in-kernel irqchip; without one a vCPU is always runnable."""
    return buffers.lapic, buffers.mp_state


def _first(plan: _Plan, request: int) -> _Plan:
    return tuple(sorted(plan, key=lambda step: step[0] != request))
