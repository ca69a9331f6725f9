"""Every refusal of the command line. Texts marked QEMU were printed by QEMU 10.0.2."""

from __future__ import annotations

import pytest

from vmm.cli import parse_args
from vmm.errors import ConfigError

ID_HELP = "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter."
SIZE_TEXT = (
    "Parameter 'size' expects a non-negative number below 2^64\n"
    "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
    "and exabytes, respectively."
)

# QEMU prints exactly these after its program name.
HUGE = "9" * 5000  # Python's int() refuses to read it

QEMU_TEXTS = [
    ("-foo", "-foo: invalid option"),
    ("--foo", "--foo: invalid option"),
    ("-m", "-m: requires an argument"),
    ("-kernel", "-kernel: requires an argument"),
    ("-m foo", f"-m foo: {SIZE_TEXT}"),
    ("-m size=1x", f"-m size=1x: {SIZE_TEXT}"),
    ("-m bar=1", "-m bar=1: Invalid parameter 'bar'"),
    ("-machine foo", None),
    ("-machine cpr,foo=1", "Property 'cpr-1.0-machine.foo' not found"),
    ("-machine cpr,usb=maybe", "Parameter 'usb' expects 'on' or 'off'"),
    ("-machine memory-backend=zz", "Memory backend 'zz' not found"),
    (
        "-machine cpr,dump-guest-core",
        "-machine cpr,dump-guest-core: Expected '=' after parameter 'dump-guest-core'",
    ),
    (
        "-object memory-backend-memfd,id=r",
        "-object memory-backend-memfd,id=r: Parameter 'size' is missing",
    ),
    (
        "-object memory-backend-memfd,size=1M",
        "-object memory-backend-memfd,size=1M: Parameter 'id' is missing",
    ),
    (
        "-object memory-backend-memfd,id=r,size=x",
        "-object memory-backend-memfd,id=r,size=x: Parameter 'size' expects a size value",
    ),
    (
        "-object memory-backend-memfd,id=r,size=1M,zz=1",
        "-object memory-backend-memfd,id=r,size=1M,zz=1: Invalid parameter 'zz'",
    ),
    (
        "-object memory-backend-ram,id=r,size=1M,hugetlb=on",
        "-object memory-backend-ram,id=r,size=1M,hugetlb=on: Invalid parameter 'hugetlb'",
    ),
    (
        "-object foo,id=x",
        "-object foo,id=x: Parameter 'qom-type' does not accept value 'foo'",
    ),
    (
        "-object memory-backend-memfd,id=1r,size=1M",
        "-object memory-backend-memfd,id=1r,size=1M: Parameter 'id' expects an identifier\n"
        + ID_HELP,
    ),
    (
        "-object memory-backend-memfd,id=r,size=1M,share=maybe",
        "-object memory-backend-memfd,id=r,size=1M,share=maybe: "
        "Parameter 'share' expects 'on' or 'off'",
    ),
    (
        '-object {"qom-type":"memory-backend-memfd","id":"r","size":"1M"}',
        '-object {"qom-type":"memory-backend-memfd","id":"r","size":"1M"}: '
        "Parameter 'size' expects uint64",
    ),
    (
        '-object {"qom-type":"memory-backend-memfd","id":"r"',
        '-object {"qom-type":"memory-backend-memfd","id":"r": JSON parse error, premature EOI',
    ),
    (
        '-object {"qom-type":"memory-backend-memfd","id":"r","size":1048576,"x":1}',
        '-object {"qom-type":"memory-backend-memfd","id":"r","size":1048576,"x":1}: '
        "Parameter 'x' is unexpected",
    ),
    (
        "-object memory-backend-memfd,id=r,size=1M -object memory-backend-memfd,id=r,size=1M",
        "-object memory-backend-memfd,id=r,size=1M: Duplicate ID 'r' for object",
    ),
    ("-object id=r", "-object id=r: Parameter 'qom-type' is missing"),
    (
        "-m 64M -object memory-backend-memfd,id=r,size=1M -machine memory-backend=r",
        "Machine memory size does not match the size of the memory backend",
    ),
    (
        "-object memory-backend-memfd,id=a,size=64M -numa node,memdev=a",
        "total memory for NUMA nodes (0x4000000) should equal RAM size (0x8000000)",
    ),
    ("-name a,b=c", "-name a,b=c: Invalid parameter 'b'"),
    (
        "-name guest=a,debug-threads=maybe",
        "-name guest=a,debug-threads=maybe: Parameter 'debug-threads' expects 'on' or 'off'",
    ),
    ("-uuid zz", "-uuid zz: failed to parse UUID string: wrong format"),
    ("-serial foo", "-serial foo: 'foo' is not a valid char driver"),
    ("-serial unix", "-serial unix: 'unix' is not a valid char driver"),
    ("-serial file", "-serial file: 'file' is not a valid char driver"),
    (
        "-serial unix:/x,server=maybe",
        "-serial unix:/x,server=maybe: Parameter 'server' expects 'on' or 'off'",
    ),
    ("-chardev foo,id=x", "-chardev foo,id=x: 'foo' is not a valid char driver name"),
    ("-chardev null", "-chardev null: chardev: no id specified"),
    ("-chardev file,id=x", "-chardev file,id=x: chardev: file: no filename given"),
    (
        "-chardev null,id=1x",
        f"-chardev null,id=1x: Parameter 'id' expects an identifier\n{ID_HELP}",
    ),
    (
        "-chardev null,id=x -chardev null,id=x",
        "-chardev null,id=x: Duplicate ID 'x' for chardev",
    ),
    (
        "-chardev socket,id=x,path=a,foo=b",
        "-chardev socket,id=x,path=a,foo=b: Invalid parameter 'foo'",
    ),
    (
        "-chardev socket,id=c,fd=zz",
        "-chardev socket,id=c,fd=zz: Unable to parse FD number zz",
    ),
    (
        "-chardev socket,id=c,path=/x,fd=3",
        "-chardev socket,id=c,path=/x,fd=3: None or one of 'path', 'fd' or 'host' option required.",
    ),
    (
        "-chardev socket,id=x,path=/x,wait=off",
        "-chardev socket,id=x,path=/x,wait=off: "
        "'wait' option is incompatible with socket in client connect mode",
    ),
    ("-serial stdio -qmp stdio", "-qmp stdio: cannot use stdio by multiple character devices"),
    ("-mon mode=control", "-mon mode=control: Parameter 'chardev' is missing"),
    (
        "-mon chardev=c,mode=x",
        "-mon chardev=c,mode=x: Parameter 'mode' does not accept value 'x'",
    ),
    ("-mon foo", 'chardev "foo" not found'),
    ("-qmp foo", "-qmp foo: 'foo' is not a valid char driver"),
    ("-device foo", "-device foo: 'foo' is not a valid device model name"),
    ("-device loader", "-device loader: please include valid arguments"),
    (
        "-device loader,addr=foo",
        "-device loader,addr=foo: Parameter 'addr' expects integer",
    ),
    ("-device loader,foo=1", "-device loader,foo=1: Property 'loader.foo' not found"),
    (
        "-device loader,data=1,addr=2",
        "-device loader,data=1,addr=2: Both data and data-len must be specified",
    ),
    (
        "-device loader,data=1,addr=2,data-len=9",
        "-device loader,data=1,addr=2,data-len=9: data-len cannot be greater then 8 bytes",
    ),
    (
        "-device isa-debug-exit,iobase=x",
        "-device isa-debug-exit,iobase=x: Parameter 'iobase' expects integer",
    ),
    (
        "-device isa-debugcon",
        "-device isa-debugcon: Can't create debugcon device, empty char device",
    ),
    (
        "-device isa-debugcon,chardev=zz",
        "-device isa-debugcon,chardev=zz: Property 'isa-debugcon.chardev' can't find value 'zz'",
    ),
    (
        "-device isa-serial,chardev=zz",
        "-device isa-serial,chardev=zz: Property 'serial.chardev' can't find value 'zz'",
    ),
    (
        '-device {"driver":"isa-debug-exit","iobase":"0x10"}',
        '-device {"driver":"isa-debug-exit","iobase":"0x10"}: Parameter \'iobase\' expects uint64',
    ),
    ("-drive if=foo,file=x", "-drive if=foo,file=x: unsupported bus type 'foo'"),
    ("-initrd x", "-initrd only allowed with -kernel option"),
    (
        "-incoming foo",
        "-incoming foo: Parameter 'channel-type' does not accept value 'foo'",
    ),
    ("-incoming foo:bar", "-incoming foo:bar: unknown migration protocol: foo:bar"),
    (
        "-incoming main,addr.transport=zz",
        "-incoming main,addr.transport=zz: Parameter 'transport' does not accept value 'zz'",
    ),
    (
        '-incoming {"channel-type":"main"}',
        '-incoming {"channel-type":"main"}: Parameter \'addr\' is missing',
    ),
    ("-incoming {", "-incoming {: JSON parse error, premature EOI"),
    ("-incoming unix:", "-incoming unix:: invalid Unix socket address"),
    (
        "-incoming cpr,addr.transport=socket,addr.type=inet,addr.host=h,addr.port=1",
        "bad cpr channel socket type; must be unix",
    ),
    (
        "-global migration.foo=1",
        "can't apply global migration.foo=1: Property 'migration.foo' not found",
    ),
    (
        "-global migration.x-events=maybe",
        "can't apply global migration.x-events=maybe: Parameter 'x-events' expects 'on' or 'off'",
    ),
    (
        "-global virtio-mmio.ioeventfd=maybe",
        "-global virtio-mmio.ioeventfd=maybe: Parameter 'ioeventfd' expects 'on' or 'off'",
    ),
    (
        "-global virtio-mmio.force-legacy=on",
        "-global virtio-mmio.force-legacy=on: there is no legacy transport here",
    ),
    (
        "-global virtio-mmio.foo=on",
        "-global virtio-mmio.foo=on: Property 'virtio-mmio.foo' not found",
    ),
    ("-add-fd fd=1,set=1", "-add-fd fd=1,set=1: fd cannot be a standard I/O stream"),
    ("-add-fd fd=999,set=1", "-add-fd fd=999,set=1: fd is not valid or already in use"),
    ("-add-fd fd=3,set=1,zz=1", "-add-fd fd=3,set=1,zz=1: Invalid parameter 'zz'"),
    (
        "-add-fd set=1",
        "-add-fd set=1: fd option is required and must be non-negative",
    ),
    (
        f"-add-fd fd={HUGE},set=1",
        f"-add-fd fd={HUGE},set=1: fd option is required and must be non-negative",
    ),
    (f"-smp {HUGE}", f"-smp {HUGE}: Parameter 'smp.cpus' expects integer"),
    ("-smp ²", "-smp ²: Parameter 'smp.cpus' expects integer"),
    (
        f"-netdev tap,id=n,fd={HUGE}",
        f"-netdev tap,id=n,fd={HUGE}: Unable to parse FD number {HUGE}",
    ),
    ("-netdev tap,id=n,fds=3:²", "-netdev tap,id=n,fds=3:²: Unable to parse FD number ²"),
    (
        f"-chardev socket,id=c,fd={HUGE}",
        f"-chardev socket,id=c,fd={HUGE}: Unable to parse FD number {HUGE}",
    ),
    ("-smp foo", "-smp foo: Parameter 'smp.cpus' expects integer"),
    ("-smp cpus=2,foo=1", "-smp cpus=2,foo=1: Parameter 'smp.foo' is unexpected"),
    (
        "-smp 0",
        "-smp 0: Invalid CPU topology: CPU topology parameters must be greater than zero",
    ),
    ("-boot foo=1", "-boot foo=1: Parameter 'boot.foo' is unexpected"),
    ("-rtc foo=1", "-rtc foo=1: Invalid parameter 'foo'"),
    ("-msg foo=1", "-msg foo=1: Invalid parameter 'foo'"),
    ("-msg timestamp=maybe", "-msg timestamp=maybe: Parameter 'timestamp' expects 'on' or 'off'"),
    ("-sandbox foo", "-sandbox foo: Parameter 'enable' expects 'on' or 'off'"),
    ("-display foo", "-display foo: Parameter 'type' does not accept value 'foo'"),
    ("-vga foo", "-vga foo: unknown vga type: foo"),
    ("-action zz=1", "-action zz=1: Invalid parameter 'zz'"),
    (
        "-accel kvm -machine accel=kvm",
        'The -accel and "-machine accel=" options are incompatible',
    ),
    (
        "-accel kvm -enable-kvm",
        'The -accel and "-machine accel=" options are incompatible',
    ),
    ("-m 64M,slots=2", "-m 64M,slots=2: slots specified but no max-size"),
]


