"""What is fuzzed: functions that take any bytes and raise nothing but what their users expect.

Each has seeds, from which a fuzzer goes on; what it found is kept in corpus/TARGET/ and runs in the
default tests, with the seeds.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cpr.codec import FrameDecoder, encode
from cpr.errors import LocalProtocolError, RemoteProtocolError, StateError
from cpr.handshake import TRANSITIONS, Event, Handshake, Role
from cpr.messages import Message
from cpr.plaincbor import dumps, loads
from cpr.vmstate import NESTING_MAX, Section, VmState, section_digest
from tests.golden.examples import STATES
from tests.unit.boot.bzimages import bzimage
from tests.unit.boot.elf_files import make_elf
from tests.unit.cpr.examples import MESSAGES
from vmm.boot.acpi import AcpiMachine
from vmm.boot.elf import parse_elf
from vmm.boot.linux import LinuxBoot, boot_bzimage, boot_pvh
from vmm.boot.linux_image import is_bzimage, parse_bzimage
from vmm.boot.plan import check_pieces
from vmm.errors import BootError, VmmError
from vmm.migration.addresses import is_uri, parse_channel, parse_uri
from vmm.optstr import OptionSyntaxError, parse_keyval, parse_options, parse_size
from vmm.qmp.jsonstream import JsonStream
from vmm.qmp.jsonvalue import JsonSyntaxError
from vmm.update.faults import FaultPlan


@dataclass(frozen=True, slots=True)
class Target:
    """One function under fuzz."""

    run: Callable[[bytes], None]
    seeds: Sequence[bytes]


# ---- what a peer sends ---------------------------------------------------------------------------


def codec(data: bytes) -> None:
    """Frames, in two pieces at any place; a message that is understood has one encoding."""
    cut = data[0] if data else 0
    stream = data[1:]
    decoder, whole = FrameDecoder(), FrameDecoder()
    pieces = _frames(decoder, (stream[:cut], stream[cut:]))
    assert pieces == _frames(whole, (stream,)), "the cut changed what was understood"
    at = 0
    for message, fd_count in pieces:
        frame = encode(message, fd_count=fd_count)
        assert stream[at : at + len(frame)] == frame, "two encodings of one message"
        at += len(frame)


def _frames(decoder: FrameDecoder, pieces: Sequence[bytes]) -> list[tuple[Message, int]]:
    found: list[tuple[Message, int]] = []
    try:
        for piece in pieces:
            decoder.push(piece)
            while (frame := decoder.next_frame()) is not None:
                found.append((frame.message, frame.fd_count))
    except RemoteProtocolError:
        pass
    return found


def cbor(data: bytes) -> None:
    """Plain CBOR: a value that is read has exactly these bytes."""
    try:
        value = loads(data, nesting_max=NESTING_MAX, int_keys=True)
    except ValueError:
        return
    assert dumps(value) == data


_KINDS: tuple[type[VmState], ...] = tuple(type(state) for state in STATES.values())


def vmstate(data: bytes) -> None:
    """A section of any kind, with a good digest: only what is in it can be wrong."""
    if not data:
        return
    kind = _KINDS[data[0] % len(_KINDS)]
    payload = data[1:]
    digest = section_digest(payload)
    try:
        state = Section("unit0", kind.NAME, kind.VERSION, kind.OPTIONAL, payload, digest).load(kind)
    except StateError:
        return
    assert Section.save("unit0", state).load(kind) == state


def handshake(data: bytes) -> None:
    """Any events in any order, on either side: a listed phase, and only protocol errors."""
    if not data:
        return
    events = list(Event)
    machine = Handshake(list(Role)[data[0] % 2])
    for byte in data[1:]:
        before = machine.phase
        try:
            machine.receive(events[byte % len(events)])
        except LocalProtocolError:
            assert machine.phase is before
        assert machine.phase in TRANSITIONS[machine.role]


# ---- what a client or a user says ----------------------------------------------------------------


def qmp(data: bytes) -> None:
    """A client's bytes: values and mistakes, and an end."""
    stream = JsonStream(max_message_bytes=4096)
    for start in range(0, len(data), 7):
        stream.feed(data[start : start + 7])
        while (value := stream.take()) is not None:
            if not isinstance(value, JsonSyntaxError):
                json.dumps(value[0] if isinstance(value, tuple) else value, default=str)
        assert stream.buffered_bytes <= 4096 + 7


