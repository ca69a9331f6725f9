from __future__ import annotations

import os
from pathlib import Path
from uuid import UUID

import pytest

from vmm.cli import parse_args
from vmm.config import (
    AccelOptions,
    Chardev,
    ChardevKind,
    DebugConsoleDevice,
    DebugExitDevice,
    ExecAddress,
    FileAddress,
    FloppyImage,
    IncomingConfig,
    InheritedFd,
    LoaderDevice,
    MemoryBackend,
    MigrationAddress,
    Monitor,
    MonitorMode,
    SocketFd,
    SocketInet,
    SocketUnix,
    VmmConfig,
)

MIB = 1 << 20
CPR_UNIX = '{"channel-type":"cpr","addr":{"transport":"socket","type":"unix","path":"/c,1"}}'


def parse(line: str) -> VmmConfig:
    return parse_args(line.split())


def test_no_options_give_the_documented_defaults() -> None:
    assert parse_args([]) == VmmConfig()


def test_the_command_line_of_the_facts_is_understood_whole() -> None:
    config = parse_args(
        [
            *("-machine", "q35,aux-ram-share=on,memory-backend=ram0"),
            *("-object", "memory-backend-memfd,id=ram0,size=4G,share=on", "-m", "4G"),
            *("-qmp", "unix:new.qmp,server=on,wait=off"),
            *("-incoming", "unix:/run/vm/main.sock", "-incoming", CPR_UNIX),
        ]
    )
    assert config.machine.memory_backend == "ram0"
    assert config.machine.aux_ram_share
    assert config.memory_size_bytes == 4 << 30
    assert config.ram_backends() == (MemoryBackend("ram0", "memfd", 4 << 30, share=True),)
    assert config.incoming == IncomingConfig(SocketUnix("/run/vm/main.sock"), SocketUnix("/c,1"))
    assert config.monitors == (Monitor("compat_monitor0", MonitorMode.CONTROL),)
    assert config.chardevs == (
        Chardev("compat_monitor0", ChardevKind.SOCKET, Path("new.qmp"), server=True, wait=False),
    )


def test_what_orchestrators_habitually_pass_is_accepted_without_a_warning() -> None:
    config = parse_args(
        [
            *("-nodefaults", "-display", "none", "-no-user-config", "-no-reboot", "-no-shutdown"),
            *("-msg", "timestamp=on", "-global", "migration.x-events=on", "-name", "g"),
            *("-vga", "none", "-parallel", "none", "-boot", "strict=on", "-rtc", "base=utc"),
            *("-overcommit", "mem-lock=off", "-sandbox", "off", "-machine", "cpr,usb=off"),
            *("-net", "none", "-nic", "none", "-L", "/x", "-k", "de", "-audio", "none"),
        ]
    )
    assert config.warnings == ()
    assert config.no_reboot
    assert config.no_shutdown
    assert config.timestamps
    assert config.migration_globals == {"x-events": "on"}


@pytest.mark.parametrize("dashes", ["-", "--"])
def test_both_dashes_are_accepted(dashes: str) -> None:
    assert parse_args([f"{dashes}m", "64M", f"{dashes}S"]).start_paused


@pytest.mark.parametrize(
    ("line", "size"),
    [
        ("-m 64", 64 * MIB),
        ("-m 64M", 64 * MIB),
        ("-m size=1G", 1 << 30),
        ("-m 0", 128 * MIB),
        ("-m 64M,maxmem=64M", 64 * MIB),
        ("-m 1.5G", 1536 * MIB),
        ("-m 1k", 8 << 10),
        ("-object memory-backend-memfd,id=r,size=32M -machine memory-backend=r", 32 * MIB),
    ],
)
def test_memory_sizes(line: str, size: int) -> None:
    assert parse(line).memory_size_bytes == size


