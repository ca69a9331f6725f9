from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tools.lab.errors import DeadlineError
from tools.peer.appearing import file_appears

GENEROUS_MS = 20_000


def test_file_that_exists_is_there_at_once(tmp_path: Path) -> None:
    (tmp_path / "wanted").touch()
    asyncio.run(file_appears(tmp_path / "wanted", GENEROUS_MS))
    assert (tmp_path / "wanted").exists()


def test_file_made_later_ends_the_wait_and_others_do_not(tmp_path: Path) -> None:
    async def scenario() -> bool:
        wait = asyncio.create_task(file_appears(tmp_path / "wanted", GENEROUS_MS))
        await asyncio.sleep(0)  # the watch is set
        (tmp_path / "other").touch()
        await asyncio.sleep(0)
        ended_early = wait.done()
        (tmp_path / "wanted").touch()
        await wait
        return ended_early

    assert not asyncio.run(scenario())


def test_file_that_never_comes_is_a_deadline_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(DeadlineError, match="wanted to appear"):
        asyncio.run(file_appears(tmp_path / "wanted", deadline_ms=10))
