"""What tests with real guests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.framework.assemble import Image, assemble

MakeGuest = Callable[..., Path]


@pytest.fixture(params=["booted", "updated"])
def life(request: pytest.FixtureRequest) -> str:
    """Whether the guest is looked at in the process that booted it, or after a live update."""
    return str(request.param)


@pytest.fixture
def guest(tmp_path: Path) -> MakeGuest:
    """Assembles tests/guests/NAME.S: `guest(NAME)`; see `assemble` for the rest."""

    def make(
        name: str, image: Image = Image.SECTOR, *, at: int | None = None, **defines: int
    ) -> Path:
        return assemble(tmp_path, name, image, at=at, **defines)

    return make
