from __future__ import annotations

import dataclasses
import hashlib
import struct
from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cpr.codec
from cpr.codec import (
    CONTROL_SIZE_MAX_BYTES,
    FRAME_SIZE_MAX_BYTES,
    HEADER_SIZE_BYTES,
    MAGIC,
    NESTING_MAX,
    Frame,
    FrameDecoder,
    encode,
)
from cpr.errors import LimitError, LocalProtocolError, RemoteProtocolError
from cpr.messages import (
    ANY_PROTOCOL,
    BEFORE_AGREEMENT,
    FDS_PER_FRAME_MAX,
    Accept,
    Commit,
    Failed,
    Fds,
    MessageKind,
    State,
)
from tests.unit.cpr.examples import HELLO, MESSAGES, SECTION

FAILED = Failed("x")
ACCEPT = dataclasses.asdict(Accept(1, "p", "v", deferred=False))


def frame_of(
    body: bytes,
    kind: int = MessageKind.FAILED,
    *,
    magic: bytes = MAGIC,
    version: int | None = None,
    fd_count: int = 0,
    reserved: int = 0,
    size: int | None = None,
    digest: bytes | None = None,
) -> bytes:
    """A frame made by hand, to be wrong in one place."""
    digest = hashlib.blake2b(body, digest_size=16).digest() if digest is None else digest
    size = len(body) if size is None else size
    if version is None:
        version = ANY_PROTOCOL if kind in BEFORE_AGREEMENT else 1
    header = struct.pack(">4sHHHHI16s", magic, version, kind, fd_count, reserved, size, digest)
    return header + body


def decoded(data: bytes) -> list[Any]:
    return list(FrameDecoder().feed(data))


@pytest.mark.parametrize("kind", list(MessageKind))
def test_every_message_comes_back(kind: MessageKind) -> None:
    assert decoded(encode(MESSAGES[kind])) == [MESSAGES[kind]]


@pytest.mark.parametrize("step", [1, 7, HEADER_SIZE_BYTES, 1000])
def test_frames_survive_any_cut(step: int) -> None:
    data = b"".join(encode(message) for message in MESSAGES.values())
    decoder = FrameDecoder()
    found: list[Any] = []
    for start in range(0, len(data), step):
        found += decoder.feed(memoryview(data)[start : start + step])
    assert found == list(MESSAGES.values())
    assert decoder.pending_bytes == 0


def test_frames_are_these_bytes() -> None:
    body = bytes.fromhex("a166726561736f6e6178")  # {"reason": "x"}
    assert encode(FAILED) == frame_of(body, 23)
    assert encode(FAILED)[:16].hex() == "4350524cffff0017000000000000000a"
    assert encode(Commit())[:16].hex() == "4350524c000100050000000000000001"


def test_what_comes_before_an_agreement_is_the_same_in_every_protocol(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = {kind: encode(MESSAGES[kind]) for kind in BEFORE_AGREEMENT}
    monkeypatch.setattr(cpr.codec, "PROTOCOL_MIN", 7)
    monkeypatch.setattr(cpr.codec, "PROTOCOL_MAX", 9)
    for kind, frame in now.items():
        assert encode(MESSAGES[kind], 8) == frame
        assert decoded(frame) == [MESSAGES[kind]]


def test_what_comes_before_an_agreement_may_have_grown() -> None:
    more = {"mood": ["good"]}
    assert decoded(frame_of(cbor2.dumps({"reason": "x"} | more))) == [FAILED]
    hello = _as_map(HELLO)
    hello["sections"] = [section | more for section in hello["sections"]]
    hello["fds"] = [offer | more for offer in hello["fds"]]
    assert decoded(frame_of(cbor2.dumps(hello | more), MessageKind.HELLO)) == [HELLO]


def test_pending_bytes_are_those_of_the_unfinished_frame() -> None:
    data = encode(FAILED)
    decoder = FrameDecoder()
    for received in range(len(data)):
        assert decoder.next_frame() is None
        assert decoder.pending_bytes == received
        decoder.push(data[received : received + 1])
    assert decoder.next_frame() == Frame(FAILED, 0)


def test_a_frame_says_how_many_fds_are_its() -> None:
    decoder = FrameDecoder()
    message = Fds(("ram:ram0:0",))
    decoder.push(encode(message, fd_count=1))
    assert decoder.next_frame() == Frame(message, 1)
    with pytest.raises(RemoteProtocolError, match="FDS announces 1 fds on a stream"):
        FrameDecoder().feed(encode(message, fd_count=1))


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"GET / HTTP/1.1", "does not speak this protocol"),
        (frame_of(b"", magic=b"QCPR"), "does not speak this protocol"),
        (frame_of(b"", version=0), "protocol 0; this build reads 1..1"),
        (frame_of(b"", version=2), "protocol 2; this build reads 1..1"),
        (frame_of(b"", 99), "no message of kind 99"),
        (frame_of(b"", reserved=3), "FAILED: reserved header field is 3"),
        (frame_of(b"", fd_count=1), "FAILED: 1 fds announced; only FDS"),
        (frame_of(b"\xa0", digest=bytes(16)), "FAILED: digest of 1 bytes does not match"),
        (frame_of(b""), "FAILED: body is not plain CBOR"),
        (frame_of(b"\xa0\xa0"), "FAILED: body is plain CBOR with 1 bytes after"),
        (frame_of(b"\x80"), "FAILED: expected map, got list"),
        (frame_of(b"\xa0"), "FAILED: fields missing: reason; fields unknown: none"),
        (
            frame_of(cbor2.dumps(ACCEPT | {"more": 1}), MessageKind.ACCEPT),
            "ACCEPT: fields missing: none; fields unknown: 'more'",
        ),
        (frame_of(b"", version=1), "FAILED came in a frame of protocol 1"),
        (
            frame_of(b"", MessageKind.COMMIT, version=ANY_PROTOCOL),
            "COMMIT came in a frame of protocol 65535",
        ),
        (frame_of(cbor2.dumps({"reason": 1})), "FAILED.reason: expected str, got int"),
    ],
)
def test_a_wrong_frame_is_refused_by_name_and_for_good(data: bytes, problem: str) -> None:
    decoder = FrameDecoder()
    with pytest.raises(RemoteProtocolError, match=problem) as first:
        decoder.feed(data)
    with pytest.raises(RemoteProtocolError) as second:
        decoder.feed(encode(FAILED))
    assert second.value is first.value


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (frame_of(b"", size=CONTROL_SIZE_MAX_BYTES + 1), "FAILED: 1048577 bytes announced"),
        (frame_of(b"", MessageKind.STATE, size=FRAME_SIZE_MAX_BYTES + 1), "STATE: 67108865 bytes"),
        (frame_of(b"", MessageKind.FDS, fd_count=FDS_PER_FRAME_MAX + 1), "FDS: 65 fds"),
    ],
)
def test_limits_hold_before_the_body_is_waited_for(data: bytes, problem: str) -> None:
    with pytest.raises(LimitError, match=problem):
        decoded(data)


