from __future__ import annotations

from dataclasses import fields

import pytest

from cpr.deadlines import DeadlineName, Deadlines


@pytest.mark.parametrize("name", list(DeadlineName))
def test_every_name_has_a_positive_default(name: DeadlineName) -> None:
    assert Deadlines().of(name) > 0


def test_every_value_has_a_name() -> None:
    names = {f"{name.value}_ms" for name in DeadlineName}
    assert names == {field.name for field in fields(Deadlines)}


@pytest.mark.parametrize("name", list(DeadlineName))
def test_uniform_sets_every_deadline(name: DeadlineName) -> None:
    assert Deadlines.uniform(1234).of(name) == 1234
