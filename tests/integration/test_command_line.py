"""The `vmm` command as a process: exit status, messages on stderr, monitors on standard streams."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DEADLINE_S = 60.0  # generous: start-up is below a second on an idle machine
SMALL_GUEST = ("-accel", "unicorn", "-m", "8M", "-S", "-nodefaults", "-display", "none")


def vmm(
    *arguments: str, stdin: str = "", pass_fds: tuple[int, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run `vmm` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "vmm", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        pass_fds=pass_fds,
        check=False,
    )


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-foo"], "vmm: -foo: invalid option\n"),
        (["-m"], "vmm: -m: requires an argument\n"),
        (
            ["-machine", "foo"],
            'vmm: unsupported machine type: "foo"\nUse -machine help to list supported machines\n',
        ),
        (
            ["-incoming", "foo:bar"],
            "vmm: -incoming foo:bar: unknown migration protocol: foo:bar\n",
        ),
        (
            ["-qmp", "unix:/nonexistent/x,server=on,wait=off", *SMALL_GUEST],
            "vmm: Failed to bind socket to /nonexistent/x: No such file or directory\n",
        ),
    ],
)
def test_a_mistake_is_told_on_stderr_with_exit_status_1(arguments: list[str], message: str) -> None:
    ended = vmm(*arguments)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", message)


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_end_with_success(option: str) -> None:
    ended = vmm(option)
    assert ended.returncode == 0
    assert "cpr-vmm" in ended.stdout
    assert ended.stderr == ""


def test_a_foreign_machine_type_warns_in_one_line() -> None:
    ended = vmm("-machine", "q35", *SMALL_GUEST, "-monitor", "stdio", stdin="quit\n")
    assert ended.returncode == 0
    (warning,) = ended.stderr.splitlines()
    assert warning.startswith("vmm: warning: machine type 'q35'")


def test_qmp_on_standard_streams_serves_a_whole_conversation() -> None:
    requests = (
        '{"execute":"qmp_capabilities"}{"execute":"query-status","id":1}{"execute":"quit","id":2}'
    )
    ended = vmm(*SMALL_GUEST, "-qmp", "stdio", stdin=requests)
    assert ended.returncode == 0
    greeting, negotiated, status, shutdown, last = lines(ended.stdout)
    assert greeting["QMP"]["version"]["qemu"]["major"] == 10
    assert negotiated == {"return": {}}
    assert status == {"return": {"status": "prelaunch", "running": False}, "id": 1}
    assert shutdown["event"] == "SHUTDOWN"
    assert shutdown["data"] == {"guest": False, "reason": "host-qmp-quit"}
    assert last == {"return": {}, "id": 2}


def test_the_human_monitor_on_standard_streams() -> None:
    ended = vmm(*SMALL_GUEST, "-monitor", "stdio", stdin="info status\ncont\ninfo status\nq\n")
    assert ended.returncode == 0
    assert "VM status: paused (prelaunch)" in ended.stdout
    assert "VM status: running" in ended.stdout


def test_a_conversation_on_an_inherited_listening_socket(socket_dir: Path) -> None:
    """What a launcher does: bind first, so that it never has to ask whether the VMM is up."""
    path = socket_dir / "qmp"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(path))
        listener.listen()
        client.connect(str(path))  # served from the backlog
        client.sendall(b'{"execute":"qmp_capabilities"}{"execute":"quit"}')
        fd = listener.fileno()
        ended = vmm(
            *SMALL_GUEST,
            *("-chardev", f"socket,id=q,fd={fd},server=on,wait=off"),
            *("-mon", "chardev=q,mode=control,pretty=on"),
            pass_fds=(fd,),
        )
        assert ended.returncode == 0
        client.settimeout(DEADLINE_S)
        with client.makefile() as stream:
            text = stream.read()
    assert '"host-qmp-quit"' in text
    assert '    "return": {}' in text


def test_our_socket_file_is_removed_at_the_end(socket_dir: Path) -> None:
    path = socket_dir / "qmp"
    ended = vmm(
        *SMALL_GUEST, "-qmp", f"unix:{path},server=on,wait=off", "-monitor", "stdio", stdin="q\n"
    )
    assert ended.returncode == 0
    assert not path.exists()
