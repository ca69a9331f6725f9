"""Cut a byte stream into JSON texts, as QEMU's monitor does: no newlines needed, several in a line.

The splitter only counts braces and brackets and knows strings; what is between is judged by
`parse_json`. It never holds more than MAX_MESSAGE_BYTES of an unfinished text: a longer one is
reported once and skipped to the next control character. After a mistake it looks for the next line,
the next `{` or `[`, or the bytes FE and FF, which are never part of UTF-8 and which a client may
send to get a broken connection back in step.
"""

from __future__ import annotations

import enum
import re
from typing import Any

from vmm.qmp.jsonvalue import MAX_NESTING, JsonSyntaxError, parse_json

# QEMU allows 64 MiB. Parsing happens on the thread that also runs updates, at about 50 MiB/s, so
# this keeps one message below 5 ms; the longest sensible command is a few KiB.
MAX_MESSAGE_BYTES = 256 << 10

_SPACE = re.compile(rb"[ \t\r\n]*")
_RESYNC = b"\xfe\xff"
_BRACES = {ord("{"): 1, ord("}"): -1}
_BRACKETS = {ord("["): 1, ord("]"): -1}
_QUOTES = frozenset(b"\"'")
_CONTROL = rb"\x00-\x08\x0b\x0c\x0e-\x1f\xfe\xff"
_WORD_END = re.compile(rb"[\s{}\[\]:,\"'" + _CONTROL + rb"]")
_MARK = re.compile(rb"[{}\[\]\"'" + _CONTROL + rb"]")
_STRING_MARK = re.compile(rb"[\\\"'\x00-\x1f\xfe\xff]")
_RECOVERY_END = re.compile(rb"[\x00-\x08\x0a-\x1f\xfe\xff{\[]")
_LINE_END = re.compile(rb"[\x00-\x08\x0a-\x1f\xfe\xff]")


class _Mode(enum.Enum):
    IDLE = "idle"  # between texts
    CONTAINER = "container"  # inside { or [
    STRING = "string"  # inside a string, in a container or alone
    WORD = "word"  # a number or keyword that stands alone
    RECOVER = "recover"  # after a mistake
    SKIP_LINE = "skip-line"  # after an oversized text


