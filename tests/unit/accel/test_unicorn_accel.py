"""Opening Unicorn: what it refuses, and that its private structures are proved before use."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from tests.contract.accel_contract import GuestMemory, Rig
from vmm.accel.base import MappedSlot, VmOptions
from vmm.accel.unicorn import hosttsc, layout, library, registers
from vmm.accel.unicorn.engine import PRIVATE_PAGE, Engine, gaps
from vmm.accel.unicorn.hosttsc import HostTsc
from vmm.accel.unicorn.layout import Probe
from vmm.accel.unicorn.library import load_library
from vmm.accel.unicorn.vcpu import UnicornVcpu
from vmm.accel.unicorn_accel import UnicornAccelerator
from vmm.errors import AccelError, AccelUnavailable

GIB = 1 << 30


@pytest.fixture
def accelerator() -> Iterator[UnicornAccelerator]:
    opened = UnicornAccelerator()
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (VmOptions(2), "1 vCPU, not 2"),
        (VmOptions(1, kernel_irqchip=True), "no in-kernel irqchip"),
        (VmOptions(1, properties={"thread": "multi"}), "unicorn-accel.thread' not found"),
    ],
)
def test_options_that_only_kvm_has_are_refused(
    accelerator: UnicornAccelerator, options: VmOptions, named: str
) -> None:
    with pytest.raises(AccelError, match=named):
        accelerator.create_vm(options)


def test_slots_that_overlap_are_refused(accelerator: UnicornAccelerator) -> None:
    memory = GuestMemory()
    vm = accelerator.create_vm(VmOptions(1))
    try:
        with pytest.raises(AccelError):
            vm.map_ram(memory.slots * 2)
    finally:
        vm.close()
        memory.close()


def test_machine_state_of_another_accelerator_is_refused() -> None:
    rig = Rig()
    try:
        vm = rig.vm("unicorn")
        with pytest.raises(AccelError, match="x86-cpu"):
            vm.load([vm.vcpus[0].capture()])
    finally:
        rig.close()


def test_everything_that_is_not_ram_is_a_gap() -> None:
    low, high = MappedSlot(0, 3 * GIB, 1), MappedSlot(4 * GIB, GIB, 1)

    assert gaps((high, low)) == ((3 * GIB, 4 * GIB), (5 * GIB, PRIVATE_PAGE))
    assert gaps(()) == ((0, PRIVATE_PAGE),)
    assert gaps((MappedSlot(0, PRIVATE_PAGE, 1),)) == ()


@pytest.mark.parametrize(
    "slots",
    [(MappedSlot(0, 2 * GIB, 1), MappedSlot(GIB, GIB, 1)), (MappedSlot(0, 1 << 52, 1),)],
)
def test_ram_that_overlaps_or_reaches_too_far_is_refused(slots: tuple[MappedSlot, ...]) -> None:
    with pytest.raises(AccelError, match="guest address"):
        gaps(slots)


# ---- the library --------------------------------------------------------------------------------


@pytest.fixture
def fresh_library() -> Iterator[None]:
    """Let load_library look again, before and after."""
    load_library.cache_clear()
    yield
    load_library.cache_clear()


@pytest.mark.usefixtures("fresh_library")
def test_missing_library_is_unavailable_and_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setattr(ctypes.util, "find_library", lambda _name: None)

    with pytest.raises(AccelUnavailable, match="pip install unicorn"):
        UnicornAccelerator()


@pytest.mark.usefixtures("fresh_library")
def test_library_that_is_no_library_is_unavailable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libunicorn.so.2").write_bytes(b"not ELF")
    spec = ModuleSpec("unicorn", None)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: spec)

    with pytest.raises(AccelUnavailable, match=r"libunicorn\.so\.2 cannot be used"):
        UnicornAccelerator()


@pytest.mark.usefixtures("fresh_library")
def test_library_of_an_older_interface_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_MIN_VERSION", (2, 99))

    with pytest.raises(AccelUnavailable, match=r"expected 2\.99 or newer"):
        UnicornAccelerator()


def test_register_numbers_are_those_of_unicorns_header() -> None:
    from unicorn import x86_const as header  # noqa: PLC0415 - slow to import, and only for this

    names = {
        name.removeprefix("UC_X86_REG_"): number
        for name, number in vars(header).items()
        if name.startswith("UC_X86_REG_")
    }
    general = ["RAX", "RBX", "RCX", "RDX", "RSI", "RDI", "RSP", "RBP"]
    general += [f"R{number}" for number in range(8, 16)] + ["RIP", "RFLAGS"]
    assert tuple(names[name] for name in general) == registers._GENERAL_IDS
    assert tuple(names[f"DR{number}"] for number in (0, 1, 2, 3, 6, 7)) == registers._DEBUG_IDS
    control = ("FPCW", "FPSW", "FOP", "FIP", "FDP", "MXCSR")
    assert tuple(registers._CONTROL_PLACES) == tuple(names[name] for name in control)
    assert (names["FPTAG"], names["MSR"]) == (registers._FPTAG_ID, registers._MSR_ID)
    assert (names["ST0"], names["XMM0"]) == (registers._ST0_ID, registers._XMM0_ID)
    assert (names["ST7"], names["XMM15"]) == (names["ST0"] + 7, names["XMM0"] + 15)
    assert (header.UC_X86_INS_IN, header.UC_X86_INS_OUT) == (library.INSN_IN, library.INSN_OUT)


# ---- private structures -------------------------------------------------------------------------


@pytest.fixture
def probe() -> Iterator[Probe]:
    opened = Probe(Engine(load_library()))
    yield opened
    opened.close()


def test_layout_is_proved_again_and_again(probe: Probe) -> None:
    assert probe.find_layout() == probe.find_layout()


@pytest.mark.parametrize(
    ("field", "named"),
    [
        ("HFLAGS", "the mode flags"),
        ("LAST_EXCEPTION", "the exception in progress"),
        ("EFER", "EFER"),
        ("XCR0", "XCR0"),
        ("TSC_OFFSET", "the TSC offset"),
        ("SEGMENT_BLOCK_START", "the segment registers"),
    ],
)
def test_field_that_is_elsewhere_makes_the_library_unavailable(
    probe: Probe, monkeypatch: pytest.MonkeyPatch, field: str, named: str
) -> None:
    spare = layout.XCR0 + 64  # nothing that the proof looks at
    monkeypatch.setattr(layout, field, spare)

    with pytest.raises(AccelUnavailable, match=f"keeps {named} elsewhere"):
        probe.find_layout()


class ScriptedClocks:
    """CLOCK_MONOTONIC and a 3 GHz counter; reading the counter may be interrupted before it."""

    def __init__(self, interruptions_ns: list[int]) -> None:
        self.now_ns = 1_000_000
        self._interruptions_ns = interruptions_ns

    def monotonic_ns(self) -> int:
        self.now_ns += 100
        return self.now_ns

    def read_tsc(self) -> int:
        self.now_ns += self._interruptions_ns.pop(0) if self._interruptions_ns else 0
        return 3 * self.now_ns


def test_frequency_is_measured_from_a_sample_that_nothing_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clocks = ScriptedClocks([4_000_000, 50_000, 0, 4_000_000])
    monkeypatch.setattr(hosttsc, "time", clocks)
    host_tsc = HostTsc(clocks)

    clocks.now_ns += 10**9

    assert host_tsc.reading().khz == 3_000_000


def test_closing_an_engine_twice_is_allowed() -> None:
    engine = Engine(load_library())
    engine.close()
    engine.close()


def test_kick_after_close_writes_nowhere() -> None:
    rig = Rig()
    try:
        vm = rig.vm("unicorn")
        vcpu = vm.vcpus[0]
        assert isinstance(vcpu, UnicornVcpu)
        in_engine = ctypes.addressof(vcpu._limit)
        vm.close()
        vcpu.kick()
        assert ctypes.addressof(vcpu._limit) != in_engine
    finally:
        rig.close()


def test_tsc_of_another_host_goes_on_by_the_time_that_has_passed() -> None:
    rig = Rig()
    try:
        vcpu = rig.vcpu("unicorn")
        state = vcpu.save()
        hour_ns = 3600 * 10**9
        vcpu.load(
            replace(state, tsc=1000, tsc_offset=None, tsc_host_ns=state.tsc_host_ns - hour_ns)
        )
        assert vcpu.save().tsc > 3600 * 10**8  # at least 100 MHz
    finally:
        rig.close()
