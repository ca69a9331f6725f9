"""The ELF file inside a bzImage: what a kernel unpacks of itself, done beforehand.

An emulated processor spends seconds on it.
"""

from __future__ import annotations

import lzma
import struct
from collections.abc import Iterator

import lz4.block
import zstandard

from tools.lab.errors import LabError
from tools.lab.linux.kernels import Kernel
from vmm.boot.linux_image import HEADER_OFFSET, parse_bzimage

# Offset and size of what is compressed, in the setup header (Linux boot protocol 2.08).
_PAYLOAD = struct.Struct("<II")
_PAYLOAD_OFFSET = 0x248 - HEADER_OFFSET
_LZ4_LEGACY_MAGIC, _ZSTD_MAGIC, _XZ_MAGIC = b"\x02\x21\x4c\x18", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ"
_LZ4_BLOCK_BYTES = 8 << 20  # what one block of the legacy form unpacks to, at most


def vmlinux(kernel: Kernel) -> bytes:
    """Raises BootError for a damaged image, LabError for a compression that we do not know."""
    image = parse_bzimage(kernel.image.read_bytes(), str(kernel.image))
    offset, size = _PAYLOAD.unpack_from(image.setup_header, _PAYLOAD_OFFSET)
    return _unpack(image.kernel[offset : offset + size], kernel.version)


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
