"""The ELF file inside a bzImage: what a kernel unpacks of itself, done beforehand.

An emulated processor spends seconds on it. lz4 and zstandard are development dependencies.
"""

from __future__ import annotations

import lzma
import struct
from collections.abc import Iterator

import lz4.block
import zstandard

from tools.lab.errors import LabError
from tools.lab.linux.kernels import Kernel

# The payload of a bzImage, relative to its protected-mode part (Linux boot protocol 2.08).
_SETUP_SECTORS_OFFSET, _PAYLOAD_OFFSET = 0x1F1, 0x248
_SECTOR_BYTES = 512
_LZ4_LEGACY_MAGIC, _ZSTD_MAGIC, _XZ_MAGIC = b"\x02\x21\x4c\x18", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ"
_LZ4_BLOCK_BYTES = 8 << 20  # what one block of the legacy form unpacks to, at most


def vmlinux(kernel: Kernel) -> bytes:
    """Raises LabError for a compression that we do not know."""
    data = kernel.image.read_bytes()
    start = (data[_SETUP_SECTORS_OFFSET] + 1) * _SECTOR_BYTES
    offset, size = struct.unpack_from("<II", data, _PAYLOAD_OFFSET)
    return _unpack(data[start + offset : start + offset + size], kernel.version)


def _unpack(payload: bytes, version: str) -> bytes:
    if payload.startswith(_ZSTD_MAGIC):
        return zstandard.ZstdDecompressor().decompressobj().decompress(payload)
    if payload.startswith(_XZ_MAGIC):
        return lzma.LZMADecompressor().decompress(payload)
    if payload.startswith(_LZ4_LEGACY_MAGIC):
        return b"".join(_lz4_blocks(payload))
    raise LabError(f"kernel {version} is compressed in a way we do not know: {payload[:4].hex()}")


def _lz4_blocks(payload: bytes) -> Iterator[bytes]:
    """Blocks with their sizes before them; the kernel's build appends the unpacked size."""
    offset = len(_LZ4_LEGACY_MAGIC)
    while offset + 8 <= len(payload):
        (size,) = struct.unpack_from("<I", payload, offset)
        block = payload[offset + 4 : offset + 4 + size]
        yield lz4.block.decompress(block, uncompressed_size=_LZ4_BLOCK_BYTES)
        offset += 4 + size
