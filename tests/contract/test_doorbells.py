"""Notifications by eventfd: the accelerators' half, and the half that every virtio device has."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.contract import accel_contract as contract
from tests.contract.accel_contract import CODE, MMIO, RecordingBus, Rig, long_mode, open_accelerator
from tests.contract.virtio_contract import CASES, RAM_SIZE_BYTES, Make, VirtioCase, set_up
from tests.framework.virtio_driver import FakeRam
from vmm.accel.base import StopReason, VmOptions
from vmm.accel.kick import install_kick_handler
from vmm.devices.virtio.doorbell import Doorbells, SignalOnStore
from vmm.devices.virtio.mmio import QUEUE_NOTIFY
from vmm.errors import AccelError

PAGE = MMIO + 0x3000
DEADLINE_S = 30.0
Notify = Callable[[int], None]
every_device = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


# ---- the accelerator --------------------------------------------------------------------


@pytest.fixture
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("stored", [True, False], ids=["the value", "another value"])
def test_store_of_the_value_signals_and_every_other_reaches_the_bus(
    accel: str, eventfd: int, *, stored: bool
) -> None:
    """The program stores 4 bytes at MMIO + 0x108, and other sizes elsewhere."""
    install_kick_handler()
    rig = Rig()
    rig.memory.write(CODE, contract.MMIO_ACCESSES_64)
    value = 0x8877_6655_4433_2211
    bus = RecordingBus({("load", MMIO + offset): value for offset in (0, 8, 16, 24)})
    accelerator = open_accelerator(accel)
    vm = accelerator.create_vm(VmOptions(1))
    vm.map_ram(rig.memory.slots)
    waits_for = (value & 0xFFFF_FFFF) ^ (0 if stored else 1)
    can = vm.signal_on_store(MMIO + 0x108, 4, waits_for, eventfd)
    vcpu = vm.vcpus[0]
    vcpu.load(long_mode(vcpu.save()))
    assert vcpu.run(bus).reason is StopReason.HALTED
    vm.close()
    accelerator.close()
    rig.close()
    stores = [entry[1] - MMIO for entry in bus.log if entry[0] == "store"]
    if can and stored:
        assert stores == [0x100, 0x110, 0x118]
        assert os.eventfd_read(eventfd) == 1
    else:
        assert stores == [0x100, 0x108, 0x110, 0x118]
        with pytest.raises(BlockingIOError):
            os.eventfd_read(eventfd)


@pytest.mark.needs_kvm
def test_kvm_has_them_and_refuses_what_is_no_eventfd() -> None:
    rig = Rig()
    accelerator = open_accelerator("kvm")
    vm = accelerator.create_vm(VmOptions(1))
    vm.map_ram(rig.memory.slots)
    with Path(os.devnull).open() as other, pytest.raises(AccelError, match="eventfd for 0x1 at"):
        vm.signal_on_store(PAGE, 4, 1, other.fileno())
    vm.close()
    accelerator.close()
    rig.close()


# ---- the device -------------------------------------------------------------------------


class Signals:
    """An accelerator's half: remembers what was asked for, and rings."""

    def __init__(self, *, can: bool = True) -> None:
        self.can = can
        self.fds: dict[int, int] = {}

    def __call__(self, address: int, size: int, value: int, eventfd: int) -> bool:
        assert (address, size) == (PAGE + QUEUE_NOTIFY, 4)
        if self.can:
            self.fds[value] = eventfd
        return self.can


class Heard(Doorbells):
    """Doorbells that also tell the test when the loop has served one."""

    def __init__(self) -> None:
        super().__init__(asyncio.get_running_loop())
        self.served = asyncio.Event()

    def connect(
        self, signal_on_store: SignalOnStore, address: int, queue_count: int, notify: Notify
    ) -> None:
        def heard(index: int) -> None:
            notify(index)
            self.served.set()

        super().connect(signal_on_store, address, queue_count, heard)

    async def ring(self, fd: int) -> None:
        self.served.clear()
        os.eventfd_write(fd, 3)  # however often: it is one notification
        async with asyncio.timeout(DEADLINE_S):
            await self.served.wait()


@pytest.fixture
def make(case: VirtioCase) -> Iterator[Make]:
    with case.maker() as make:
        yield make


def _open_fds() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


@every_device
async def test_ringing_is_a_notification_of_that_queue(make: Make) -> None:
    driver = set_up(make, FakeRam(RAM_SIZE_BYTES))
    signals, doorbells = Signals(), Heard()
    driver.device.connect_doorbells(doorbells, signals, PAGE)
    last = len(driver.queues) - 1
    assert sorted(signals.fds) == list(range(last + 1))
    driver.queues[last].offer(0xFFFF)  # no such descriptor: whoever looks at the ring notices
    await doorbells.ring(signals.fds[last])
    assert driver.needs_reset
    driver.device.close()


@every_device
async def test_stopped_device_hears_nothing_and_looks_when_it_starts(make: Make) -> None:
    driver = set_up(make, FakeRam(RAM_SIZE_BYTES))
    signals, doorbells = Signals(), Heard()
    driver.device.connect_doorbells(doorbells, signals, PAGE)
    driver.device.stop()
    driver.queues[-1].offer(0xFFFF)
    await doorbells.ring(signals.fds[len(driver.queues) - 1])
    assert not driver.needs_reset
    driver.device.start()
    assert driver.needs_reset
    driver.device.close()


@every_device
async def test_closing_leaves_no_fd_whether_the_accelerator_can_or_not(make: Make) -> None:
    for can in (True, False):
        driver = set_up(make, FakeRam(RAM_SIZE_BYTES))
        before = _open_fds()
        driver.device.connect_doorbells(Heard(), Signals(can=can), PAGE)
        assert len(_open_fds() - before) == (len(driver.queues) if can else 0)
        driver.device.close()
        assert _open_fds() == before


@every_device
async def test_without_an_accelerator_that_can_the_register_is_served(make: Make) -> None:
    driver = set_up(make, FakeRam(RAM_SIZE_BYTES))
    driver.device.connect_doorbells(Heard(), Signals(can=False), PAGE)
    driver.queues[-1].offer(0xFFFF)
    driver.kick(len(driver.queues) - 1)
    assert driver.needs_reset
    driver.device.close()
