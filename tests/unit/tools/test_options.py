"""Command lines of the tools."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

from tools import drill
from tools.lab import options
from tools.lab.errors import OptionError


@pytest.fixture
def no_kvm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(options, "KVM_DEVICE", tmp_path / "absent")


@pytest.fixture
def both_accels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(options, "KVM_DEVICE", device)


def parse(*words: str) -> argparse.Namespace:
    return drill._parser().parse_args(words)


@pytest.mark.parametrize(
    ("text", "mebibytes"), [("64", 64), ("256M", 256), ("4G", 4096), ("1024k", 1), ("1t", 1 << 20)]
)
def test_size_is_read_as_qemu_reads_m(text: str, mebibytes: int) -> None:
    assert options.parse_size(text) == mebibytes << 20


@pytest.mark.parametrize("text", ["", "M", "-1M", "1.5G", "1X", "100K", "0"])
def test_size_that_is_no_whole_number_of_mebibytes_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a"):
        options.parse_size(text)


@pytest.mark.parametrize("text", ["0", "-1", "x", ""])
def test_count_below_one_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="at least 1"):
        options.parse_count(text)


@pytest.mark.usefixtures("both_accels")
def test_default_drill_is_every_accelerator_and_alternating() -> None:
    plans = drill.make_plans(parse())
    assert [plan.name for plan in plans] == ["kvm", "unicorn", "alternate"]
    assert [plans[2].build(generation).accel for generation in range(4)] == [
        "kvm",
        "unicorn",
        "kvm",
        "unicorn",
    ]
    assert plans[0].build(1).command == (sys.executable, "-m", "vmm")


@pytest.mark.usefixtures("both_accels")
def test_two_builds_take_turns() -> None:
    (plan,) = drill.make_plans(parse("--accel", "kvm", "--old", "a -x", "--new", "b"))
    assert [plan.build(generation).command for generation in range(3)] == [
        ("a", "-x"),
        ("b",),
        ("a", "-x"),
    ]


@pytest.mark.usefixtures("both_accels")
def test_replay_command_asks_for_the_same_chain() -> None:
    plans = drill.make_plans(parse("--seed", "7", "--count", "3", "--mem", "1G", "--old", "a -x"))
    words = plans[1].replay
    assert words == (
        "cpr-drill --accel unicorn --count 3 --seed 7 --mem 1024M --vcpus 1 --pages 0 --old 'a -x'"
    )


@pytest.mark.usefixtures("no_kvm")
def test_without_kvm_only_unicorn_is_drilled() -> None:
    assert [plan.name for plan in drill.make_plans(parse())] == ["unicorn"]


@pytest.mark.usefixtures("no_kvm")
@pytest.mark.parametrize("accel", ["kvm", "alternate"])
def test_asking_for_an_accelerator_that_is_not_here_is_refused(accel: str) -> None:
    with pytest.raises(OptionError, match=f"--accel {accel}"):
        drill.make_plans(parse("--accel", accel))


@pytest.mark.usefixtures("no_kvm")
def test_several_vcpus_without_kvm_are_refused_with_the_reason() -> None:
    with pytest.raises(OptionError, match="one vCPU only"):
        drill.make_plans(parse("--vcpus", "2"))


@pytest.mark.usefixtures("no_kvm")
def test_impossible_options_exit_with_the_usage_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert drill.main(["--accel", "kvm"]) == drill.EXIT_USAGE
    assert "cpr-drill: --accel kvm: not usable here" in capsys.readouterr().err


@pytest.mark.usefixtures("both_accels")
def test_vcpu_without_a_page_to_stamp_is_refused() -> None:
    with pytest.raises(OptionError, match="--pages 3: each of the 4 vCPUs"):
        drill.make_plans(parse("--vcpus", "4", "--pages", "3"))


def test_report_that_cannot_be_written_is_refused_before_the_drill(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "absent" / "drill.json"
    assert drill.main(["--accel", "unicorn", "--json", str(path)]) == drill.EXIT_USAGE
    assert f"cannot write {path}: No such file" in capsys.readouterr().err
