"""vCPU threads, and the one door between them and the loop.

Each vCPU has one thread for its whole life. The loop's thread tells it to run (`resume`) or to stop
(`request_stop`, then `wait_parked`); the thread tells the loop about anything else that stopped the
guest through one callback, which is posted with `call_soon_threadsafe`. Nothing else crosses.

Two raw locks serve as binary semaphores: they are the cheapest wake-up Python has, and a stop and a
start are both inside the blackout.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import prctl

from vmm.accel.base import IoBus, StopReason, Vcpu, VcpuStop
from vmm.accel.x86_section import CpuSection
from vmm.errors import MachineError

# A kicked vCPU leaves the guest within microseconds (KVM) or one slice (Unicorn). One that has not
# done so after this long is stuck in the kernel or in a device callback.
STOP_DEADLINE_MS = 5_000
# How long the loop's thread makes way for vCPU threads that are about to enter the guest. They need
# some 0.1 ms; on a machine too busy for that, holding the loop up any longer helps nobody.
ENTER_LIMIT_MS = 5
_MS_PER_S = 1000

GuestStopped = Callable[[int, VcpuStop], None]


class VcpuThread:
    """One vCPU and its thread. All methods are called on the loop's thread."""

    def __init__(
        self,
        vcpu: Vcpu,
        bus: IoBus,
        loop: asyncio.AbstractEventLoop,
        on_stopped: GuestStopped,
        accel_name: str,
        confine: Callable[[], None],
    ) -> None:
        self.vcpu = vcpu
        self.halted = False  # hlt executed and nothing woke it: part of the CPU's saved state
        self._bus = bus
        self._loop = loop
        self._on_stopped = on_stopped
        self._running = False
        self._ending = False
        self._job: Callable[[], None] | None = None
        self._job_error: Exception | None = None
        self._go = _held_lock()
        self._parked = _held_lock()
        self._idle = _held_lock()
        self._entering = _held_lock()
        # As QEMU calls them, so that tools that place vCPUs by the names of threads find them.
        name = f"CPU {vcpu.index}/{accel_name.upper()}"
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()
        try:
            self.do(confine)
        except BaseException:
            self.end()
            raise

    @property
    def thread_id(self) -> int:
        """Kernel thread id, as query-cpus-fast reports it."""
        return self._thread.native_id or 0

    def capture(self) -> CpuSection:
        """The CPU's state, that it is halted with it; it must be parked."""
        state = self.vcpu.capture()
        return replace(state, mp_state="halted") if self.halted else state

    def restore(self, state: CpuSection) -> None:
        """Replace what `capture` gives; raises as `Vcpu.restore`."""
        self.halted = state.mp_state == "halted" and state.lapic is None
        self.vcpu.restore(state)

    def resume(self) -> None:
        """Let the vCPU run; it must be parked."""
        self.vcpu.clear_kick()
        self._idle.acquire(blocking=False)  # forget the wake-up of an earlier stop
        self._entering.acquire(blocking=False)  # or that of an earlier entry
        self._running = True
        self._go.release()

    def make_way(self, deadline_s: float) -> None:
        """Keep off the interpreter lock until the vCPU enters the guest, or `deadline_s`."""
        self._entering.acquire(timeout=max(0.0, deadline_s - time.monotonic()))

    def request_stop(self) -> None:
        """Ask the vCPU to leave the guest; returns at once."""
        if self._running:
            self.vcpu.kick()
            if self._idle.locked():
                self._idle.release()

    def wait_parked(self, deadline_s: float) -> None:
        """Wait until the vCPU is parked; `deadline_s` is on the monotonic clock.

        Raises MachineError when it is not parked by then.
        """
        if not self._running:
            return
        if not self._parked.acquire(timeout=max(0.0, deadline_s - time.monotonic())):
            raise MachineError(
                f"vCPU {self.vcpu.index} did not stop within {STOP_DEADLINE_MS} ms after a kick"
            )
        self._running = False

    def do(self, job: Callable[[], None]) -> None:
        """Do `job` on the vCPU's thread, which must be parked.

        Raises what the job raises, or MachineError when it does not end in time.
        """
        self._job = job
        self._running = True
        self._go.release()
        self.wait_parked(time.monotonic() + STOP_DEADLINE_MS / _MS_PER_S)
        error, self._job_error = self._job_error, None
        if error is not None:
            raise error

    def end(self) -> None:
        """End the thread; the vCPU must be parked."""
        self._ending = True
        self._go.release()
        self._thread.join(STOP_DEADLINE_MS / _MS_PER_S)

    def _main(self) -> None:
        prctl.set_name(self._thread.name)
        while True:
            self._go.acquire()
            if self._ending:
                return
            if self._job is not None:
                self._do_job(self._job)
            else:
                self._run_until_kicked()
            self._parked.release()

    def _do_job(self, job: Callable[[], None]) -> None:
        self._job = None
        try:
            job()
        except Exception as error:
            self._job_error = error

    def _run_until_kicked(self) -> None:
        # The loop's thread wakes up and waits for the interpreter lock, which `run` gives away.
        self._entering.release()
        while not self.halted:
            try:
                stop = self.vcpu.run(self._bus)
            except Exception as error:  # a device or accelerator bug must stop the guest, not hide
                stop = VcpuStop(StopReason.ERROR, f"{type(error).__name__}: {error}")
            if stop.reason is StopReason.KICKED:
                return
            if stop.reason is StopReason.HALTED:
                self.halted = True
                break
            self._loop.call_soon_threadsafe(self._on_stopped, self.vcpu.index, stop)
            break
        self._idle.acquire()


