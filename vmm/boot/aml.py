"""AML, the byte code of ACPI tables: as much of it as a table of fixed devices needs.

Every function returns the encoding of one term; terms are put together by concatenation. Source of
the rules: ACPI 6.5, chapter 20 (AML grammar) and section 6.4 (resource descriptors).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

_ZERO_OP, _ONE_OP = b"\x00", b"\x01"
_BYTE_PREFIX, _WORD_PREFIX, _DWORD_PREFIX, _QWORD_PREFIX = b"\x0a", b"\x0b", b"\x0c", b"\x0e"
_STRING_PREFIX = b"\x0d"
_NAME_OP = b"\x08"
_SCOPE_OP = b"\x10"
_BUFFER_OP = b"\x11"
_PACKAGE_OP = b"\x12"
_DEVICE_OP = b"\x5b\x82"
_ROOT = "\\"
_SEGMENT_LENGTH = 4  # a name segment is four characters, padded with underscores

# Package lengths: one byte up to 63, then 4 bits and one to three more bytes.
_LENGTH_1_MAX = 0x3F
_LENGTH_MAX = (1 << 28) - 1

_IO_16_BIT = 0x47
_IO_DECODES_16 = 0x01
_MEMORY_32_FIXED = 0x86
_MEMORY_WRITABLE = 0x01
_EXTENDED_INTERRUPT = 0x89
_INTERRUPT_CONSUMER, _INTERRUPT_EDGE = 0x01, 0x02  # active high and exclusive are zero bits
_END_TAG = b"\x79\x00"  # checksum 0: not computed


def integer(value: int) -> bytes:
    """The shortest encoding of 0 to 2**64 - 1."""
    if value in (0, 1):
        return _ONE_OP if value else _ZERO_OP
    for prefix, layout in (
        (_BYTE_PREFIX, "<B"),
        (_WORD_PREFIX, "<H"),
        (_DWORD_PREFIX, "<I"),
    ):
        if value < 1 << 8 * struct.calcsize(layout):
            return prefix + struct.pack(layout, value)
    return _QWORD_PREFIX + struct.pack("<Q", value)


def string(text: str) -> bytes:
    """ASCII, NUL-terminated."""
    return _STRING_PREFIX + text.encode("ascii") + b"\0"


def eisa_id(text: str) -> bytes:
    """A compressed plug-and-play id such as "PNP0501": three letters, four hex digits."""
    letters = [ord(letter) - 0x40 for letter in text[:3]]
    packed = letters[0] << 26 | letters[1] << 21 | letters[2] << 16 | int(text[3:], 16)
    return _DWORD_PREFIX + struct.pack(">I", packed)


def name(path: str, value: bytes) -> bytes:
    """Name (path, value)."""
    return _NAME_OP + _name_string(path) + value


def scope(path: str, terms: Iterable[bytes]) -> bytes:
    """Scope (path) {terms}."""
    return _SCOPE_OP + _with_length(_name_string(path) + b"".join(terms))


def device(path: str, terms: Iterable[bytes]) -> bytes:
    """Device (path) {terms}."""
    return _DEVICE_OP + _with_length(_name_string(path) + b"".join(terms))


def package(elements: list[bytes]) -> bytes:
    """Package () {elements}, at most 255 of them."""
    return _PACKAGE_OP + _with_length(bytes([len(elements)]) + b"".join(elements))


def resources(descriptors: Iterable[bytes]) -> bytes:
    """ResourceTemplate () {descriptors}: a buffer that ends in an end tag."""
    content = b"".join(descriptors) + _END_TAG
    return _BUFFER_OP + _with_length(integer(len(content)) + content)


def io_ports(ports: range) -> bytes:
    """IO (Decode16, start, start, 1, length)."""
    return struct.pack(
        "<BBHHBB", _IO_16_BIT, _IO_DECODES_16, ports.start, ports.start, 1, len(ports)
    )


def memory(addresses: range) -> bytes:
    """Memory32Fixed (ReadWrite, start, length)."""
    return struct.pack(
        "<BHBII", _MEMORY_32_FIXED, 9, _MEMORY_WRITABLE, addresses.start, len(addresses)
    )


def interrupt(gsi: int, *, edge: bool) -> bytes:
    """Interrupt (ResourceConsumer, Edge or Level, ActiveHigh, Exclusive) {gsi}."""
    flags = _INTERRUPT_CONSUMER | (_INTERRUPT_EDGE if edge else 0)
    return struct.pack("<BHBBI", _EXTENDED_INTERRUPT, 6, flags, 1, gsi)


def _name_string(path: str) -> bytes:
    """One segment, with or without the root before it."""
    root = _ROOT if path.startswith(_ROOT) else ""
    segment = path.removeprefix(_ROOT)
    if not 1 <= len(segment) <= _SEGMENT_LENGTH:
        raise ValueError(f"AML name segment {segment!r}: expected 1 to {_SEGMENT_LENGTH} letters")
    return (root + segment.ljust(_SEGMENT_LENGTH, "_")).encode("ascii")


def _with_length(content: bytes) -> bytes:
    """PkgLength counts itself, so its own size has to be found first."""
    if len(content) + 1 <= _LENGTH_1_MAX:
        return bytes([len(content) + 1]) + content
    for extra in (1, 2, 3):
        total = len(content) + 1 + extra
        if total < 1 << (4 + 8 * extra):
            first = extra << 6 | total & 0x0F
            return bytes([first]) + (total >> 4).to_bytes(extra, "little") + content
    raise ValueError(f"AML package of {len(content)} bytes: at most {_LENGTH_MAX}")