def options(data: bytes) -> None:
    """Option strings of both grammars, sizes, and what faults are asked for."""
    text = data.decode("utf-8", "replace")
    for parse in (parse_options, parse_keyval):
        with contextlib.suppress(OptionSyntaxError):
            parse(text)
    parse_size(text)
    with contextlib.suppress(VmmError):
        FaultPlan.parse(text)


def addresses(data: bytes) -> None:
    """`-incoming` and `migrate` addresses."""
    text = data.decode("utf-8", "replace")
    parse = parse_uri if is_uri(text) else parse_channel
    with contextlib.suppress(VmmError):
        parse(text)


def elf(data: bytes) -> None:
    """A kernel file."""
    with contextlib.suppress(BootError):
        parse_elf(data, "x")


_LINUX = LinuxBoot(
    command_line="console=ttyS0",
    initrd=b"cpio",
    ram_bytes=64 << 20,
    machine=AcpiMachine(vcpu_count=2, serial_count=1, virtio_count=1),
)


def linux(data: bytes) -> None:
    """A Linux kernel in either form, up to the last byte that it would put into RAM."""
    with contextlib.suppress(BootError):
        if is_bzimage(data):
            loaded = boot_bzimage(parse_bzimage(data, "x"), "x", _LINUX)
        else:
            image = parse_elf(data, "x")
            loaded = boot_pvh(image, image.pvh_entry or 0, "x", _LINUX)
        check_pieces(loaded.pieces, _LINUX.ram_bytes)


TARGETS: Mapping[str, Target] = {
    "codec": Target(
        codec,
        [
            b"\0" + encode(message, fd_count=2 if kind.name == "FDS" else 0)
            for kind, message in MESSAGES.items()
        ],
    ),
    "cbor": Target(cbor, [dumps(state.to_map()) for state in STATES.values()]),
    "vmstate": Target(
        vmstate,
        [
            bytes([number]) + dumps(STATES[kind.NAME].to_map())
            for number, kind in enumerate(_KINDS)
        ],
    ),
    "handshake": Target(handshake, [bytes([side, *range(40)]) for side in range(2)]),
    "qmp": Target(
        qmp,
        [
            b'{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}, "id": 1}\n',
            b"{'execute': 'migrate', 'arguments': {'channels': [{}]}} [1, -2.5e3, true, null]",
            b'\xff{"a": "\\ud83d\\ude00\\u0000"}{"b":',
        ],
    ),
    "options": Target(
        options,
        [
            b"socket,id=c0,path=/a,,b,server=on,wait=off",
            b"cpr,addr.transport=socket,addr.type=unix,addr.path=x,args.0=a,args.1=b",
            b"12.5G",
            b"target/before/LOAD_STATE/kill",
        ],
    ),
    "addresses": Target(
        addresses,
        [
            b"unix:/run/x.sock", b"tcp:[::1]:4444,to=4450,ipv6=on", b"fd:7", b"vsock:3:1024",
            b"exec:cat", b"file:/tmp/x,offset=0x1000",
            b'{"channel-type": "cpr", "addr": {"transport": "socket", "type": "fd", "str": "5"}}',
            b"cpr,addr.transport=socket,addr.type=unix,addr.path=x",
        ],
    ),
    "linux": Target(linux, [bzimage(), make_elf(64, pvh_entry=0x10_0000)]),
    "elf": Target(elf, [make_elf(64), make_elf(32), make_elf(64, pvh_entry=0x10_0000)]),
}  # fmt: skip
