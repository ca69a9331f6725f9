"""The start of a process: what it waits for, what ends the wait, and what a reset goes back to."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.framework.guest_rig import MIB
from tests.framework.no_events import NoEvents
from vmm.accel import open_accel
from vmm.accel.kick import install_kick_handler
from vmm.accel.kvm.chips import IrqchipState
from vmm.build import boot
from vmm.chassis import Chassis
from vmm.config import AccelOptions, MachineOptions, VmmConfig

EXIT_DEADLINE_S = 30
UNUSED_GSI = 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_a_start_that_waits_for_a_client(
    socket_dir: Path, number: signal.Signals
) -> None:
    path = socket_dir / "nobody"
    # The terminal's name is said when the first port is made; the second one then waits.
    argv = [sys.executable, "-m", "vmm", "-accel", "unicorn", "-m", "16M"]
    argv += ["-serial", "pty", "-serial", f"unix:{path},server=on,wait=on"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "redirected to /dev/pts/" in process.stderr.readline()
        process.send_signal(number)
        assert process.wait(EXIT_DEADLINE_S) == 0
    assert not path.exists()


@pytest.mark.needs_kvm
async def test_reset_puts_the_kernel_s_chips_back_to_power_on() -> None:
    install_kick_handler()
    options = MachineOptions(kernel_irqchip=True)
    config = VmmConfig(machine=options, memory_size_bytes=16 * MIB, vcpu_count=1)
    accel, _ = open_accel([AccelOptions("kvm")])
    machine = await boot(Chassis(config, accel, asyncio.get_running_loop(), NoEvents()))
    try:
        power_on = machine.parts.chassis.vm.save()[0]
        line = machine.parts.chassis.vm.irq_line(UNUSED_GSI)
        assert line is not None
        line(True)
        pending = machine.parts.chassis.vm.save()[0]
        machine.reset()
        again = machine.parts.chassis.vm.save()[0]
    finally:
        machine.close()
    assert isinstance(pending, IrqchipState)
    assert pending != power_on
    assert again == power_on