class JsonStream:
    """Feed bytes, take values. Mistakes come out in their place, as JsonSyntaxError values."""

    def __init__(self, max_message_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._buffer = bytearray()
        self._max = max_message_bytes
        self._scanned = 0  # bytes at the start of the buffer that were looked at
        self._reset(_Mode.IDLE)

    def _reset(self, mode: _Mode) -> None:
        self._mode = mode
        self._quote = 0
        self._braces = 0
        self._brackets = 0

    @property
    def buffered_bytes(self) -> int:
        """What is held for later, at most the limit plus one read."""
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Add what was read; the caller takes items until there are none before feeding more."""
        self._buffer += data

    def take(self) -> Any | JsonSyntaxError | None:
        """The next value as a one-element tuple, a mistake, or None when more bytes are needed.

        (A tuple, because the value may itself be null.)
        """
        while True:
            end = self._scan()
            if end is None:
                return self._oversized()
            if isinstance(end, JsonSyntaxError):
                return end
            if end == 0:
                continue
            text = bytes(self._buffer[:end])
            self._drop(end)
            self._reset(_Mode.IDLE)
            return self._parse(text)

    def _parse(self, text: bytes) -> tuple[Any] | JsonSyntaxError:
        try:
            return (parse_json(text.decode()),)
        except UnicodeDecodeError:
            error = JsonSyntaxError("invalid UTF-8 sequence in string")
        except JsonSyntaxError as found:
            error = found
        if text[:1] not in (b"{", b"["):
            self._reset(_Mode.RECOVER)
        return error

    def _oversized(self) -> JsonSyntaxError | None:
        if len(self._buffer) <= self._max:
            return None
        self._drop(len(self._buffer))
        self._reset(_Mode.SKIP_LINE)
        return JsonSyntaxError("JSON token size limit exceeded")

    def _drop(self, count: int) -> None:
        del self._buffer[:count]
        self._scanned = 0

    def _scan(self) -> int | JsonSyntaxError | None:
        """Where the text at the start of the buffer ends; None: not yet; 0: look again."""
        match self._mode:
            case _Mode.IDLE:
                return self._scan_idle()
            case _Mode.RECOVER:
                return self._skip_to(_RECOVERY_END)
            case _Mode.SKIP_LINE:
                return self._skip_to(_LINE_END)
            case _Mode.WORD:
                return self._scan_word()
            case _Mode.STRING:
                return self._scan_string()
            case _Mode.CONTAINER:
                return self._scan_container()

    def _skip_to(self, pattern: re.Pattern[bytes]) -> int | None:
        found = pattern.search(self._buffer)
        if found is None:
            self._drop(len(self._buffer))
            return None
        self._drop(found.start())
        self._reset(_Mode.IDLE)
        return 0

    def _scan_idle(self) -> int | JsonSyntaxError | None:
        space = _SPACE.match(self._buffer)
        assert space is not None
        self._drop(space.end())
        if not self._buffer:
            return None
        first = bytes(self._buffer[:1])
        if first in (b"{", b"["):
            self._mode = _Mode.CONTAINER
        elif first in (b'"', b"'"):
            self._mode, self._quote, self._scanned = _Mode.STRING, self._buffer[0], 1
        elif first in b"}]:,":
            return self._mistake("expecting value", 1)
        elif self._buffer[0] < 0x20 or first in _RESYNC:
            return self._stray(0)
        else:
            self._mode = _Mode.WORD
        return 0

    def _scan_word(self) -> int | None:
        found = _WORD_END.search(self._buffer, self._scanned)
        if found is None:
            self._scanned = len(self._buffer)
            return None
        return found.start()

    def _scan_string(self) -> int | JsonSyntaxError | None:
        while (found := _STRING_MARK.search(self._buffer, self._scanned)) is not None:
            mark = self._buffer[found.start()]
            if mark == self._quote:
                self._scanned = found.end()
                if not (self._braces or self._brackets):
                    return found.end()
                self._mode = _Mode.CONTAINER
                return 0
            if mark == 0x5C:  # backslash: the next byte is not a mark
                if found.end() == len(self._buffer):
                    self._scanned = found.start()
                    return None
                self._scanned = found.end() + 1
            elif mark in b"\"'":
                self._scanned = found.end()
            else:
                return self._stray(found.start())
        self._scanned = len(self._buffer)
        return None

    def _scan_container(self) -> int | JsonSyntaxError | None:
        mark = self._walk()
        if mark is None:
            return None
        if mark in _QUOTES:
            self._mode, self._quote = _Mode.STRING, mark
            return 0
        if mark not in _BRACES and mark not in _BRACKETS:
            return self._stray(self._scanned - 1)
        if self._braces + self._brackets > MAX_NESTING:
            return self._mistake("JSON nesting depth limit exceeded", self._scanned)
        return self._scanned

    def _walk(self) -> int | None:
        """Count braces and brackets up to the first byte that decides something; return it."""
        braces, brackets = self._braces, self._brackets
        decisive = None
        for found in _MARK.finditer(self._buffer, self._scanned):
            mark = found[0][0]
            if mark in _BRACES:
                braces += _BRACES[mark]
            elif mark in _BRACKETS:
                brackets += _BRACKETS[mark]
            else:
                decisive = found
                break
            if braces <= 0 >= brackets or braces < 0 or brackets < 0:
                decisive = found
                break
            if braces + brackets > MAX_NESTING:
                decisive = found
                break
        self._braces, self._brackets = braces, brackets
        if decisive is None:
            self._scanned = len(self._buffer)
            return None
        self._scanned = decisive.end()
        return int(decisive[0][0])

    def _stray(self, position: int) -> JsonSyntaxError:
        byte = self._buffer[position]
        shown = "\\uFFFD" if bytes([byte]) in _RESYNC else f"\\u{byte:04X}"
        return self._mistake(f"stray '{shown}'", position + 1)

    def _mistake(self, what: str, consumed: int) -> JsonSyntaxError:
        resynced = self._buffer[consumed - 1] < 0x20 or self._buffer[consumed - 1] >= 0xFE
        self._drop(consumed)
        self._reset(_Mode.IDLE if resynced else _Mode.RECOVER)
        return JsonSyntaxError(what)