def _unconfined() -> None:
    """A thread that keeps what it may."""


class VcpuThreads:
    """All vCPUs of a machine, stopped and resumed together."""

    def __init__(
        self,
        vcpus: Sequence[Vcpu],
        bus: IoBus,
        loop: asyncio.AbstractEventLoop,
        on_stopped: GuestStopped,
        accel_name: str,
        confine: Callable[[], None] = _unconfined,
    ) -> None:
        """Each thread calls `confine` first; raises what that raises, with no thread left."""
        with contextlib.ExitStack() as undo:
            threads = []
            for vcpu in vcpus:
                threads.append(VcpuThread(vcpu, bus, loop, on_stopped, accel_name, confine))
                undo.callback(threads[-1].end)
            undo.pop_all()
        self._threads = tuple(threads)

    @property
    def ids(self) -> tuple[int, ...]:
        """Kernel thread ids in vCPU order."""
        return tuple(thread.thread_id for thread in self._threads)

    def __iter__(self) -> Iterator[VcpuThread]:
        return iter(self._threads)

    def resume(self) -> None:
        """Let every vCPU run.

        Returns when they enter the guest. If the loop's thread went on at once, its work after the
        blackout would take the interpreter lock from the vCPUs, and the guest would wait for it.
        """
        for thread in self._threads:
            thread.resume()
        deadline_s = time.monotonic() + ENTER_LIMIT_MS / _MS_PER_S
        for thread in self._threads:
            thread.make_way(deadline_s)

    def stop(self) -> None:
        """Stop every vCPU and wait for the last one; kicked all together, so the wait is one."""
        for thread in self._threads:
            thread.request_stop()
        deadline_s = time.monotonic() + STOP_DEADLINE_MS / _MS_PER_S
        for thread in self._threads:
            thread.wait_parked(deadline_s)

    def rehearse(self) -> None:
        """Warm every vCPU on its own thread (the kernel remembers the thread of the last run).

        All are parked before and after. Raises AccelError, or MachineError.
        """
        for thread in self._threads:
            thread.do(thread.vcpu.rehearse)

    def end(self) -> None:
        """Stop, then end every thread."""
        self.stop()
        for thread in self._threads:
            thread.end()


def _held_lock() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock
