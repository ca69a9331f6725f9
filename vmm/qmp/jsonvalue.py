"""One JSON text to one value, with QEMU's error texts and its one extension, 'single quotes'.

The standard library's parser does the work. Only a text that it refuses, or in which it does not
see a mistake, goes through the small parser below, which accepts single-quoted strings and
otherwise says what is wrong in QEMU's words. Both refuse duplicate keys, NaN and infinities.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any, NoReturn

# QEMU allows 1024; the standard library's parser recurses once per level and Python allows 1000
# frames. The deepest command nests 6 levels.
MAX_NESTING = 256

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+)
    |(?P<mark>[{}\[\]:,])
    |(?P<string>"(?:[^"\\\x00-\x1f]|\\.)*"|'(?:[^'\\\x00-\x1f]|\\.)*')
    |(?P<number>-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?(?![0-9.eE]))
    |(?P<word>[a-z]+)""",
    re.VERBOSE,
)
_WORDS = {"true": True, "false": False, "null": None}
_HIGH, _LOW = "u([dD][89abAB][0-9a-fA-F]{2})", "u([dD][c-fC-F][0-9a-fA-F]{2})"
_ESCAPE = re.compile(rf"\\(?:{_HIGH}\\{_LOW}|u([0-9a-fA-F]{{4}})|(.))", re.DOTALL)
# Half a character: the standard library lets it stand alone, and then no path can hold it.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_STRAY_LENGTH = 16


class JsonSyntaxError(Exception):
    """Not JSON; the message is QEMU's ("JSON parse error, …")."""

    def __init__(self, what: str) -> None:
        super().__init__(f"JSON parse error, {what}")


def parse_json(text: str) -> Any:
    """The value of `text`. Raises JsonSyntaxError.

    >>> parse_json("{'execute': 'query-status'}")
    {'execute': 'query-status'}
    """
    if _SURROGATE.search(text):
        return _Parser(text).parse()
    try:
        return json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
    except (ValueError, RecursionError):
        return _Parser(text).parse()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise JsonSyntaxError("duplicate key")
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise JsonSyntaxError(f"stray '{name[0]}'")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise JsonSyntaxError("number out of range")
    return value


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # a named group of _TOKEN
    text: str


class _Parser:
    """A recursive-descent parser that is only used to be lenient or precise."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokenize(text)
        self._next = 0

    def parse(self) -> Any:
        value = self._value(0)
        if self._next < len(self._tokens):
            raise JsonSyntaxError("expecting value")
        return value

    def _peek(self) -> _Token:
        if self._next >= len(self._tokens):
            raise JsonSyntaxError("premature EOI")
        return self._tokens[self._next]

    def _take(self) -> _Token:
        token = self._peek()
        self._next += 1
        return token

    def _value(self, depth: int) -> Any:
        if depth > MAX_NESTING:
            raise JsonSyntaxError("JSON nesting depth limit exceeded")
        token = self._take()
        match token.kind, token.text:
            case "mark", "{":
                return self._object(depth)
            case "mark", "[":
                return self._array(depth)
            case "string", text:
                return _unquote(text)
            case "number", text:
                return _number(text)
            case "word", text:
                if text not in _WORDS:
                    raise JsonSyntaxError(f"invalid keyword '{text}'")
                return _WORDS[text]
            case _:
                raise JsonSyntaxError("expecting value")

    def _object(self, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        if self._peek().text == "}":
            self._take()
            return result
        while True:
            key = self._key(depth)
            if self._take().text != ":":
                raise JsonSyntaxError("missing : in object pair")
            value = self._value(depth + 1)
            if key in result:
                raise JsonSyntaxError("duplicate key")
            result[key] = value
            if not self._separator("}", "dict"):
                return result

    def _key(self, depth: int) -> str:
        key = self._value(depth + 1)
        if not isinstance(key, str):
            raise JsonSyntaxError("key is not a string in object")
        return key

    def _array(self, depth: int) -> list[Any]:
        result: list[Any] = []
        if self._peek().text == "]":
            self._take()
            return result
        while True:
            result.append(self._value(depth + 1))
            if not self._separator("]", "list"):
                return result

    def _separator(self, end: str, where: str) -> bool:
        """Whether another member follows."""
        token = self._take()
        if token.kind == "mark" and token.text in (",", end):
            return token.text == ","
        raise JsonSyntaxError(f"expected separator in {where}")


def _tokenize(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    position = 0
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            raise JsonSyntaxError(f"stray '{_stray(text, position)}'")
        if found.lastgroup is not None and found.lastgroup != "space":
            tokens.append(_Token(found.lastgroup, found.group()))
        position = found.end()
    return tokens


def _stray(text: str, position: int) -> str:
    """What QEMU's lexer had read when it gave up, at most a few characters of it."""
    if text[position] in "\"'":
        raise JsonSyntaxError("premature EOI")
    found = re.compile(r"-?0[0-9]|-?[0-9]*[.]?(?:[eE][+-]?)?.?", re.DOTALL).match(text, position)
    assert found is not None
    return found.group()[:_STRAY_LENGTH]


def _number(text: str) -> int | float:
    if re.fullmatch(r"-?[0-9]{1,20}", text):
        return int(text)
    return _finite(text)


def _unquote(text: str) -> str:
    def replace(found: re.Match[str]) -> str:
        high, low, code, letter = found.groups()
        if high is not None:
            return chr(0x10000 + (int(high, 16) - 0xD800 << 10) + int(low, 16) - 0xDC00)
        if code is not None:
            if 0xD800 <= int(code, 16) <= 0xDFFF:
                raise JsonSyntaxError(f"{found.group()} is not a valid Unicode character")
            return chr(int(code, 16))
        if letter in _ESCAPES:
            return _ESCAPES[letter]
        if letter in "\"'\\/":
            return str(letter)
        raise JsonSyntaxError("invalid escape sequence in string")

    return _ESCAPE.sub(replace, text[1:-1])
