"""-netdev tap, virtio devices, raw disks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vmm.cli import parse_args
from vmm.config import (
    Drive,
    TapNetdev,
    VirtioBlkDevice,
    VirtioConsoleDevice,
    VirtioNetDevice,
    VirtioRngDevice,
    VmmConfig,
)
from vmm.errors import ConfigError

NET0 = "-netdev tap,id=net0,ifname=tap0,script=no,downscript=no"


def parse(line: str) -> VmmConfig:
    return parse_args(line.split())


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("tap,id=n", TapNetdev("n")),
        ("tap,id=n,ifname=t,script=no,downscript=", TapNetdev("n", "t", (), None, None)),
        ("tap,id=n,ifname=t,script=/up,downscript=/down", TapNetdev("n", "t", (), "/up", "/down")),
        ("tap,id=n,fd=7", TapNetdev("n", None, (7,), None, None)),
        ("tap,id=n,fds=7:8,vhost=off", TapNetdev("n", None, (7, 8), None, None, 2)),
        (
            "tap,id=n,queues=4,sndbuf=1M,vnet_hdr=on",
            TapNetdev("n", queues=4, sndbuf_bytes=1 << 20),
        ),
        ('{"type":"tap","id":"n","ifname":"t","queues":2}', TapNetdev("n", "t", queues=2)),
    ],
)
def test_tap_is_described_as_in_qemu(value: str, expected: TapNetdev) -> None:
    config = parse_args(["-netdev", value])
    assert config.netdevs == (expected,)
    assert config.warnings == ("netdev n has no peer",)


def test_devices_keep_the_order_of_the_command_line() -> None:
    config = parse(
        f"{NET0} -drive if=none,id=d0,file=/a.img,format=raw,readonly=on -device virtio-rng-device "
        "-device virtio-net-device,netdev=net0,mac=52:54:00:00:00:01,migrate-fds=off "
        "-device virtio-blk-device,drive=d0,serial=s1"
    )
    assert config.virtio == (
        VirtioRngDevice(),
        VirtioNetDevice("net0", bytes.fromhex("525400000001"), migrate_fds=False),
        VirtioBlkDevice("d0", serial="s1"),
    )
    assert config.used_drives() == (Drive("d0", Path("/a.img"), readonly=True),)


def test_cards_pass_their_fds_unless_told_otherwise() -> None:
    (card,) = parse(f"{NET0} -device virtio-net-device,netdev=net0").virtio
    assert card == VirtioNetDevice("net0", migrate_fds=True)


@pytest.mark.parametrize("driver", ["virtio-net", "virtio-net-pci"])
def test_pci_names_are_the_mmio_device_with_one_warning(driver: str) -> None:
    config = parse(f"{NET0} -device {driver},netdev=net0")
    assert config.virtio == (VirtioNetDevice("net0"),)
    assert config.warnings == (f"{driver} is virtio-net-device here: there is no PCI, only mmio",)


@pytest.mark.parametrize(
    "value",
    [
        "driver=file,node-name=d0,filename=/a.img,read-only=on",
        "raw,node-name=d0,file.driver=file,file.filename=/a.img,read-only=on",
    ],
)
def test_blockdev_names_a_raw_image(value: str) -> None:
    config = parse(f"-blockdev {value} -device virtio-blk-device,drive=d0")
    assert config.used_drives() == (Drive("d0", Path("/a.img"), readonly=True),)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("-netdev tap", "Parameter 'id' is missing"),
        ("-netdev tap,id=1n", "Parameter 'id' expects an identifier"),
        ("-netdev tap,id=n -netdev tap,id=n", "Duplicate ID 'n' for netdev"),
        ("-netdev tap,id=n,fd=7,ifname=t", "are invalid with fd="),
        ("-netdev tap,id=n,fds=7:8,queues=2", "are invalid with fds="),
        ("-netdev tap,id=n,fd=7,fds=8", "fds= is invalid with fd="),
        ("-netdev tap,id=n,fd=x", "Unable to parse FD number x"),
        ("-netdev tap,id=n,vhost=on", "vhost is not supported"),
        ("-netdev tap,id=n,br=br0", "option 'br' is not supported"),
        ("-netdev tap,id=n,vnet_hdr=off", "vnet_hdr=off is not supported"),
        ("-netdev tap,id=n,queues=0", "queues must be from 1 to 256, not 0"),
        ("-netdev tap,id=n,colour=red", "Invalid parameter 'colour'"),
        ("-device virtio-net-device,netdev=x", "netdev' can't find value 'x'"),
        (
            f"{NET0} -device virtio-net-device,netdev=net0 -device virtio-net-device,netdev=net0",
            "can't take value 'net0', it's in use",
        ),
        ("-device virtio-net-device,mac=x", "mac' doesn't take value 'x'"),
        ("-device virtio-net-device,mac=01:00:5e:00:00:01", "is a multicast address"),
        ("-device virtio-net-device,speed=1", "Property 'virtio-net-device.speed' not found"),
        ("-device virtio-blk-device,drive=x", "drive' can't find value 'x'"),
        (
            "-drive if=none,id=d,file=f -device virtio-blk-device,drive=d "
            "-device virtio-blk-device,drive=d",
            "Drive 'd' is already in use by another block device",
        ),
        ("-drive if=none,file=f", "if=none needs id=ID"),
        ("-drive if=none,id=d,file=f,format=qcow2", "format=qcow2 is not supported"),
        ("-drive if=none,id=d,file=f,readonly=maybe", "expects 'on' or 'off'"),
        ("-drive if=none,id=d,file=f -drive if=none,id=d,file=g", "Duplicate ID 'd' for drive"),
        ("-blockdev qcow2,node-name=d", "driver 'qcow2' is not supported"),
        ("-blockdev raw,node-name=d", "needs file.driver=file"),
        ("-blockdev file,node-name=d", "node-name and filename are needed"),
        ("-blockdev file,node-name=d,filename=f,cache=x", "Invalid parameter 'cache'"),
    ],
)
def test_mistake_is_named(line: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(line)
    assert text in str(caught.value)


BUS = "-device virtio-serial-device"
CHARDEVS = "-chardev null,id=c0 -chardev null,id=c1"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f"{BUS} -device virtconsole,chardev=c0", (VirtioConsoleDevice("c0"),)),
        (f"{BUS},max_ports=1 -device virtconsole,chardev=c0,nr=0", (VirtioConsoleDevice("c0"),)),
        (f"{BUS} -device virtconsole", (VirtioConsoleDevice(),)),
        (
            f"{BUS},id=a {BUS} -device virtconsole,chardev=c0 -device virtconsole,chardev=c1",
            (VirtioConsoleDevice("c1", "a"), VirtioConsoleDevice("c0")),
        ),
        (
            f"{BUS} {BUS},id=a -device virtconsole,chardev=c0,bus=virtio-serial-bus.0 "
            "-device virtconsole,chardev=c1,bus=a.0",
            (VirtioConsoleDevice("c0"), VirtioConsoleDevice("c1", "a")),
        ),
    ],
)
def test_console_is_the_port_of_a_bus(line: str, expected: tuple[VirtioConsoleDevice, ...]) -> None:
    assert parse(f"{CHARDEVS} {line}").virtio == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-device virtconsole,chardev=c0", "No 'virtio-serial-bus' bus found"),
        (f"{BUS} -device virtconsole,bus=b.0", "Bus 'b.0' not found"),
        (f"{BUS} -device virtconsole,chardev=x", "can't find value 'x'"),
        (f"{BUS} -device virtconsole,nr=1", "Out-of-range port id specified, max. allowed: 0"),
        (f"{BUS} -device virtconsole -device virtconsole", "Maximum port limit"),
        (f"{BUS},max_ports=31", "max_ports=31 is not supported"),
        (f"-serial chardev:c0 {BUS} -device virtconsole,chardev=c0", "and by a virtio console"),
    ],
)
def test_console_that_cannot_be_is_refused(line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse(f"{CHARDEVS} {line}")
