"""Seeds and kept inputs of every fuzz target: nothing but the expected errors comes out."""

from __future__ import annotations

import random

import pytest

from tests.fuzz import targets
from tests.fuzz.__main__ import CORPUS
from tests.fuzz.targets import TARGETS

MUTATIONS = 300


@pytest.mark.parametrize("name", TARGETS)
def test_kept_corpus_and_seeds_raise_nothing_unexpected(name: str) -> None:
    target = TARGETS[name]
    kept = sorted((CORPUS / name).iterdir())
    assert kept, f"no corpus: run `python -m tests.fuzz {name}`"
    for data in (*target.seeds, *(path.read_bytes() for path in kept)):
        target.run(data)


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_seeds_raise_nothing_unexpected(name: str) -> None:
    target = TARGETS[name]
    chance = random.Random(name)
    for _ in range(MUTATIONS):
        data = bytearray(chance.choice(target.seeds))
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        target.run(bytes(data))


def test_a_target_that_lets_an_error_out_is_noticed() -> None:
    """The checks in the targets can fail."""

    def two_encodings(_value: object) -> bytes:
        return b"another"

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(targets, "dumps", two_encodings)
        with pytest.raises(AssertionError):
            TARGETS["cbor"].run(TARGETS["cbor"].seeds[0])
