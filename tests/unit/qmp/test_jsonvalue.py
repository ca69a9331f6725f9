"""QEMU's JSON: its texts were read from QEMU 10.0.2, byte by byte the same input."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.qmp.jsonvalue import MAX_NESTING, JsonSyntaxError, parse_json


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{"a" 1}', "missing : in object pair"),
        ("{1:2}", "key is not a string in object"),
        ('{"a":1 "b":2}', "expected separator in dict"),
        ('{"a":1,"a":2}', "duplicate key"),
        ("{'a':1,'a':2}", "duplicate key"),
        ("[1 2]", "expected separator in list"),
        ('{"a":}', "expecting value"),
        ('{"a":1,}', "expecting value"),
        ("[1,]", "expecting value"),
        ('{"a":tru}', "invalid keyword 'tru'"),
        ("foo", "invalid keyword 'foo'"),
        ('{"a":#}', "stray '#'"),
        ('{"a":01}', "stray '01'"),
        ('{"a":-}', "stray '-}'"),
        ('{"a":1.}', "stray '1.}'"),
        ('{"a":+1}', "stray '+'"),
        ('{"a":NaN}', "stray 'N'"),
        ('{"a":Infinity}', "stray 'I'"),
        ('{"a":-Infinity}', "stray '-'"),
        ('{"a":1e999}', "number out of range"),
        ("{'a':1e999}", "number out of range"),
        ('{"a":"x\\q"}', "invalid escape sequence in string"),
        ("{'a':'\\ud800'}", "\\ud800 is not a valid Unicode character"),
        ('{"a":"\\uDC00x"}', "\\uDC00 is not a valid Unicode character"),
        ('{"a":"\\ud800\\u0041"}', "\\ud800 is not a valid Unicode character"),
        ('{"\\udfff":1}', "\\udfff is not a valid Unicode character"),
        ("{", "premature EOI"),
        ('{"a"', "premature EOI"),
        ('{"a":"b', "premature EOI"),
        ("", "premature EOI"),
        ("{]", "expecting value"),
        ("{} {}", "expecting value"),
        ("[" * 400, "JSON nesting depth limit exceeded"),
    ],
)
def test_mistakes_have_qemus_texts(text: str, what: str) -> None:
    with pytest.raises(JsonSyntaxError) as caught:
        parse_json(text)
    assert str(caught.value) == f"JSON parse error, {what}"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{'execute':'query-status'}", {"execute": "query-status"}),
        ("{'a':\"it's\"}", {"a": "it's"}),
        ("{'a':'it\\'s'}", {"a": "it's"}),
        ("['\\u00e9\\n\\t\\\\\\/']", ["é\n\t\\/"]),
        ("['\\ud83d\\ude00']", ["😀"]),
        ('["\\uD83D\\uDE00", "\\\\ud800"]', ["😀", "\\ud800"]),
        ("['a', true, false, null, -1, 1.5e1, 0]", ["a", True, False, None, -1, 15.0, 0]),
        ("{'a':{},'b':[]}", {"a": {}, "b": []}),
        ("['" + "9" * 30 + "']", ["9" * 30]),
        ("{'n':" + "9" * 30 + "}", {"n": float("9" * 30)}),
    ],
)
def test_single_quotes_are_accepted_as_by_qemu(text: str, value: Any) -> None:
    assert parse_json(text) == value


def test_a_number_of_thousands_of_digits_is_an_error_and_not_a_crash() -> None:
    with pytest.raises(JsonSyntaxError, match="out of range"):
        parse_json('{"id":' + "9" * 5000 + "}")


def test_the_nesting_that_is_allowed_can_be_parsed() -> None:
    value = parse_json("[" * MAX_NESTING + "]" * MAX_NESTING)
    assert isinstance(value, list)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=10,
)


@given(_JSON)
def test_all_json_is_read_as_the_standard_library_reads_it(value: Any) -> None:
    assert parse_json(json.dumps(value)) == value


@given(st.text(alphabet="{}[]:,'\"\\ab1.e-+#tn ", max_size=30))
def test_garbage_is_a_value_or_a_syntax_error_and_nothing_else(text: str) -> None:
    try:
        parse_json(text)
    except JsonSyntaxError:
        return
