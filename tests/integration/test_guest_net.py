"""The built-in guest's network stack against Linux's own, over a real tap.

The stack is compiled into an ordinary process (tests/guests/net_host.c), so what fails here is the
stack and nothing of the VMM. `loss=20` drops one frame of twenty each way, always the same ones.
"""

from __future__ import annotations

import hashlib
import random
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.framework.tap_thread import GUEST_IP4, GUEST_IP6, HOST_IP4, TapThread
from vmm.boot.guest import net_report
from vmm.boot.guest.net_report import FlowPayload, NetReport, byte_source, parse_net
from vmm.boot.guest.report import SLOT_SIZE_BYTES

pytestmark = pytest.mark.needs_tun

REPO = Path(__file__).parents[2]
GUEST = REPO / "vmm/boot/guest"
STACK = ("wire", "input", "udp", "flow", "tcp", "tcp_out", "stream")
BUILD_DEADLINE_S = 100
REPLY_DEADLINE_S = 60.0  # TCP after several losses of one segment waits for seconds
SIZE_BYTES = 300_000
FAMILIES = pytest.mark.parametrize(
    ("family", "address"),
    [(socket.AF_INET, GUEST_IP4), (socket.AF_INET6, GUEST_IP6)],
    ids=["IPv4", "IPv6"],
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("net") / "net_host"
    sources = [GUEST / f"net_{name}.c" for name in STACK]
    sources += [GUEST / "cmdline.c", REPO / "tests/guests/net_host.c"]
    flags = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-fno-strict-aliasing"]
    flags += ["-fsanitize=undefined", "-fno-sanitize-recover", "-fno-sanitize=alignment"]
    subprocess.run(
        ["gcc", *flags, f"-I{GUEST}", "-o", path, *sources], check=True, timeout=BUILD_DEADLINE_S
    )
    return path


class Guest:
    """The stack as a process, with sockets of the namespace that it is in."""

    def __init__(self, net: TapThread, process: subprocess.Popen[str]) -> None:
        self.net, self._process = net, process

    def udp(self, family: int = socket.AF_INET) -> socket.socket:
        sock = self.net.socket(family, socket.SOCK_DGRAM)
        sock.settimeout(REPLY_DEADLINE_S)
        return sock

    def connect(self, address: str, port: int) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = self.net.socket(family, socket.SOCK_STREAM)
        sock.settimeout(REPLY_DEADLINE_S)
        try:
            sock.connect((address, port))
        except OSError:
            sock.close()
            raise
        return sock

    def end(self) -> NetReport:
        words, _ = self._process.communicate("", timeout=REPLY_DEADLINE_S)
        assert self._process.returncode == 0
        slot = bytearray(SLOT_SIZE_BYTES)
        data = b"".join(int(word).to_bytes(8, "little") for word in words.split())
        start = net_report.NET_REPORT_OFFSET
        slot[start : start + len(data)] = data
        report = parse_net(bytes(slot))
        assert report is not None
        return report


StartGuest = Callable[..., AbstractContextManager[Guest]]


@pytest.fixture
def start(program: Path) -> StartGuest:
    """Start the stack: `start(words of the command line, loss=one in so many)`."""

    @contextmanager
    def start(words: str = "", loss: int = 0) -> Iterator[Guest]:
        options = f"ip={GUEST_IP4}/24 ip6={GUEST_IP6} {words}"
        with TapThread() as net:
            argv = [str(program), str(net.tap_fd), str(loss), options]
            with subprocess.Popen(
                argv,
                pass_fds=[net.tap_fd],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            ) as process:
                try:
                    yield Guest(net, process)
                finally:
                    process.kill()

    return start


def read_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(1 << 16), b""))


def send_and_read_back(sock: socket.socket, data: bytes) -> bytes:
    """Send from a thread and finish our side; everything that the peer sends until it finishes."""

    def send() -> None:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        return read_all(sock)
    finally:
        sender.join()


@FAMILIES
@pytest.mark.needs_assembler
def test_datagrams_come_back_unchanged_and_the_guest_counts_them(
    start: StartGuest, family: int, address: str
) -> None:
    with start() as guest, guest.udp(family) as sock:
        for sequence in range(50):
            sent = FlowPayload(1, 3, sequence, 0).pack() + b"x" * sequence
            sock.sendto(sent, (address, net_report.PORT_ECHO))
            assert sock.recv(2000) == sent
        report = guest.end()
    flow = report.flow(1, run=3)
    assert flow is not None
    assert (flow.received, flow.next_sequence) == (50, 50)
    assert (flow.missing, flow.duplicated, flow.reordered) == (0, 0, 0)
    assert report.rx_damaged == 0


@pytest.mark.needs_assembler
def test_the_guest_sees_what_is_lost_late_and_repeated(start: StartGuest) -> None:
    with start() as guest, guest.udp() as sock:
        for sequence in (0, 1, 4, 2, 2, 5):
            sent = FlowPayload(2, 1, sequence, 0).pack()
            sock.sendto(sent, (GUEST_IP4, net_report.PORT_ECHO))
            assert sock.recv(2000) == sent
        flow = guest.end().flow(2, run=1)
    assert flow is not None
    assert (flow.received, flow.missing, flow.duplicated, flow.reordered) == (6, 1, 1, 1)