def test_state_may_be_larger_than_other_messages() -> None:
    decoder = FrameDecoder()
    decoder.push(frame_of(b"", MessageKind.STATE, size=FRAME_SIZE_MAX_BYTES))
    assert decoder.next_frame() is None


def test_nesting_is_limited() -> None:
    deep: Any = 1
    for _ in range(NESTING_MAX):
        deep = [deep]
    body = {**_as_map(HELLO), "machine": {"deep": deep}}
    with pytest.raises(RemoteProtocolError, match=r"HELLO: body is not plain CBOR: .*nesting"):
        decoded(frame_of(cbor2.dumps(body), MessageKind.HELLO))


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(HELLO)])
def test_every_field_of_hello_is_checked(field: str) -> None:
    body = {**_as_map(HELLO), field: None}
    with pytest.raises(RemoteProtocolError, match=rf"HELLO\.{field}: expected \w+, got NoneType"):
        decoded(frame_of(cbor2.dumps(body), MessageKind.HELLO))


def test_a_field_inside_a_section_is_named() -> None:
    body = _as_map(State((SECTION,), "running", 1, 2))
    body["sections"][0]["version"] = "1"
    with pytest.raises(RemoteProtocolError, match=r"STATE\.sections\[\]\.version: expected int"):
        decoded(frame_of(cbor2.dumps(body), MessageKind.STATE))


@pytest.mark.parametrize(
    ("message", "options", "problem"),
    [
        (FAILED, {"protocol": 2}, "FAILED: asked for protocol 2; this build speaks 1..1"),
        (FAILED, {"fd_count": 1}, "FAILED cannot carry 1 fds"),
        (Fds(()), {"fd_count": 65}, "FDS cannot carry 65 fds"),
        (
            Failed("x" * CONTROL_SIZE_MAX_BYTES),
            {},
            "FAILED has 1048589 bytes; the limit is 1048576",
        ),
    ],
)
def test_we_do_not_send_what_the_peer_would_refuse(
    message: Failed | Fds, options: dict[str, int], problem: str
) -> None:
    with pytest.raises(LocalProtocolError, match=problem):
        encode(message, **options)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_a_damaged_frame_never_raises_anything_else(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(list(MessageKind)))
    frame = bytearray(encode(MESSAGES[kind]))
    position = data.draw(st.integers(0, len(frame) - 1))
    frame[position] ^= data.draw(st.integers(1, 255))
    try:
        found = FrameDecoder().feed(bytes(frame))
    except RemoteProtocolError:
        return
    assert found in ([], [Commit()]) or not dataclasses.fields(found[0])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.sampled_from(list(MessageKind)), st.binary(max_size=64))
def test_a_body_of_garbage_never_raises_anything_else(kind: MessageKind, body: bytes) -> None:
    try:
        FrameDecoder().feed(frame_of(body, kind))
    except RemoteProtocolError:
        return
    assert body == b"\xa0"


def _as_map(message: Any) -> Any:
    return cbor2.loads(encode(message)[HEADER_SIZE_BYTES:])