@pytest.mark.parametrize(("line", "text"), QEMU_TEXTS)
def test_a_mistake_gets_qemus_text(line: str, text: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_args(line.split())
    if text is None:
        text = 'unsupported machine type: "foo"\nUse -machine help to list supported machines'
    assert str(caught.value) == text


# What QEMU can and this VMM cannot: refused by name, never ignored.
REFUSALS = [
    ("-daemonize", "service manager"),
    ("-readconfig x", "command line"),
    ("-netdev user,id=n", "does not accept value 'user'"),
    ("-bios x", "firmware"),
    ("-hda x", "virtio-blk-device"),
    ("disk.img", "no disks"),
    ("-m 64M,slots=1,maxmem=128M", "hot-plug"),
    ("-m 64M,maxmem=128M", "hot-plug"),
    ("-smp 2,maxcpus=4", "hot-plug"),
    ("-smp 4,maxcpus=2", "maxcpus must be equal to or greater than smp"),
    ("-smp 2,sockets=1,cores=1,threads=1", "product of the hierarchy must match maxcpus"),
    ("-smp 2,cores=4", "product of the hierarchy must match maxcpus"),
    ("-smp 1000", "The max CPUs supported by machine 'cpr-1.0' is 255"),
    ("-machine kernel-irqchip=split", "split is not supported"),
    ("-machine a.b=c", "Invalid parameter 'a'"),
    ("-cpu max,+x2apic", "x2apic"),
    ("-accel foo", "kvm, unicorn"),
    ("-serial tcp:h:1", "unix:PATH"),
    ("-chardev socket,id=c,host=h,port=1", "'host' is not supported"),
    ("-chardev socket,id=c", "'path', 'fd' or 'host'"),
    ("-qmp unix:", "invalid Unix socket address"),
    ("-chardev null,id=c -serial chardev:c -mon chardev=c", "no multiplexing"),
    ("-mon chardev=c,zz=1", "Invalid parameter 'zz'"),
    ("-drive if=virtio,file=x", "if=virtio is not supported"),
    ("-drive file=x", "if=ide is not supported"),
    ("-drive if=floppy", "Must specify either driver or file"),
    ("-drive if=floppy,format=qcow2,file=x", "format=raw"),
    ("-drive if=floppy,file=x,cache=none", "Invalid parameter 'cache'"),
    ("-fda a -fda b", "one floppy drive"),
    ("-device loader,data=1,data-len=1,file=x", "cannot both"),
    ("-device loader,addr=1,data-be=on", "little-endian"),
    ("-device id=x", "Parameter 'driver' is missing"),
    ("-parallel stdio", "only 'none'"),
    ("-numa cpu,x=1", "node,memdev=ID"),
    ("-numa node", "Parameter 'memdev' is missing"),
    ("-numa node,memdev=a,zz=1", "Invalid parameter 'zz'"),
    ("-numa node,memdev=a", "Memory backend 'a' not found"),
    (
        "-object memory-backend-memfd,id=a,size=64M -numa node,memdev=a -numa node,memdev=a",
        "given twice",
    ),
    (
        "-object memory-backend-memfd,id=a,size=64M -numa node,memdev=a -machine memory-backend=a",
        "mutually exclusive",
    ),
    ("-object memory-backend-memfd,id=r,size=0", "doesn't take value '0'"),
    ("-object memory-backend-memfd,id=r,size=1M,policy=bind", "does not accept value 'bind'"),
    ("-global foo=1", "Invalid parameter 'foo'"),
    ("-global property=x", "DRIVER.PROPERTY=VALUE"),
    (
        "-incoming file:/f -incoming cpr,addr.transport=socket,addr.type=unix,addr.path=/c",
        "Migration requires streamable transport (eg unix)",
    ),
]


@pytest.mark.parametrize(("line", "fragment"), REFUSALS)
def test_what_is_not_there_is_refused_by_name(line: str, fragment: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_args(line.split())
    assert fragment in str(caught.value)


def test_hugetlbsize_without_hugetlb_warns() -> None:
    config = parse_args(["-object", "memory-backend-memfd,id=r,size=2M,hugetlbsize=2M"])
    assert "no effect" in config.warnings[0]
    assert config.memory_backends[0].hugetlb_size_bytes is None


def test_a_missing_fdset_is_named() -> None:
    with pytest.raises(ConfigError, match="fd is not valid"):
        parse_args(["-add-fd", "fd=900"])
