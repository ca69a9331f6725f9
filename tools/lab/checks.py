"""The one way in which a check of the lab fails."""

from __future__ import annotations

from collections.abc import Sequence

from tools.lab.errors import CheckFailedError


def expect_nothing(what: str, problems: Sequence[str]) -> None:
    """Raise CheckFailedError with all `problems`, if there are any; `what` is where they are."""
    if problems:
        raise CheckFailedError(f"{what}: {'; '.join(problems)}")
