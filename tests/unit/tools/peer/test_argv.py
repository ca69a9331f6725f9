from __future__ import annotations

import json
from pathlib import Path

from tools.peer.argv import MIB, Channels, PeerBuild, our_build, peer_argv, qemu_build

CHANNELS = Channels(Path("/run/main.sock"), Path("/run/cpr.sock"))
OURS = our_build(["vmm"], "unicorn")
THEIRS = qemu_build(["qemu", "-L", "/firmware"], "tcg")


def options_of(build: PeerBuild, incoming: Channels | None = None) -> list[str]:
    argv = peer_argv(
        build,
        ram_bytes=64 * MIB,
        floppy=Path("/boot.img"),
        qmp_fd=7,
        incoming=incoming,
    )
    return argv[argv.index("-object") :]


def test_the_two_vmms_differ_in_command_accelerator_and_machine_only() -> None:
    assert options_of(OURS) == options_of(THEIRS)
    assert options_of(OURS, CHANNELS) == options_of(THEIRS, CHANNELS)


def test_both_have_share_on_and_aux_ram_share_which_cpr_transfer_asks_for() -> None:
    argv = peer_argv(THEIRS, ram_bytes=64 * MIB, floppy=Path("/boot.img"), qmp_fd=7, incoming=None)
    assert "pc,memory-backend=ram0,aux-ram-share=on" in argv
    assert f"memory-backend-memfd,id=ram0,size={64 * MIB},share=on" in argv


def test_successor_listens_for_both_channels() -> None:
    options = options_of(OURS, CHANNELS)
    first, second = (at for at, word in enumerate(options) if word == "-incoming")
    assert options[first + 1] == "unix:/run/main.sock"
    assert json.loads(options[second + 1])["addr"]["path"] == "/run/cpr.sock"
