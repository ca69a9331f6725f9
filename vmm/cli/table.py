"""Every option of the command line. `--help` and the parser both read this table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vmm.cli import chardevs, disk, guest, machine, memory, net, process
from vmm.cli.builder import ConfigBuilder

WithValue = Callable[[ConfigBuilder, str], None]
WithoutValue = Callable[[ConfigBuilder], None]


@dataclass(frozen=True, slots=True)
class OptionSpec:
    """One option. `metavar` is empty for options without an argument; `help` empty hides it."""

    names: tuple[str, ...]
    metavar: str
    apply: Callable[..., None]
    help: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """Options that belong together in --help."""

    title: str
    options: tuple[OptionSpec, ...]


GROUPS: tuple[Group, ...] = (
    Group(
        "Machine",
        (
            OptionSpec(
                ("machine", "M"),
                "[type=]NAME[,memory-backend=ID][,aux-ram-share=on|off][,kernel-irqchip=on|off|auto]",
                machine.machine,
                "machine type (-machine help lists them) and properties",
            ),
            OptionSpec(("accel",), "kvm|unicorn", machine.accel, "repeat: tried in order"),
            OptionSpec(("enable-kvm",), "", machine.enable_kvm, "-accel kvm"),
            OptionSpec(("cpu",), "MODEL", machine.cpu, "CPU model"),
            OptionSpec(("smp",), "[cpus=]N", machine.smp, "number of vCPUs"),
            OptionSpec(("m",), "[size=]N[kMGT]", memory.memory, "RAM size, default 128 MiB"),
            OptionSpec(
                ("object",),
                "memory-backend-memfd,id=ID,size=N[,share=on][,seal=on][,hugetlb=on]"
                "[,hugetlbsize=N][,prealloc=on]",
                memory.object_,
                "RAM that a successor can map (JSON works too)",
            ),
            OptionSpec(("numa",), "node,memdev=ID", memory.numa, "repeat: RAM of several objects"),
        ),
    ),
    Group(
        "Guest",
        (
            OptionSpec(("kernel",), "FILE|builtin", guest.kernel, "ELF, flat binary, boot sector"),
            OptionSpec(("append",), "TEXT", guest.append, "its command line"),
            OptionSpec(("initrd",), "FILE", guest.initrd),
            OptionSpec(("fda",), "FILE", disk.fda, "boot sector of a raw floppy image"),
            OptionSpec(
                ("drive",),
                "if=floppy|none,format=raw,file=FILE[,id=ID][,readonly=on]",
                disk.drive,
                "the same, or a disk for virtio-blk-device",
            ),
            OptionSpec(("blockdev",), "file,node-name=ID,filename=FILE", disk.blockdev),
            OptionSpec(
                ("netdev",),
                "tap,id=ID[,ifname=NAME|,fd=N|,fds=N:N][,script=no][,downscript=no][,queues=N]",
                net.netdev,
                "a tap for virtio-net-device",
            ),
            OptionSpec(
                ("device",),
                "virtio-{net|blk|rng|serial}-device|virtconsole|loader|isa-…[,…]",
                guest.device,
                "a device (-device help)",
            ),
            OptionSpec(
                ("serial",),
                "stdio|file:PATH|unix:PATH[,server=on,wait=off]|pty|null|chardev:ID|none",
                chardevs.serial,
                "the next serial port",
            ),
        ),
    ),
    Group(
        "Control",
        (
            OptionSpec(("qmp",), "unix:PATH,server=on,wait=off", chardevs.qmp, "QMP monitor"),
            OptionSpec(("qmp-pretty",), "DEV", chardevs.qmp_pretty, "with indented JSON"),
            OptionSpec(("monitor",), "DEV", chardevs.monitor, "human monitor"),
            OptionSpec(
                ("chardev",),
                "socket|stdio|file|pty|null,id=ID[,path=P|,fd=N][,server=on][,wait=off]",
                chardevs.chardev,
                "a character back-end; fd= adopts an inherited socket",
            ),
            OptionSpec(
                ("mon",),
                "[chardev=]ID[,mode=control|readline][,pretty=on]",
                chardevs.mon,
                "a monitor on it",
            ),
            OptionSpec(
                ("incoming",),
                "URI|defer|CHANNEL",
                process.incoming,
                "wait for an update; CHANNEL is JSON or\n"
                "cpr,addr.transport=socket,addr.type=unix,addr.path=PATH",
            ),
            OptionSpec(
                ("global",),
                "migration.x-events=on",
                process.global_,
                "capabilities and parameters at start",
            ),
            OptionSpec(("add-fd",), "fd=N,set=M[,opaque=TEXT]", process.add_fd, "keep an fd"),
        ),
    ),
    Group(
        "Process",
        (
            OptionSpec(("name",), "[guest=]NAME", process.name, "name of the guest"),
            OptionSpec(("uuid",), "UUID", process.uuid, "UUID of the guest"),
            OptionSpec(("S",), "", process.paused, "do not start the guest"),
            OptionSpec(("no-reboot",), "", process.no_reboot, "end instead of resetting"),
            OptionSpec(("no-shutdown",), "", process.no_shutdown, "stop instead of ending"),
            OptionSpec(("pidfile",), "FILE", process.pidfile, "write the process id"),
            OptionSpec(("msg",), "timestamp=on|off", process.msg, "timestamps in messages"),
            OptionSpec(("nographic",), "", process.nographic, "serial port on stdio"),
            OptionSpec(("action",), "EVENT=ACTION[,…]", process.action),
        ),
    ),
    Group(
        "Accepted, without effect",
        (
            OptionSpec(("nodefaults",), "", process.without_effect, "there are no default devices"),
            OptionSpec(("no-user-config",), "", process.without_effect),
            OptionSpec(("display",), "none", process.display),
            OptionSpec(("vga",), "none", process.vga),
            OptionSpec(("parallel",), "none", process.only_none),
            OptionSpec(("net",), "none", process.only_none),
            OptionSpec(("nic",), "none", process.only_none),
            OptionSpec(("audio",), "none", process.only_none),
            OptionSpec(("vnc",), "none", process.only_none),
            OptionSpec(("boot",), "[order=]ORDER", process.boot),
            OptionSpec(("rtc",), "base=utc", process.rtc),
            OptionSpec(
                ("sandbox",),
                "on|off[,spawn=allow|deny][,…]",
                process.sandbox,
                "what the process gives up (default: on)",
            ),
            OptionSpec(("overcommit",), "mem-lock=off", process.without_effect),
            OptionSpec(("k",), "LANGUAGE", process.without_effect),
            OptionSpec(("L",), "PATH", process.without_effect),
            OptionSpec(("D",), "FILE", process.logging),
            OptionSpec(("d",), "ITEMS", process.logging),
            OptionSpec(("trace",), "EVENTS", process.logging),
        ),
    ),
)

# Options of QEMU that would need something this VMM does not have. Whether they take an argument
# does not matter: the command line ends here.
REFUSED: Mapping[str, str] = {
    "daemonize": "not supported; let a service manager or '&' put the process in the background",
    "readconfig": "not supported; give the options on the command line",
    "writeconfig": "not supported",
    "preconfig": "not supported; QMP is up from the first millisecond, use -S or -incoming defer",
    "loadvm": "not supported; there are no snapshots",
    "snapshot": "not supported; images are raw files",
    "bios": "not supported; there is no firmware",
    "pflash": "not supported; there is no firmware",
    "hda": "not supported; use -drive if=none and -device virtio-blk-device",
    "hdb": "not supported; use -drive if=none and -device virtio-blk-device",
    "cdrom": "not supported; use -drive if=none and -device virtio-blk-device",
    "fdb": "not supported; there is one floppy drive, -fda",
    "mem-path": "not supported; use -object memory-backend-memfd and -machine memory-backend=",
    "mem-prealloc": "not supported; use -object memory-backend-memfd,prealloc=on",
    "usb": "not supported; there is no USB",
    "gdb": "not supported; there is no debug stub",
    "s": "not supported; there is no debug stub",
    "icount": "not supported",
    "runas": "not supported; start the process as the user it shall run as",
    "run-with": "not supported",
    "chroot": "not supported",
}


def option_index() -> dict[str, OptionSpec]:
    """Every name of every option."""
    return {name: option for group in GROUPS for option in group.options for name in option.names}