@pytest.mark.parametrize(
    ("text", "backend"),
    [
        ("memory-backend-memfd,id=r,size=1M", MemoryBackend("r", "memfd", MIB, share=True)),
        (
            "memory-backend-memfd,id=r,size=1M,share=off,seal=no,prealloc=yes",
            MemoryBackend("r", "memfd", MIB, share=False, seal=False, prealloc=True),
        ),
        (
            "memory-backend-memfd,id=r,size=4M,hugetlb=on,hugetlbsize=2M",
            MemoryBackend(
                "r", "memfd", 4 * MIB, share=True, hugetlb=True, hugetlb_size_bytes=2 * MIB
            ),
        ),
        ("memory-backend-ram,id=r,size=1M", MemoryBackend("r", "ram", MIB, share=False)),
        ("memory-backend-ram,id=r,size=1M,share=on", MemoryBackend("r", "ram", MIB, share=True)),
        (
            '{"qom-type":"memory-backend-memfd","id":"r","size":1048576,"share":true}',
            MemoryBackend("r", "memfd", MIB, share=True),
        ),
        (
            "memory-backend-memfd,id=r,size=1M,merge=off,dump=off,reserve=on,prealloc-threads=4,"
            "policy=default",
            MemoryBackend("r", "memfd", MIB, share=True),
        ),
    ],
)
def test_memory_back_ends(text: str, backend: MemoryBackend) -> None:
    assert parse_args(["-object", text]).memory_backends == (backend,)


def test_ram_of_several_back_ends_keeps_their_order() -> None:
    config = parse(
        "-m 96M -object memory-backend-memfd,id=a,size=64M "
        "-object memory-backend-memfd,id=b,size=32M -numa node,memdev=b -numa node,memdev=a"
    )
    assert [backend.id for backend in config.ram_backends()] == ["b", "a"]


@pytest.mark.parametrize("name", ["cpr", "cpr-1.0", "type=cpr"])
def test_our_machine_types_are_canonical_without_a_warning(name: str) -> None:
    config = parse(f"-machine {name}")
    assert config.machine.type_name == "cpr-1.0"
    assert config.warnings == ()


@pytest.mark.parametrize("name", ["pc", "q35", "microvm", "pc-i440fx-10.0", "pc-q35-9.2"])
def test_qemus_machine_types_are_aliases_with_one_warning_line(name: str) -> None:
    config = parse(f"-M {name}")
    assert config.machine.type_name == "cpr-1.0"
    assert len(config.warnings) == 1
    assert name in config.warnings[0]
    assert "\n" not in config.warnings[0]


def test_machine_options_merge_and_the_last_counts() -> None:
    config = parse("-machine pc,kernel-irqchip=on -machine cpr,suppress-vmdesc=on")
    assert config.machine.type_name == "cpr-1.0"
    assert config.machine.kernel_irqchip


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("", ("kvm", "unicorn")),
        ("-accel kvm", ("kvm",)),
        ("-accel unicorn -accel kvm", ("unicorn", "kvm")),
        ("-enable-kvm", ("kvm",)),
        ("-machine cpr,accel=unicorn:kvm", ("unicorn", "kvm")),
        ("-accel tcg,thread=multi", ("unicorn",)),
    ],
)
def test_accelerators_are_tried_in_the_order_given(line: str, names: tuple[str, ...]) -> None:
    assert tuple(accel.name for accel in parse(line).accels) == names


def test_accelerator_properties_reach_the_accelerator() -> None:
    config = parse("-accel kvm,dirty-ring-size=4096,kernel-irqchip=on")
    assert config.accels == (AccelOptions("kvm", {"dirty-ring-size": "4096"}),)
    assert config.machine.kernel_irqchip


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("2", 2),
        ("cpus=3", 3),
        ("4,sockets=2", 4),
        ("2,sockets=1,cores=2,threads=1", 2),
        ("sockets=1,cores=2,threads=2", 4),
        ("maxcpus=4", 4),
        ("4,maxcpus=4", 4),
    ],
)
def test_vcpu_counts(text: str, count: int) -> None:
    assert parse(f"-smp {text}").vcpu_count == count


def test_names_and_identity() -> None:
    config = parse_args(
        [
            *("-name", "guest=a,,b,debug-threads=on,process=p"),
            *("-uuid", "550e8400-e29b-41d4-a716-446655440000"),
            *("-pidfile", "/run/p", "-cpu", "host,migratable=on"),
        ]
    )
    assert config.name == "a,b"
    assert config.uuid == UUID("550e8400-e29b-41d4-a716-446655440000")
    assert config.pidfile == Path("/run/p")
    assert config.cpu_model == "host"


