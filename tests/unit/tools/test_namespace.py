"""The lab's network namespaces: with root and without, many side by side, gone when closed."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from tools.lab.child import ChildSetup
from tools.lab.errors import LabError
from tools.lab.namespace import NetworkNamespace, TapSpec
from tools.lab.nics import add_nics

ROOT = Path(__file__).parents[3]
NOBODY = 65534
DEADLINE_S = 60
AS_NOBODY = """
import socket
from tools.lab.namespace import NetworkNamespace
with NetworkNamespace.open() as namespace:
    with namespace.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        server.bind(("127.0.0.1", 80))
    import subprocess
    print(subprocess.run(["id", "-u"], preexec_fn=namespace.entrance(), capture_output=True,
                         text=True, check=True).stdout.strip())
"""


@pytest.mark.needs_root
@pytest.mark.needs_readable
def test_user_without_privilege_is_root_in_a_namespace_of_their_own() -> None:
    packages = Path(pytest.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{packages}"}
    done = subprocess.run(
        ["/usr/bin/python3", "-c", AS_NOBODY],
        env=environment,
        cwd="/",
        preexec_fn=ChildSetup(uid=NOBODY).apply,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("0\n", 0), done.stderr


@pytest.mark.needs_tun
@pytest.mark.needs_root
def test_host_reaches_its_own_address_inside_and_nobody_outside_does() -> None:
    with NetworkNamespace.open() as namespace:
        (nic,) = add_nics(namespace, 1, TapSpec(txqueuelen=7))
        assert namespace.counters(nic.ifname).txqueuelen == 7
        with (
            namespace.socket(socket.AF_INET6, socket.SOCK_DGRAM) as inside,
            socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as outside,
        ):
            inside.bind((nic.host_address6, 7777))
            with pytest.raises(OSError, match="assign requested address"):
                outside.bind((nic.host_address6, 7777))


@pytest.mark.needs_root
def test_what_the_kernel_refuses_is_said_and_the_namespace_lives_on() -> None:
    with NetworkNamespace.open() as namespace:
        with pytest.raises(LabError, match="network namespace: counters"):
            namespace.counters("absent")
        namespace.socket(socket.AF_INET, socket.SOCK_DGRAM).close()


@pytest.mark.needs_root
def test_agent_ends_with_the_context() -> None:
    with NetworkNamespace.open() as namespace:
        entrance = namespace.entrance()
    with pytest.raises(subprocess.SubprocessError):
        subprocess.run(["true"], preexec_fn=entrance, check=False)
