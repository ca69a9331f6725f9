"""Small Linux kernel images, right or wrong in one place."""

from __future__ import annotations

import struct

LOAD, INIT_SIZE = 0x100_0000, 4 << 20
KERNEL = b"\x90" * 0x200 + b"the 64-bit entry"


def bzimage(
    version: int = 0x20F,
    xloadflags: int = 1,
    loadflags: int = 1,
    kernel: bytes = KERNEL,
    initrd_max: int = 0x7FFF_FFFF,
) -> bytes:
    """A bzImage with one setup sector and a header that ends at 0x268."""
    data = bytearray(1024)
    data[0x1F1] = 1
    data[0x1FE:0x200] = b"\x55\xaa"
    data[0x200:0x202] = bytes((0xEB, 0x66))  # jmp over the header: it ends at 0x268
    data[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", data, 0x206, version)
    data[0x211] = loadflags
    struct.pack_into("<II", data, 0x22C, initrd_max, 0x20_0000)
    struct.pack_into("<H", data, 0x236, xloadflags)
    struct.pack_into("<I", data, 0x238, 2047)
    struct.pack_into("<QI", data, 0x258, LOAD, INIT_SIZE)
    return bytes(data) + kernel