@pytest.mark.parametrize(
    ("text", "chardev"),
    [
        ("stdio", Chardev("serial0", ChardevKind.STDIO)),
        ("null", Chardev("serial0", ChardevKind.NULL)),
        ("vc", Chardev("serial0", ChardevKind.NULL)),
        ("pty", Chardev("serial0", ChardevKind.PTY)),
        ("file:/a,b", Chardev("serial0", ChardevKind.FILE, Path("/a,b"))),
        (
            "unix:/s,server,nowait",
            Chardev("serial0", ChardevKind.SOCKET, Path("/s"), server=True, wait=False),
        ),
        ("unix:/s,server=on", Chardev("serial0", ChardevKind.SOCKET, Path("/s"), server=True)),
        ("unix:/s", Chardev("serial0", ChardevKind.SOCKET, Path("/s"))),
    ],
)
def test_serial_devices(text: str, chardev: Chardev) -> None:
    config = parse(f"-serial {text}")
    assert config.chardevs == (chardev,)
    assert config.serials == ("serial0",)


def test_serial_ports_keep_their_order_and_none_makes_none() -> None:
    config = parse("-chardev null,id=c -serial none -serial null -serial chardev:c")
    assert config.serials == ("serial1", "c")


def test_a_multiplexed_serial_port_is_a_plain_one_with_a_warning() -> None:
    config = parse("-serial mon:stdio")
    assert config.chardevs == (Chardev("serial0", ChardevKind.STDIO),)
    assert "multiplexing" in config.warnings[0]


def test_nographic_puts_the_serial_port_on_stdio_unless_one_is_given() -> None:
    assert parse("-nographic").chardevs == (Chardev("serial0", ChardevKind.STDIO),)
    assert parse("-nographic -serial none").chardevs == ()


def test_monitors_of_every_spelling() -> None:
    config = parse(
        "-chardev socket,id=q,fd=3,server=on,wait=off -mon chardev=q,mode=control,pretty=on "
        "-qmp unix:a,server=on,wait=off -qmp-pretty unix:b,server=on,wait=off -monitor stdio "
        "-monitor none"
    )
    assert config.monitors == (
        Monitor("q", MonitorMode.CONTROL, pretty=True),
        Monitor("compat_monitor1", MonitorMode.CONTROL),
        Monitor("compat_monitor2", MonitorMode.CONTROL, pretty=True),
        Monitor("compat_monitor3", MonitorMode.READLINE),
    )
    assert config.chardevs[0] == Chardev("q", ChardevKind.SOCKET, fd=3, server=True, wait=False)


@pytest.mark.parametrize(
    ("text", "loader"),
    [
        ("loader,file=x,addr=0x1000,cpu-num=0", LoaderDevice(Path("x"), 0x1000, 0)),
        ("loader,file=x,force-raw=on", LoaderDevice(Path("x"), force_raw=True)),
        ("loader,addr=4,data=0xff,data-len=4", LoaderDevice(None, 4, None, 0xFF, 4)),
        ('{"driver":"loader","file":"x","addr":16}', LoaderDevice(Path("x"), 16)),
    ],
)
def test_loader_devices(text: str, loader: LoaderDevice) -> None:
    assert parse_args(["-device", text]).loaders == (loader,)


def test_other_devices() -> None:
    config = parse(
        "-device isa-debug-exit -device isa-debug-exit,iobase=0xf4,iosize=4 "
        "-chardev null,id=c -device isa-debugcon,iobase=0x402,chardev=c "
        "-chardev null,id=d -device isa-serial,chardev=d"
    )
    assert config.debug_exits == (DebugExitDevice(), DebugExitDevice(0xF4, 4))
    assert config.debug_consoles == (DebugConsoleDevice("c", 0x402),)
    assert config.serials == ("d",)


@pytest.mark.parametrize(
    "line", ["-fda boot.img", "-drive if=floppy,format=raw,readonly=on,file=boot.img"]
)
def test_floppy_images(line: str) -> None:
    assert parse(line).floppy == FloppyImage(Path("boot.img"))


