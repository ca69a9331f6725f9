from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.optstr import (
    MAX_OPTION_LENGTH,
    Option,
    OptionSyntaxError,
    parse_bool,
    parse_keyval,
    parse_options,
    parse_size,
)

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("text", "implied", "expected"),
    [
        ("", None, []),
        ("a=b", None, [Option("a", "b")]),
        ("a=b,c=d,,e", None, [Option("a", "b"), Option("c", "d,e")]),
        ("a=,,", None, [Option("a", ",")]),
        ("a=b=c", None, [Option("a", "b=c")]),
        ("a=", None, [Option("a", "")]),
        ("first,k=v", "name", [Option("name", "first"), Option("k", "v")]),
        ("x,,y,k=v", "name", [Option("name", "x,y"), Option("k", "v")]),
        ("server,nowait", None, [Option("server", "on", True), Option("wait", "off", True)]),
        ("no", None, [Option("no", "on", True)]),
        ("a=1,a=2", None, [Option("a", "1"), Option("a", "2")]),
    ],
)
def test_options_are_split_as_qemu_splits_them(
    text: str, implied: str | None, expected: list[Option]
) -> None:
    assert parse_options(text, implied) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=b", {"a": "b"}),
        ("a=b,,c", {"a": "b,c"}),
        ("a.b.c=1,a.b.d=2", {"a": {"b": {"c": "1", "d": "2"}}}),
        ("a.0=x,a.1=y", {"a": ["x", "y"]}),
        ("a.1=y,a.0=x", {"a": ["x", "y"]}),
        ("a=1,a=2", {"a": "2"}),
        ("pc,accel=kvm", {"type": "pc", "accel": "kvm"}),
        ("", {}),
    ],
)
def test_keyval_nests_by_dots(text: str, expected: dict[str, Any]) -> None:
    assert parse_keyval(text, "type") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a=1,b", "Expected '=' after parameter 'b'"),
        ("a=1,,", None),
        ("=x", "Invalid parameter ''"),
        ("a.=x", "Invalid parameter 'a.'"),
        ("a=1,a.b=2", "Parameters 'a.*' used inconsistently"),
        ("a.b=2,a=1", "Parameters 'a.*' used inconsistently"),
        ("a.0=1,a.b=2", "Parameters 'a.*' used inconsistently"),
        ("a.0=1,a.2=2", "Parameter 'a.1' missing"),
        ("x,,y", "Invalid parameter 'x'"),
    ],
)
def test_keyval_mistakes_have_qemus_texts(text: str, message: str | None) -> None:
    if message is None:
        assert parse_keyval(text, "type") == {"a": "1,"}
        return
    with pytest.raises(OptionSyntaxError) as caught:
        parse_keyval(text, "type")
    assert str(caught.value) == message


def test_an_absurdly_long_option_is_refused() -> None:
    with pytest.raises(OptionSyntaxError, match="at most"):
        parse_keyval("a=" + "x" * MAX_OPTION_LENGTH)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("123", 123),
        ("1k", KIB),
        ("1K", KIB),
        ("1.5G", 3 * GIB // 2),
        ("0.5k", 512),
        (".5k", 512),
        ("2M", 2 * MIB),
        ("1T", 1 << 40),
        ("1P", 1 << 50),
        ("1E", 1 << 60),
        ("7b", 7),
        ("0x20", 32),
        ("0X1f", 31),
        ("0x20M", None),
        ("1.5", None),
        ("16E", None),
        ("-1", None),
        ("1 k", None),
        ("x", None),
        ("", None),
        ("1.5.5k", None),
        ("5.k", 5 * KIB),
        ("0.3k", 307),
        ("0.99999999999999999999999G", GIB - 1),
        ("1" * 5000, None),
        ("0x" + "1" * 5000, None),
        ("0." + "1" * 5000 + "k", None),
    ],
)
def test_sizes(text: str, size: int | None) -> None:
    assert parse_size(text) == size


def test_sizes_take_a_default_suffix_where_an_option_has_one() -> None:
    assert parse_size("64", "M") == 64 * MIB
    assert parse_size("64k", "M") == 64 * KIB


@pytest.mark.parametrize(
    ("text", "value"),
    [(word, True) for word in ("on", "yes", "true", "y")]
    + [(word, False) for word in ("off", "no", "false", "n")]
    + [(word, None) for word in ("", "On", "1", "maybe")],
)
def test_booleans(text: str, value: bool | None) -> None:
    assert parse_bool(text) is value


_KEYS = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)


@given(st.lists(st.tuples(_KEYS, st.text(max_size=20)), max_size=6))
def test_any_value_survives_quoting_by_double_commas(pairs: list[tuple[str, str]]) -> None:
    text = ",".join(f"{key}={value.replace(',', ',,')}" for key, value in pairs)
    assert [(option.key, option.value) for option in parse_options(text)] == pairs


@given(st.text(alphabet="abc.,=0 1", max_size=40))
def test_no_text_makes_the_strict_grammar_fail_in_another_way(text: str) -> None:
    try:
        parse_keyval(text, "type")
    except OptionSyntaxError:
        return
