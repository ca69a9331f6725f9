"""The command lines that the lab gives to a VMM."""

from __future__ import annotations

import json
from pathlib import Path

from tools.lab.argv import Build, GuestSpec, Incoming, SerialSocket, migrate_channels, vmm_argv

GUEST = GuestSpec(ram_bytes=256 << 20, vcpu_count=2, pages=100, heartbeat_ms=7)


def option(argv: list[str], name: str) -> list[str]:
    return [argv[index + 1] for index, word in enumerate(argv) if word == name]


def test_first_process_gets_the_guest_and_its_inherited_sockets() -> None:
    argv = vmm_argv(
        Build(("vmm", "--x"), "kvm"),
        GUEST,
        name="gen0",
        qmp_fd=7,
        serial=SerialSocket(Path("/run/serial.sock"), fd=8),
    )
    assert argv[:2] == ["vmm", "--x"]
    assert option(argv, "-name") == ["gen0"]
    assert option(argv, "-accel") == ["kvm"]
    assert option(argv, "-m") == ["size=256M"]
    assert option(argv, "-smp") == ["2"]
    assert option(argv, "-object") == ["memory-backend-memfd,id=ram0,size=268435456,share=on"]
    assert option(argv, "-machine") == ["cpr-1.0,memory-backend=ram0,aux-ram-share=on"]
    assert option(argv, "-chardev") == [
        "socket,id=qmp0,fd=7,server=on,wait=off",
        "socket,id=serial0,fd=8,server=on,wait=on",
    ]
    assert option(argv, "-append") == ["heartbeat_ms=7 pages=100"]
    assert not option(argv, "-incoming")


def test_successor_waits_on_an_inherited_cpr_socket_and_names_the_serial_path() -> None:
    argv = vmm_argv(
        Build(("vmm",)),
        GUEST,
        name="gen1",
        qmp_fd=7,
        serial=SerialSocket(Path("/run/serial.sock")),
        incoming=Incoming(cpr_fd=9, main_path=Path("/run/main.sock")),
        extra=["-S"],
    )
    main, cpr = option(argv, "-incoming")
    assert main == "unix:/run/main.sock"
    assert json.loads(cpr) == {
        "channel-type": "cpr",
        "addr": {"transport": "socket", "type": "fd", "str": "9"},
    }
    assert option(argv, "-global") == ["migration.x-events=on"]
    assert "socket,id=serial0,path=/run/serial.sock,server=on,wait=off" in argv
    assert not option(argv, "-accel")
    assert argv[-1] == "-S"


def test_all_ram_is_stamped_when_no_page_limit_is_given() -> None:
    assert GuestSpec(ram_bytes=1 << 20).append == "heartbeat_ms=20"


def test_migrate_arguments_name_both_channels() -> None:
    arguments = migrate_channels(Path("/run/cpr"), Path("/run/main"))
    assert arguments == {
        "channels": [
            {
                "channel-type": "main",
                "addr": {"transport": "socket", "type": "unix", "path": "/run/main"},
            },
            {
                "channel-type": "cpr",
                "addr": {"transport": "socket", "type": "unix", "path": "/run/cpr"},
            },
        ]
    }
