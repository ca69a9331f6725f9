"""Addresses in their three spellings; the texts are QEMU's (facts, qemu-fds-and-files 2.2, 2.3)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.config import (
    ChannelType,
    ExecAddress,
    FileAddress,
    MigrationAddress,
    MigrationChannel,
    SocketFd,
    SocketInet,
    SocketUnix,
    SocketVsock,
)
from vmm.errors import MigrationError
from vmm.migration.addresses import (
    MIGRATION_CHANNEL,
    address_from_qmp,
    channel_from_qmp,
    describe,
    is_uri,
    parse_channel,
    parse_uri,
    socket_to_qmp,
    to_qmp,
)
from vmm.qapi import check


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("tcp:host:123", SocketInet("host", "123")),
        ("tcp::123", SocketInet("", "123")),
        ("tcp:[fe80::1]:5", SocketInet("fe80::1", "5")),
        ("tcp:h:p,ipv4=on,keep-alive=off", SocketInet("h", "p")),
        ("tcp:h:p,ipv4", SocketInet("h", "p")),
        ("unix:/a,b=c", SocketUnix("/a,b=c")),
        ("vsock:3:1024", SocketVsock("3", "1024")),
        ("vsock:1:2:3", SocketVsock("1", "2:3")),
        ("fd:name", SocketFd("name")),
        ("exec:cat > 'x y'", ExecAddress(("/bin/sh", "-c", "cat > 'x y'"))),
        ("file:/f", FileAddress("/f")),
        ("file:/f,offset=0x1000", FileAddress("/f", 0x1000)),
        ("file:/f,offset=2M", FileAddress("/f", 2 << 20)),
        ("file:/f,g=h", FileAddress("/f,g=h")),
    ],
)
def test_uris(uri: str, address: MigrationAddress) -> None:
    assert is_uri(uri)
    assert parse_uri(uri) == address


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        ("foo:bar", "unknown migration protocol: foo:bar"),
        ("", "unknown migration protocol: "),
        ("defer", "unknown migration protocol: defer"),
        ("rdma:h:1", "unknown migration protocol: rdma:h:1"),
        ("unix:", "invalid Unix socket address"),
        ("fd:", "invalid file descriptor address"),
        ("tcp:foo", "error parsing address 'foo'"),
        ("tcp::", "error parsing port in address ':'"),
        ("tcp:[::1", "error parsing IPv6 address '[::1'"),
        (f"tcp:{'h' * 65}:1", f"error parsing address '{'h' * 65}:1'"),
        (f"tcp:h:{'1' * 33}", f"error parsing address 'h:{'1' * 33}'"),
        ("tcp:h:p,ipv4=zz", "error parsing 'ipv4' flag '=zz'"),
        ("unix:a\0b", "invalid Unix socket address"),
        (f"tcp:h:p,to={'1' * 5000}", "error parsing to= argument"),
        ("tcp:h:p,to=x", "error parsing to= argument"),
        ("tcp:h:p,zz=1", "error parsing address 'h:p,zz=1'"),
        ("vsock:1", "error parsing address '1'"),
        ("file:x,offset=0x20M", "file URI has bad offset 0x20M: Invalid argument"),
        ("file:x,offset=zz", "file URI has bad offset zz: Invalid argument"),
        ("file:x,offset=-1", "file URI has bad offset -1: Numerical result out of range"),
        ("file:x,offset=16E", "file URI has bad offset 16E: Numerical result out of range"),
    ],
)
def test_bad_uris_get_qemus_text(uri: str, text: str) -> None:
    with pytest.raises(MigrationError) as caught:
        parse_uri(uri)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("text", "channel"),
    [
        (
            "main,addr.transport=socket,addr.type=unix,addr.path=/p",
            MigrationChannel(ChannelType.MAIN, SocketUnix("/p")),
        ),
        (
            "channel-type=cpr,addr.transport=socket,addr.type=fd,addr.str=7",
            MigrationChannel(ChannelType.CPR, SocketFd("7")),
        ),
        (
            "main,addr.transport=socket,addr.type=inet,addr.host=h,addr.port=1,addr.ipv4=on",
            MigrationChannel(ChannelType.MAIN, SocketInet("h", "1")),
        ),
        (
            "main,addr.transport=exec,addr.args.0=a,addr.args.1=b",
            MigrationChannel(ChannelType.MAIN, ExecAddress(("a", "b"))),
        ),
        (
            "main,addr.transport=file,addr.filename=f,addr.offset=0x10",
            MigrationChannel(ChannelType.MAIN, FileAddress("f", 16)),
        ),
        (
            '{"channel-type":"cpr","addr":{"transport":"socket","type":"unix","path":"/p"}}',
            MigrationChannel(ChannelType.CPR, SocketUnix("/p")),
        ),
        (
            "{'channel-type':'main','addr':{'transport':'socket','type':'vsock','cid':'1',"
            "'port':'2'}}",
            MigrationChannel(ChannelType.MAIN, SocketVsock("1", "2")),
        ),
    ],
)
def test_channels_in_dotted_and_json_form(text: str, channel: MigrationChannel) -> None:
    assert parse_channel(text) == channel


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("foo", "Parameter 'channel-type' does not accept value 'foo'"),
        ("", "Parameter 'channel-type' is missing"),
        ("addr.transport=file,addr.filename=x", "Parameter 'channel-type' is missing"),
        ("main,addr.transport=zz", "Parameter 'transport' does not accept value 'zz'"),
        ("main,addr.transport=socket", "Parameter 'addr.type' is missing"),
        ("main,addr.transport=socket,addr.type=unix", "Parameter 'addr.path' is missing"),
        ('{"channel-type":"main"}', "Parameter 'addr' is missing"),
        ("{", "JSON parse error, premature EOI"),
        ("main,addr=x", "Invalid parameter type for 'addr', expected: object"),
        (
            "main,addr.transport=file,addr.filename=x",
            "Parameter 'addr.offset' is missing",
        ),
        (
            "main,addr.transport=file,addr.filename=x,addr.offset=zz",
            "Parameter 'addr.offset' expects integer",
        ),
        (
            "main,addr.transport=socket,addr.type=unix,addr.path=x,addr.zz=1",
            "Parameter 'addr.zz' is unexpected",
        ),
        (
            "main,addr.transport=exec,addr.args.0=x,addr.args.2=y",
            "Parameter 'addr.args.1' missing",
        ),
        (
            "main,addr.transport=socket,addr.type=unix,addr.path=",
            "invalid Unix socket address",
        ),
    ],
)
def test_bad_channels_get_qemus_text(text: str, message: str) -> None:
    with pytest.raises(MigrationError) as caught:
        parse_channel(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("address", "fragment"),
    [
        ({"transport": "exec", "args": []}, "at least one argument"),
        ({"transport": "socket", "type": "unix", "path": "x", "abstract": True}, "abstract"),
        ({"transport": "socket", "type": "inet", "host": "h", "port": "1", "to": 9}, "'to'"),
        (
            {"transport": "socket", "type": "inet", "host": "h", "port": "1", "mptcp": True},
            "mptcp=on",
        ),
        (
            {"transport": "socket", "type": "inet", "host": "h", "port": "1", "ipv4": False},
            "ipv4=off",
        ),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(
    address: dict[str, Any], fragment: str
) -> None:
    with pytest.raises(MigrationError, match=fragment):
        address_from_qmp(address)


_TEXT = st.text(min_size=1, max_size=20)
_ADDRESSES = st.one_of(
    st.builds(SocketUnix, st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=20)),
    st.builds(SocketInet, _TEXT, _TEXT),
    st.builds(SocketVsock, _TEXT, _TEXT),
    st.builds(SocketFd, _TEXT),
    st.builds(ExecAddress, st.lists(_TEXT, min_size=1, max_size=4).map(tuple)),
    st.builds(FileAddress, _TEXT, st.integers(0, (1 << 64) - 1)),
)


@given(_ADDRESSES, st.sampled_from(ChannelType))
def test_an_address_survives_json_and_its_schema(
    address: MigrationAddress, kind: ChannelType
) -> None:
    channel = {"channel-type": kind.value, "addr": to_qmp(address)}
    clean = check(MIGRATION_CHANNEL, json.loads(json.dumps(channel)))
    assert channel_from_qmp(clean) == MigrationChannel(kind, address)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (SocketUnix("/p"), "/p"),
        (SocketInet("h", "1"), "h:1"),
        (SocketVsock("2", "3"), "vsock:2:3"),
        (SocketFd("n"), "fd:n"),
        (ExecAddress(("a", "b")), "a b"),
        (FileAddress("/f", 3), "/f"),
    ],
)
def test_addresses_are_shown_as_people_write_them(address: MigrationAddress, shown: str) -> None:
    assert describe(address) == shown


def test_a_listening_address_is_shown_as_query_migrate_does() -> None:
    assert socket_to_qmp(SocketUnix("/p")) == {"type": "unix", "path": "/p"}
