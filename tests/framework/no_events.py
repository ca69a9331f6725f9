"""A machine's owner for tests in which nothing may happen to the guest."""

from __future__ import annotations

from vmm.accel.base import VcpuStop


class NoEvents:
    """A machine's owner that expects to hear nothing."""

    def vcpu_stopped(self, index: int, stop: VcpuStop) -> None:
        raise AssertionError(f"vCPU {index}: {stop}")

    def guest_exit(self, status: int) -> None:
        raise AssertionError(f"the guest ended with {status}")

    def guest_reset(self) -> None:
        raise AssertionError("the guest was reset")

    def guest_shutdown(self) -> None:
        raise AssertionError("the guest switched itself off")
