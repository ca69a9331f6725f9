"""Where the golden files are, and which of them may still change.

    tests/golden/VERSION/schema.json                what the version says of its sections
    tests/golden/VERSION/sections/NAME.cbor         a section's payload
    tests/golden/VERSION/messages/KIND.cprl         a message, as a frame

A version is released when CHANGELOG.md has a dated heading for it. Its files are never rewritten: a
digest of them all is kept in released.json (`python -m tests.golden.write --release`). A wording
that changed without a change of meaning is entered in REWORDED, with its reason.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cpr.codec import encode
from cpr.plaincbor import dumps
from tests.golden.examples import STATES
from tests.golden.schema import schema
from tests.unit.cpr.examples import MESSAGES
from vmm.version import VERSION

PLACE = Path(__file__).parent
ROOT = PLACE.parents[1]
_RELEASE = re.compile(r"^## \[(?P<version>\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d", re.MULTILINE)
SCHEMA, SECTIONS, MESSAGES_DIR = "schema.json", "sections", "messages"
RELEASED = "released.json"

# (version, section, record or message) -> why its text may differ although nothing else does.
REWORDED: Mapping[tuple[str, str], str] = {}


def released_versions() -> frozenset[str]:
    """Versions with a dated heading in the changelog."""
    return frozenset(_RELEASE.findall((ROOT / "CHANGELOG.md").read_text()))


def seal(version: str) -> None:
    """Keep the digest of a released version's files; ValueError when that was done before."""
    sealed = _sealed()
    if version in sealed:
        raise ValueError(f"version {version} is sealed already")
    text = json.dumps(sealed | {version: _digest_of(version)}, indent=1, sort_keys=True)
    (PLACE / RELEASED).write_text(text + "\n")


def edited_versions() -> list[str]:
    """Released versions whose files are not those that were released, or that nobody sealed."""
    sealed = _sealed()
    return [v for v in sorted(released_versions()) if sealed.get(v) != _digest_of(v)]


def _sealed() -> dict[str, str]:
    path = PLACE / RELEASED
    sealed: dict[str, str] = json.loads(path.read_text()) if path.is_file() else {}
    return sealed


def _digest_of(version: str) -> str:
    place = PLACE / version
    digest = hashlib.sha256()
    for path in sorted(path for path in place.rglob("*") if path.is_file()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(place)} {len(content)}\0".encode() + content)
    return digest.hexdigest()


def recorded_versions() -> list[str]:
    """Versions that have golden files, oldest first."""
    found = [path.name for path in PLACE.iterdir() if (path / SCHEMA).is_file()]
    return sorted(found, key=lambda version: [int(part) for part in version.split(".")])


def recorded_schema(version: str) -> dict[str, Any]:
    """The schema as that version had it."""
    recorded: dict[str, Any] = json.loads((PLACE / version / SCHEMA).read_text())
    return recorded


def files_now() -> dict[str, bytes]:
    """Name below the version's directory -> content, for the present code."""
    files = {SCHEMA: json.dumps(schema(), indent=1, sort_keys=True).encode() + b"\n"}
    for name, state in STATES.items():
        files[f"{SECTIONS}/{name}.cbor"] = dumps(state.to_map())
    for kind, message in MESSAGES.items():
        fd_count = len(message.names) if kind.name == "FDS" else 0  # type: ignore[attr-defined]
        files[f"{MESSAGES_DIR}/{kind.name}.cprl"] = encode(message, fd_count=fd_count)
    return files


def write() -> list[str]:
    """Write the present version's files; ValueError when it is released. Returns what changed."""
    if VERSION in released_versions():
        raise ValueError(f"version {VERSION} is released: its golden files are never rewritten")
    changed = []
    for name, content in files_now().items():
        path = PLACE / VERSION / name
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            changed.append(name)
    return changed