@FAMILIES
@pytest.mark.needs_assembler
def test_echo_returns_every_byte_and_closes_after_us(
    start: StartGuest, family: int, address: str
) -> None:
    data = random.Random(family).randbytes(SIZE_BYTES)
    with start() as guest:
        with guest.connect(address, net_report.PORT_ECHO) as sock:
            back = send_and_read_back(sock, data)
        report = guest.end()
    assert hashlib.sha256(back).digest() == hashlib.sha256(data).digest()
    assert (report.tcp_opened, report.tcp_closed, report.tcp_resets) == (1, 1, 0)
    assert (report.tcp_bytes_in, report.tcp_bytes_out) == (SIZE_BYTES, SIZE_BYTES)


@FAMILIES
@pytest.mark.needs_assembler
def test_echo_is_exact_over_a_link_that_loses_one_frame_in_twenty(
    start: StartGuest, family: int, address: str
) -> None:
    data = random.Random(family).randbytes(SIZE_BYTES)
    with start(loss=20) as guest:
        with guest.connect(address, net_report.PORT_ECHO) as sock:
            back = send_and_read_back(sock, data)
        report = guest.end()
    assert hashlib.sha256(back).digest() == hashlib.sha256(data).digest()
    assert report.tcp_out_of_order > 0
    assert report.tcp_resets == 0


def read_source(guest: Guest, size_bytes: int) -> bytes:
    with guest.connect(GUEST_IP4, net_report.PORT_SOURCE) as sock:
        data = b""
        while len(data) < size_bytes:
            data += sock.recv(1 << 16)
        sock.shutdown(socket.SHUT_WR)
        return data + read_all(sock)


@pytest.mark.parametrize("loss", [0, 20], ids=["no loss", "one frame in twenty lost"])
@pytest.mark.needs_assembler
def test_byte_source_arrives_exact(start: StartGuest, loss: int) -> None:
    with start(loss=loss) as guest:
        data = read_source(guest, SIZE_BYTES)
        report = guest.end()
    assert data == byte_source(0, len(data))
    assert (report.tcp_retransmits > 0) == bool(loss)
    assert report.tcp_resets == 0


@pytest.mark.parametrize("loss", [0, 40], ids=["no loss", "one frame in forty lost"])
@pytest.mark.needs_assembler
def test_discard_takes_and_checks_every_byte(start: StartGuest, loss: int) -> None:
    size = 150_000 if loss else SIZE_BYTES
    with start(loss=loss) as guest:
        with guest.connect(GUEST_IP4, net_report.PORT_DISCARD) as sock:
            assert send_and_read_back(sock, byte_source(0, size)) == b""
        report = guest.end()
    assert (report.tcp_bytes_in, report.tcp_pattern_errors) == (size, 0)


@pytest.mark.needs_assembler
def test_wrong_byte_is_seen_by_the_guest(start: StartGuest) -> None:
    data = bytearray(byte_source(0, 4000))
    data[3000] ^= 1
    with start() as guest:
        with guest.connect(GUEST_IP4, net_report.PORT_DISCARD) as sock:
            assert send_and_read_back(sock, bytes(data)) == b""
        assert guest.end().tcp_pattern_errors == 1


@pytest.mark.needs_assembler
def test_guest_begins_flows_of_its_own(start: StartGuest) -> None:
    words = f"udp={HOST_IP4}:5000:100 tcp={HOST_IP4}:5001"
    with start(words) as guest, guest.udp() as datagrams:
        listener = guest.net.socket(socket.AF_INET, socket.SOCK_STREAM)
        with listener:
            listener.settimeout(REPLY_DEADLINE_S)
            listener.bind((HOST_IP4, 5001))
            listener.listen()
            datagrams.bind((HOST_IP4, 5000))
            payloads = [FlowPayload.unpack(datagrams.recv(2000)) for _ in range(20)]
            stream, _peer = listener.accept()
        with stream:
            stream.settimeout(REPLY_DEADLINE_S)
            total = 0
            while total < 100_000:
                data = stream.recv(4096)
                assert data == byte_source(total, len(data))
                stream.sendall(data)  # the guest checks its echo
                total += len(data)
            stream.shutdown(socket.SHUT_WR)
            rest = read_all(stream)
        report = guest.end()
    assert rest == byte_source(total, len(rest))
    sequences = [payload.sequence for payload in payloads if payload]
    assert sequences == list(range(sequences[0], sequences[0] + 20))
    assert (report.tcp_bytes_in, report.tcp_pattern_errors) == (total, 0)


@pytest.mark.needs_assembler
def test_port_without_service_refuses_the_connection(start: StartGuest) -> None:
    with start() as guest, pytest.raises(ConnectionRefusedError):
        guest.connect(GUEST_IP4, 22)
