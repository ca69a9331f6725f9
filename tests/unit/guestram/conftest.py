"""Every test here must give back the memfds that it opened and mapped."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from tests.unit.guestram.leaks import memfds


@pytest.fixture(autouse=True)
def _no_memfd_is_left() -> Iterator[None]:
    gc.collect()
    before = memfds()
    yield
    assert memfds() == before
