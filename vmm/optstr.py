"""QEMU's option strings: `a=b,c=d,,e`, in the two grammars that QEMU has.

*Options* (`parse_options`: -chardev, -name, -object, …) are a flat list; a key may stand alone
(`server` = `server=on`, `nowait` = `wait=off`), which QEMU calls deprecated and everybody uses.
*Key-values* (`parse_keyval`: -machine, -m, -smp, -incoming, …) are strict and may nest by dots
(`addr.type=unix`, `args.0=x`). In both, `,,` stands for a comma in a value, and the first item may
leave out its key where the option implies one (`-name guest1`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

# The longest argument that a user writes by hand or a tool generates is far below this.
MAX_OPTION_LENGTH = 64 << 10

_TRUE = frozenset({"on", "yes", "true", "y"})
_FALSE = frozenset({"off", "no", "false", "n"})
_SUFFIX_SHIFT = {"": 0, "B": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50, "E": 60}
_SIZE = re.compile(r"(?P<number>\d+(?:\.\d*)?|\.\d+)(?P<suffix>[bBkKmMgGtTpPeE]?)")
_HEX = re.compile(r"0[xX][0-9a-fA-F]+")
_KEY_FRAGMENT = re.compile(r"[A-Za-z][A-Za-z0-9_-]*|[0-9]+")
_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
_MAX_U64 = (1 << 64) - 1
INT_MAX = (1 << 31) - 1  # of a C int, as which fds are passed
_NUMBER_DIGITS_MAX = 40  # leading zeros are allowed, but not without end
_SIZE_DIGITS_MAX = 128  # more than any size needs; Python refuses to convert some thousand digits


class OptionSyntaxError(Exception):
    """The text is not an option string of this grammar; the message is QEMU's."""


@dataclass(frozen=True, slots=True)
class Option:
    """One `key=value`; `short` when only the key (or `nokey`) was written."""

    key: str
    value: str
    short: bool = False


def parse_options(text: str, implied_key: str | None = None) -> list[Option]:
    """Split an option string of the flat grammar, in the order written."""
    _check_length(text)
    options: list[Option] = []
    rest = text
    while rest:
        head = re.match(r"[^=,]*", rest)
        assert head is not None
        key, rest = head.group(), rest[head.end() :]
        if rest.startswith("="):
            value, rest = _take_value(rest[1:])
            options.append(Option(key, value))
        elif not options and implied_key is not None:
            value, rest = _take_value(key + rest)
            options.append(Option(implied_key, value))
        else:
            rest = rest[1:]
            options.append(_short_option(key))
    return options


def parse_keyval(text: str, implied_key: str | None = None) -> dict[str, Any]:
    """Parse the strict grammar into nested dicts and lists of strings.

    Of a key given twice the last counts. Raises OptionSyntaxError.
    """
    _check_length(text)
    tree: dict[str, Any] = {}
    rest, first = text, True
    while rest:
        head = re.match(r"[^=,]*", rest)
        assert head is not None
        key, rest = head.group(), rest[head.end() :]
        if rest.startswith("="):
            value, rest = _take_value(rest[1:])
            _insert(tree, key, value)
        elif first and implied_key is not None:
            if rest.startswith(",,"):
                raise OptionSyntaxError(f"Invalid parameter '{key}'")
            rest = rest[1:]
            _insert(tree, implied_key, key)
        elif not key:
            raise OptionSyntaxError(f"Invalid parameter '{key}'")
        else:
            raise OptionSyntaxError(f"Expected '=' after parameter '{key}'")
        first = False
    for key in tree:
        if key.isdigit():
            raise OptionSyntaxError(f"Invalid parameter '{key}'")
    return {key: _with_lists(value, key) for key, value in tree.items()}


def parse_bool(text: str) -> bool | None:
    """on/yes/true/y, off/no/false/n; None when it is neither."""
    if text in _TRUE:
        return True
    return False if text in _FALSE else None


def parse_size(text: str, default_suffix: str = "") -> int | None:
    """Bytes: decimal with an optional fraction and suffix (powers of 1024), or hex without suffix.

    None when it is not a size below 2^64.
    """
    if _HEX.fullmatch(text):
        size = int(text, 16)
        return size if size <= _MAX_U64 else None
    found = _SIZE.fullmatch(text)
    if found is None:
        return None
    shift = _SUFFIX_SHIFT[found["suffix"].upper() or default_suffix]
    number = found["number"]
    if len(number) > _SIZE_DIGITS_MAX or ("." in number and shift == 0):
        return None  # too large for anything, or a fraction of a byte
    whole, _point, tenths = number.partition(".")
    # In integers: a float cannot hold every size, and `fractions` is slow to import.
    size = (int(whole + tenths) << shift) // 10 ** len(tenths)
    return size if size <= _MAX_U64 else None


def parse_number(text: str, maximum: int = INT_MAX) -> int | None:
    """A plain decimal number up to `maximum`; None when it is none.

    `str.isdigit` is no check for `int`: it takes a superscript two, and `int` refuses thousands of
    digits.
    """
    if not text.isascii() or not text.isdigit() or len(text) > _NUMBER_DIGITS_MAX:
        return None
    number = int(text)
    return number if number <= maximum else None


def is_identifier(text: str) -> bool:
    """Whether `text` may be an id: letters, digits, '-', '.', '_', starting with a letter."""
    return _IDENTIFIER.fullmatch(text) is not None


def _check_length(text: str) -> None:
    if len(text) > MAX_OPTION_LENGTH:
        raise OptionSyntaxError(
            f"option string of {len(text)} characters; at most {MAX_OPTION_LENGTH} are allowed"
        )


def _take_value(text: str) -> tuple[str, str]:
    """The value at the start of `text` with `,,` undone, and what follows its comma."""
    parts: list[str] = []
    while True:
        part, comma, text = text.partition(",")
        parts.append(part)
        if not comma or not text.startswith(","):
            return "".join(parts), text
        parts.append(",")
        text = text[1:]


def _short_option(key: str) -> Option:
    if key.startswith("no") and len(key) > len("no"):
        return Option(key[len("no") :], "off", short=True)
    return Option(key, "on", short=True)


def _insert(tree: dict[str, Any], key: str, value: str) -> None:
    fragments = key.split(".")
    if not all(_KEY_FRAGMENT.fullmatch(fragment) for fragment in fragments):
        raise OptionSyntaxError(f"Invalid parameter '{key}'")
    node = tree
    for depth, fragment in enumerate(fragments[:-1]):
        child = node.setdefault(fragment, {})
        if not isinstance(child, dict):
            raise OptionSyntaxError(
                f"Parameters '{'.'.join(fragments[: depth + 1])}.*' used inconsistently"
            )
        node = child
    if isinstance(node.get(fragments[-1]), dict):
        raise OptionSyntaxError(f"Parameters '{key}.*' used inconsistently")
    node[fragments[-1]] = value


def _with_lists(node: Any, path: str) -> Any:
    """Turn dicts whose keys are all numbers into lists."""
    if not isinstance(node, dict):
        return node
    items = {key: _with_lists(value, f"{path}.{key}") for key, value in node.items()}
    numbers = [key for key in items if key.isdigit()]
    if not numbers:
        return items
    if len(numbers) != len(items):
        raise OptionSyntaxError(f"Parameters '{path}.*' used inconsistently")
    by_index = {parse_number(key): value for key, value in items.items()}
    for index in range(len(by_index)):
        if index not in by_index:
            raise OptionSyntaxError(f"Parameter '{path}.{index}' missing")
    return [by_index[index] for index in range(len(by_index))]
