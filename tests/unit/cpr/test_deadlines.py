from __future__ import annotations

from dataclasses import fields

import pytest

from cpr.deadlines import ORPHAN_FACTOR, DeadlineName, Deadlines


@pytest.mark.parametrize("name", list(DeadlineName))
def test_every_name_has_a_positive_default(name: DeadlineName) -> None:
    assert Deadlines().of(name) > 0


def test_every_value_has_a_name() -> None:
    names = {f"{name.value}_ms" for name in DeadlineName}
    assert names == {field.name for field in fields(Deadlines)}


@pytest.mark.parametrize("name", list(DeadlineName))
def test_uniform_sets_every_deadline(name: DeadlineName) -> None:
    factor = ORPHAN_FACTOR if name is DeadlineName.ORPHAN else 1
    assert Deadlines.uniform(1234).of(name) == 1234 * factor


@pytest.mark.parametrize("deadlines", [Deadlines(), Deadlines.uniform(1000)])
def test_an_orphan_outlasts_whatever_its_source_may_be_waiting_for(deadlines: Deadlines) -> None:
    assert deadlines.orphan_ms >= ORPHAN_FACTOR * max(deadlines.load_ms, deadlines.run_ms)
