from __future__ import annotations

from vmm.devices.irq import IrqLines, SetLevel


class Controller:
    """Inputs 3 and 4, and what they were last driven to."""

    def __init__(self) -> None:
        self.driven: list[tuple[int, bool]] = []

    def input(self, gsi: int) -> SetLevel | None:
        if gsi not in (3, 4):
            return None
        return lambda level: self.driven.append((gsi, level))


def test_level_of_a_line_reaches_its_own_input() -> None:
    controller = Controller()
    lines = IrqLines(controller.input)
    com1, com2 = lines.connect(4), lines.connect(3)
    com1(True)
    com2(True)
    com1(False)
    assert controller.driven == [(4, True), (3, True), (4, False)]


def test_shared_input_stays_high_while_one_of_its_devices_is_high() -> None:
    controller = Controller()
    lines = IrqLines(controller.input)
    com1, com3 = lines.connect(4), lines.connect(4)
    com1(True)
    com3(True)
    com1(False)
    assert controller.driven[-1] == (4, True)
    com3(False)
    assert controller.driven[-1] == (4, False)


def test_line_without_a_controller_leads_nowhere_and_is_harmless() -> None:
    controller = Controller()
    IrqLines(controller.input).connect(9)(True)
    assert controller.driven == []
