"""Migration capabilities: the ones QEMU 10.0 has, what excludes what, and its texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from vmm.errors import MigrationError
from vmm.qapi import BOOL, Array, Enum, Member, Object, QapiError, check_keyval

CAPABILITIES: tuple[str, ...] = (
    "xbzrle",
    "rdma-pin-all",
    "auto-converge",
    "zero-blocks",
    "events",
    "postcopy-ram",
    "x-colo",
    "release-ram",
    "return-path",
    "pause-before-switchover",
    "multifd",
    "dirty-bitmaps",
    "postcopy-blocktime",
    "late-block-activate",
    "x-ignore-shared",
    "validate-uuid",
    "background-snapshot",
    "zero-copy-send",
    "postcopy-preempt",
    "switchover-ack",
    "dirty-limit",
    "mapped-ram",
)
CAPABILITY_STATUS = Object(
    "MigrationCapabilityStatus",
    (Member("capability", Enum("MigrationCapability", CAPABILITIES)), Member("state", BOOL)),
)
CAPABILITY_LIST = Array(CAPABILITY_STATUS)

# Each row: the first capability on together with the second is refused with this text.
_CONFLICTS: tuple[tuple[str, str, str], ...] = (
    ("postcopy-ram", "x-ignore-shared", "Postcopy is not compatible with ignore-shared"),
    ("multifd", "postcopy-ram", "Postcopy is not yet compatible with multifd"),
    *(
        ("background-snapshot", other, f"Background-snapshot is not compatible with {other}")
        for other in (
            "postcopy-ram",
            "dirty-bitmaps",
            "postcopy-blocktime",
            "late-block-activate",
            "return-path",
            "multifd",
            "pause-before-switchover",
            "auto-converge",
            "release-ram",
            "rdma-pin-all",
            "xbzrle",
            "x-colo",
            "validate-uuid",
            "zero-copy-send",
        )
    ),
    ("multifd", "xbzrle", "Multifd is not compatible with xbzrle"),
    ("mapped-ram", "xbzrle", "Mapped-ram migration is incompatible with xbzrle"),
    ("mapped-ram", "postcopy-ram", "Mapped-ram migration is incompatible with postcopy"),
)
# Each row: the first needs the second.
_NEEDS: tuple[tuple[str, str, str], ...] = (
    ("postcopy-preempt", "postcopy-ram", "Postcopy preempt requires postcopy-ram"),
    (
        "switchover-ack",
        "return-path",
        "Capability 'switchover-ack' requires capability 'return-path'",
    ),
    (
        "zero-copy-send",
        "multifd",
        "Zero copy only available for non-compressed non-TLS multifd migration",
    ),
)
# What no accelerator here can do, in the words of a QEMU on such a host.
_IMPOSSIBLE: Mapping[str, str] = {
    "dirty-limit": "dirty-limit requires KVM with accelerator property 'dirty-ring-size' set",
}


class MigrationCapabilities:
    """Which capabilities are on; one holder per process."""

    def __init__(self) -> None:
        self._on = dict.fromkeys(CAPABILITIES, False)

    @classmethod
    def from_globals(cls, properties: Mapping[str, str]) -> Self:
        """`-global migration.x-NAME=on`; names of parameters are skipped. Raises MigrationError."""
        capabilities = cls()
        for name, text in properties.items():
            if (capability := capability_of(name)) is None:
                continue
            try:
                capabilities.set({capability: check_keyval(BOOL, text, name)})
            except (QapiError, MigrationError) as error:
                raise MigrationError(cannot_apply(name, text, str(error))) from error
        return capabilities

    def set(self, updates: Mapping[str, bool]) -> None:
        """Set several, all or none. Raises MigrationError with QEMU's text."""
        wanted = {**self._on, **updates}
        for first, second, text in _CONFLICTS:
            if wanted[first] and wanted[second]:
                raise MigrationError(text)
        for first, second, text in _NEEDS:
            if wanted[first] and not wanted[second]:
                raise MigrationError(text)
        for name, text in _IMPOSSIBLE.items():
            if wanted[name]:
                raise MigrationError(text)
        self._on = wanted

    def set_list(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """The argument of migrate-set-capabilities; of a name given twice the last counts."""
        self.set({entry["capability"]: entry["state"] for entry in entries})

    def is_on(self, name: str) -> bool:
        """Whether capability `name` is on."""
        return self._on[name]

    def to_qmp(self) -> list[dict[str, Any]]:
        """The value of query-migrate-capabilities."""
        return [{"capability": name, "state": self._on[name]} for name in CAPABILITIES]

    @property
    def events(self) -> bool:
        """Whether MIGRATION events are wanted."""
        return self._on["events"]

    @property
    def pause_before_switchover(self) -> bool:
        """Whether the update waits in pre-switchover for migrate-continue."""
        return self._on["pause-before-switchover"]


def capability_of(prop: str) -> str | None:
    """The capability behind a property: `x-events` -> events, `x-ignore-shared` as it is."""
    plain = prop.removeprefix("x-")
    if prop != plain and plain in CAPABILITIES:
        return plain
    return prop if prop.startswith("x-") and prop in CAPABILITIES else None


def cannot_apply(name: str, value: str, why: str) -> str:
    """QEMU's text for a bad `-global migration.…`."""
    return f"can't apply global migration.{name}={value}: {why}"