def test_kernel_options() -> None:
    config = parse_args(["-kernel", "k", "-initrd", "i", "-append", "a b=c,d"])
    assert (config.kernel, config.initrd, config.append) == (Path("k"), Path("i"), "a b=c,d")


@pytest.mark.parametrize(
    ("arguments", "main", "cpr"),
    [
        (["defer"], None, None),
        (["tcp:h:1"], SocketInet("h", "1"), None),
        (["tcp:[::1]:2"], SocketInet("::1", "2"), None),
        (["fd:9"], SocketFd("9"), None),
        (["exec:cat x"], ExecAddress(("/bin/sh", "-c", "cat x")), None),
        (["file:/f,offset=1k"], FileAddress("/f", 1024), None),
        (["unix:/m", CPR_UNIX], SocketUnix("/m"), SocketUnix("/c,1")),
        ([CPR_UNIX], None, SocketUnix("/c,1")),
        (
            ["defer", "cpr,addr.transport=socket,addr.type=unix,addr.path=/c,,d"],
            None,
            SocketUnix("/c,d"),
        ),
        (
            ["unix:/m", "cpr,addr.transport=socket,addr.type=fd,addr.str=4"],
            SocketUnix("/m"),
            SocketFd("4"),
        ),
        (
            ["unix:/m", "main,addr.transport=socket,addr.type=unix,addr.path=/n"],
            SocketUnix("/n"),
            None,
        ),
    ],
)
def test_incoming_in_every_form_and_the_last_of_each_type_wins(
    arguments: list[str], main: MigrationAddress | None, cpr: MigrationAddress | None
) -> None:
    argv = [part for argument in arguments for part in ("-incoming", argument)]
    assert parse_args(argv).incoming == IncomingConfig(main, cpr)


def test_globals_in_both_spellings() -> None:
    config = parse(
        "-global migration.x-events=on "
        "-global driver=migration,property=mode,value=cpr-transfer -global vga.x=1"
    )
    assert config.migration_globals == {"x-events": "on", "mode": "cpr-transfer"}
    assert config.warnings == ("global vga.x has no effect: there is no such driver",)


def test_notifications_by_eventfd_are_on_unless_the_transport_is_told_otherwise() -> None:
    assert parse("-global virtio-mmio.force-legacy=false").virtio_ioeventfd
    assert not parse("-global virtio-mmio.ioeventfd=off").virtio_ioeventfd


def test_inherited_fds_are_kept() -> None:
    read_end, write_end = os.pipe()
    try:
        os.set_inheritable(read_end, True)
        config = parse(f"-add-fd fd={read_end},set=2,opaque=x")
    finally:
        os.close(read_end)
        os.close(write_end)
    assert config.inherited_fds == (InheritedFd(read_end, 2, "x"),)


def test_action_is_the_long_form_of_no_reboot_and_no_shutdown() -> None:
    config = parse("-action reboot=shutdown,shutdown=pause,panic=none")
    assert config.no_reboot
    assert config.no_shutdown


def test_options_that_promise_something_say_that_they_have_no_effect() -> None:
    config = parse("-d in_asm -D log -trace x -object memory-backend-ram,id=r,size=1M,share")
    assert len(config.warnings) == 4
    assert config.memory_backends[0].share


@pytest.mark.parametrize("argument", ["-h", "-help", "--help", "-version", "--version"])
def test_help_and_version_print_and_end_with_success(
    argument: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_args([argument])
    assert caught.value.code == 0
    assert "cpr-vmm" in capsys.readouterr().out


def test_help_fits_two_screens_and_names_every_option(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parse_args(["--help"])
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert len(lines) <= 100
    assert max(len(line) for line in lines) <= 110
    for option in ("-machine", "-object", "-qmp", "-incoming", "-S", "-add-fd", "-sandbox"):
        assert option in text


@pytest.mark.parametrize(
    ("option", "word"),
    [
        ("machine", "cpr-1.0"),
        ("accel", "unicorn"),
        ("device", "loader"),
        ("object", "memory-backend-memfd"),
        ("chardev", "socket"),
    ],
)
def test_lists_of_what_there_is(option: str, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_args([f"-{option}", "help"])
    assert caught.value.code == 0
    assert word in capsys.readouterr().out.split()
