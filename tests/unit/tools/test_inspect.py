"""cpr-inspect on streams, sections, states, timelines and damage."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

import cbor2
import pytest

from cpr.codec import encode
from cpr.messages import Commit, Fds, State
from cpr.vmstate import Section, VmState
from tests.unit.accel.test_x86_section import cpu as unusual_cpu
from tools import inspect
from tools.lab.inspect_model import read_document
from tools.lab.inspect_view import hex_dump, to_plain
from vmm.accel.x86_section import CpuSection


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class UartState(VmState):
    NAME: ClassVar[str] = "test-uart"
    VERSION: ClassVar[int] = 3
    READS_FROM: ClassVar[int] = 1
    divisor: int
    fifo: bytes


SECTION = Section.save("serial0", UartState(divisor=0x12345, fifo=bytes(range(16)) * 9))
STREAM = (
    encode(Fds(names=("ram:ram0:0",)), fd_count=1)
    + encode(State(sections=(SECTION,), runstate="running", epoch=4, stopped_ns=17))
    + encode(Commit())
)


def shown(path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    status = inspect.main([str(path), *options])
    return status, capsys.readouterr().out


def file_with(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "file"
    path.write_bytes(data)
    return path


def test_stream_shows_messages_sections_and_fields_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, text = shown(file_with(tmp_path, STREAM), capsys)
    assert status == inspect.EXIT_OK
    for expected in (
        "3 frame(s)",
        "ram:ram0:0",
        "runstate running",
        "section serial0",
        "kind test-uart",
        "digest ok",
        "divisor 0x12345",
        "fifo 144 bytes",
        "COMMIT",
    ):
        assert expected in text


def test_json_has_whole_byte_strings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = shown(file_with(tmp_path, STREAM), capsys, "--json")
    state = json.loads(text)["items"][1]["items"][0]["items"][0]
    assert status == inspect.EXIT_OK
    assert state["fields"] == {
        "divisor": 0x12345,
        "fifo": {"hex": (bytes(range(16)) * 9).hex(), "size_bytes": 144},
    }


def test_cut_off_stream_is_shown_up_to_the_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, text = shown(file_with(tmp_path, STREAM[:-1]), capsys)
    assert status == inspect.EXIT_DAMAGED
    assert "section serial0" in text
    assert "frame 3 is cut off" in text


def test_damaged_frame_is_named() -> None:
    damaged = bytearray(STREAM)
    damaged[40] ^= 1
    document = read_document(bytes(damaged), "x")
    assert document.problem is not None
    assert document.problem.startswith("frame 1: FDS: digest")


def test_section_with_a_wrong_digest_is_shown_and_called_wrong() -> None:
    wrong = dataclasses.replace(SECTION, digest=bytes(16))
    document = read_document(cbor2.dumps(dataclasses.asdict(wrong)), "x")
    assert document.kind == "one section"
    assert "DOES NOT MATCH" in document.items[0].fields["payload"]


def test_golden_state_is_shown_by_field_name() -> None:
    document = read_document(SECTION.payload, "uart.v3.cbor")
    assert document.kind == "one state, 2 field(s)"
    assert document.items[0].fields["divisor"] == 0x12345


def test_packed_registers_of_a_cpu_are_shown_by_name() -> None:
    cpu = Section.save("cpu0", CpuSection.of(unusual_cpu()))
    document = read_document(cbor2.dumps(dataclasses.asdict(cpu)), "x")
    registers = document.items[0].items[1]
    assert registers.title == "registers"
    assert registers.fields["segments"]["cs"] == unusual_cpu().segments["cs"]
    assert registers.fields["msrs"] == unusual_cpu().msrs


def test_cpu_of_another_version_says_that_its_registers_cannot_be_read() -> None:
    cpu = dataclasses.replace(Section.save("cpu0", CpuSection.of(unusual_cpu())), version=99)
    document = read_document(cbor2.dumps(dataclasses.asdict(cpu)), "x")
    assert "too new" in document.items[0].items[1].fields["cannot be read"]


def test_timeline_is_shown_relative_to_its_first_mark() -> None:
    reply = [{"t-ns": 5_000_000, "what": "kick"}, {"t-ns": 6_500_000, "what": "saved"}]
    document = read_document(json.dumps(reply).encode(), "x")
    assert list(document.items[0].fields.values()) == ["kick", "saved"]
    assert "1.500 ms" in list(document.items[0].fields)[1]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "no bytes"),
        (b'{"a": 1}', "not the reply"),
        (b"[", "not the reply"),
        (b"\xff\xff", "neither"),
    ],
)
def test_unknown_file_is_refused_with_the_reason(data: bytes, problem: str) -> None:
    found = read_document(data, "x").problem
    assert found is not None
    assert problem in found


def test_missing_file_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect.main([str(tmp_path / "absent")]) == inspect.EXIT_USAGE
    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "rows_max", "expected"),
    [
        (b"", None, []),
        (bytes(16), None, ["000000  " + "00 " * 15 + "00"]),
        (bytes(48), None, ["000000  " + "00 " * 15 + "00", "  * 2 equal row(s)"]),
        (bytes(range(40)), 1, ["000000  " + bytes(range(16)).hex(" "), "  ... 24 more bytes"]),
    ],
)
def test_hex_dump_abridges_only_what_it_says(
    data: bytes, rows_max: int | None, expected: list[str]
) -> None:
    assert hex_dump(data, rows_max) == expected


@pytest.mark.parametrize("value", [None, True, 1.5, "x", [b"\x01", {"k": 2}], {1: b""}])
def test_every_cbor_value_has_a_json_form(value: Any) -> None:
    assert json.dumps(to_plain(read_document(cbor2.dumps({"field": value}), "x")))
