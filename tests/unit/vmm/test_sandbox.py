"""What a confined process cannot do any more, tried in processes made for the purpose."""

from __future__ import annotations

import subprocess
import sys

import pytest

from vmm import sandbox
from vmm.cli import parse_args
from vmm.config import SandboxOptions
from vmm.errors import SandboxError

# Prints the errno of each call, or "allowed".
ATTEMPT = """
import ctypes, os, sys, threading
from vmm.config import SandboxOptions
from vmm.sandbox import confine_process, confine_vcpu_thread
libc = ctypes.CDLL(None, use_errno=True)
options = SandboxOptions({options})
confine_process(options)
def attempt():
    try:
        result = {call}
    except OSError as error:
        print(os.strerror(error.errno))
    except RuntimeError as error:
        print(error)
    else:
        print("allowed" if result is None or result >= 0 else os.strerror(ctypes.get_errno()))
def on_a_vcpu():
    confine_vcpu_thread(options)
    attempt()
if {vcpu}:
    thread = threading.Thread(target=on_a_vcpu)
    thread.start()
    thread.join()
else:
    attempt()
"""
DENIED, ALLOWED = "Operation not permitted", "allowed"

EXECVE = 'os.execv("/bin/true", ["true"])'
FORK = "(lambda pid: pid or os._exit(0))(os.fork())"
PTRACE = "libc.ptrace(0, 0, 0, 0)"
MOUNT = 'libc.mount(b"none", b"/nowhere", b"tmpfs", 0, 0)'
UNSHARE = "libc.unshare(0x20000000)"
SETUID = "os.setuid(os.getuid())"
AFFINITY = "os.sched_setaffinity(0, os.sched_getaffinity(0))"
POLICY = "os.sched_setparam(0, os.sched_param(0))"
LIMIT = "__import__('resource').setrlimit(4, __import__('resource').getrlimit(4))"
NICE = "os.setpriority(0, 0, 19)"
OPEN = 'os.close(os.open("/dev/null", os.O_RDONLY))'
SOCKET = "__import__('socket').socket().close()"
THREAD = "threading.Thread(target=int).start()"


def attempted(call: str, options: str = "", *, vcpu: bool = False) -> str:
    script = ATTEMPT.format(call=call, options=options, vcpu=vcpu)
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout.strip().splitlines()[0]


@pytest.mark.parametrize("call", [EXECVE, FORK, PTRACE, MOUNT, UNSHARE, SETUID])
def test_what_a_vmm_never_does_is_refused(call: str) -> None:
    assert attempted(call) == DENIED


@pytest.mark.parametrize("call", [NICE, OPEN, SOCKET, THREAD, AFFINITY, LIMIT])
def test_what_a_vmm_does_goes_on(call: str) -> None:
    assert attempted(call) == ALLOWED


@pytest.mark.parametrize(
    ("call", "options", "result"),
    [
        (FORK, "deny_spawn=False", ALLOWED),
        (SETUID, "deny_elevate_privileges=False", ALLOWED),
        (POLICY, "deny_resource_control=True", DENIED),
        (AFFINITY, "deny_resource_control=True", ALLOWED),
        (NICE, "deny_resource_control=True", ALLOWED),
        (PTRACE, "enabled=False", ALLOWED),
        (PTRACE, "deny_spawn=False, deny_elevate_privileges=False", DENIED),
    ],
)
def test_each_group_can_be_allowed_or_denied(call: str, options: str, result: str) -> None:
    assert attempted(call, options) == result


@pytest.mark.parametrize("call", [OPEN, SOCKET, THREAD, EXECVE, PTRACE, NICE, AFFINITY])
def test_a_vcpu_thread_opens_connects_and_starts_nothing(call: str) -> None:
    said = attempted(call, vcpu=True)
    assert said == (DENIED if call != THREAD else "can't start new thread")


def test_a_vcpu_thread_of_a_process_without_sandbox_keeps_what_it_may() -> None:
    assert attempted(OPEN, "enabled=False", vcpu=True) == ALLOWED


def test_without_the_library_there_is_an_error_and_not_a_process_without_a_filter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pyseccomp", None)
    with pytest.raises(SandboxError, match=r"install it .*libseccomp2.* or use -sandbox off"):
        sandbox.confine_vcpu_thread(SandboxOptions())


def options_of(*words: str) -> SandboxOptions:
    return parse_args(words).sandbox


def test_sandbox_is_on_unless_it_is_switched_off() -> None:
    assert options_of().enabled
    assert options_of("-sandbox", "on") == SandboxOptions()
    assert not options_of("-sandbox", "off").enabled


def test_groups_are_spelled_as_qemu_spells_them() -> None:
    text = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
    assert options_of("-sandbox", text) == SandboxOptions(deny_resource_control=True)
    text = "on,obsolete=allow,elevateprivileges=children,spawn=allow,resourcecontrol=allow"
    assert options_of("-sandbox", text) == SandboxOptions(
        deny_obsolete=False, deny_elevate_privileges=False, deny_spawn=False
    )


def test_scripts_of_a_tap_may_run_unless_the_user_forbids_it() -> None:
    tap = ("-netdev", "tap,id=n0,ifname=t0,script=/bin/true,downscript=no")
    assert not options_of(*tap).deny_spawn
    assert options_of(*tap, "-sandbox", "on,spawn=deny").deny_spawn
    assert options_of("-netdev", "tap,id=n0,ifname=t0,script=no,downscript=no").deny_spawn
