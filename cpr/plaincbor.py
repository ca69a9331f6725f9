"""CBOR as this protocol uses it: maps, lists, text, bytes, numbers, and nothing else.

The only file that imports cbor2. No tags (so no dates, no big numbers, no cycles), no indefinite
lengths, no duplicate keys, no bytes after the value, nothing longer than it need be: a value has
one meaning, one encoding (of maps in the order given) and a bounded depth.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, NoReturn

import cbor2

# Tags that cbor2 itself would turn into objects; all others reach the tag hook.
_BUILT_IN_TAGS = (
    *range(6), 25, 28, 29, 30, 35, 36, 37, 52, 54, 100, 256, 258, 260, 261, 1004, 43000, 55799,
)  # fmt: skip


def dumps(value: Any) -> bytes:
    """The encoding of a plain value."""
    return cbor2.dumps(value)


def loads(data: bytes, *, nesting_max: int, int_keys: bool) -> Any:
    """The one value in `data`; map keys are text or bytes, and integers too when `int_keys`.

    Raises ValueError saying what is wrong.
    """
    stream = io.BytesIO(data)
    try:
        value = cbor2.CBORDecoder(
            stream,
            tag_hook=_no_tag,
            semantic_decoders=_NO_TAGS,
            max_depth=nesting_max,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            strict_hashable_types=not int_keys,
        ).decode()
    except Exception as error:  # cbor2 raises many kinds on damaged input
        raise ValueError(f"not plain CBOR: {error}") from error
    if stream.tell() != len(data):
        raise ValueError(f"plain CBOR with {len(data) - stream.tell()} bytes after its end")
    if dumps(value) != data:
        raise ValueError("CBOR that is not in its shortest form")
    return value


def _no_tag(*_arguments: Any) -> NoReturn:
    raise ValueError("a tagged value")


_NO_TAGS: Mapping[int, Any] = dict.fromkeys(_BUILT_IN_TAGS, _no_tag)
