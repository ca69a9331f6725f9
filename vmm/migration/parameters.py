"""Migration parameters: the ones QEMU 10.0 has, its defaults, ranges and texts.

All of QEMU's are kept, because clients set and read back what they know. Those about copying RAM
(bandwidth, throttling, compression, multifd, …) describe work that does not exist when RAM stays in
place. What would change the promise of an update is refused instead of being ignored (TLS).

Ours: `x-cpr-timeout-ms` replaces every deadline of an update. `x-peer-uid` is one more user whose
process may be the other side (by default our own user and root). `x-cpr-fault` makes this process
fail at one step of its next update (`vmm.update.faults`). `migrate-fds`, also `local`: the
user wants open fds of network cards to be passed; a cpr mode wants that by itself.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from cpr.peer import default_allowed_uids
from cpr.phases import Role
from vmm.errors import MigrationError
from vmm.migration.capabilities import MigrationCapabilities, cannot_apply, capability_of
from vmm.migration.rules import (
    Rule,
    cache_size,
    dirty_limit,
    downtime,
    fault_plan,
    in_range,
    integer_in_range,
    no_tls,
)
from vmm.qapi import (
    BOOL,
    SIZE,
    STR_OR_NULL,
    UINT8,
    UINT32,
    UINT64,
    Enum,
    Member,
    Object,
    QapiError,
    QapiType,
    check_keyval,
)
from vmm.update.faults import FaultPlan


class MigrationMode(enum.Enum):
    """The `mode` parameter. Only cpr-transfer can be performed here."""

    NORMAL = "normal"
    CPR_REBOOT = "cpr-reboot"
    CPR_TRANSFER = "cpr-transfer"
    CPR_EXEC = "cpr-exec"


# An update that needs longer than an hour per step is broken; it also keeps timers in range.
MAX_CPR_TIMEOUT_MS = 3_600_000

MIGRATE_FDS = "migrate-fds"
_LOCAL = "local"  # the name that QEMU's own discussion settled on; the same parameter


@dataclass(frozen=True, slots=True)
class _Spec:
    """One parameter. A default of None means: not reported until it is set."""

    name: str
    type: QapiType
    default: Any
    rule: Rule | None = None


def _enum(name: str, *values: str) -> Enum:
    return Enum(name, values)


_SPECS: tuple[_Spec, ...] = (
    _Spec("announce-initial", SIZE, 50, in_range("announce_initial", 0, 100_000)),
    _Spec("announce-max", SIZE, 550, in_range("announce_max", 0, 100_000)),
    _Spec("announce-rounds", SIZE, 5, in_range("announce_rounds", 0, 1000)),
    _Spec("announce-step", SIZE, 100, in_range("announce_step", 1, 10_000, shown_low=0)),
    _Spec(
        "throttle-trigger-threshold",
        UINT8,
        50,
        integer_in_range("throttle_trigger_threshold", 1, 100),
    ),
    _Spec("cpu-throttle-initial", UINT8, 20, integer_in_range("cpu_throttle_initial", 1, 99)),
    _Spec("cpu-throttle-increment", UINT8, 10, integer_in_range("cpu_throttle_increment", 1, 99)),
    _Spec("cpu-throttle-tailslow", BOOL, False),
    _Spec("tls-creds", STR_OR_NULL, "", no_tls),
    _Spec("tls-hostname", STR_OR_NULL, ""),
    _Spec("tls-authz", STR_OR_NULL, ""),
    _Spec("max-bandwidth", SIZE, 128 << 20),
    _Spec("avail-switchover-bandwidth", SIZE, 0),
    _Spec("downtime-limit", UINT64, 300, downtime),
    _Spec("x-checkpoint-delay", UINT32, 20_000),
    _Spec("multifd-channels", UINT8, 2, in_range("multifd_channels", 1, 255)),
    _Spec("xbzrle-cache-size", SIZE, 64 << 20, cache_size),
    _Spec("max-postcopy-bandwidth", SIZE, 0),
    _Spec(
        "max-cpu-throttle",
        UINT8,
        99,
        integer_in_range("max_cpu_throttle", 1, 99, "cpu_throttle_initial"),
    ),
    _Spec("multifd-compression", _enum("MultiFDCompression", "none", "zlib", "zstd"), "none"),
    _Spec("multifd-zlib-level", UINT8, 1, in_range("multifd_zlib_level", 0, 9)),
    _Spec("multifd-zstd-level", UINT8, 1, in_range("multifd_zstd_level", 0, 20)),
    _Spec("multifd-qatzip-level", UINT8, 1, in_range("multifd_qatzip_level", 1, 9)),
    _Spec(
        "x-vcpu-dirty-limit-period",
        UINT64,
        1000,
        in_range("x-vcpu-dirty-limit-period", 1, 1000),
    ),
    _Spec("vcpu-dirty-limit", UINT64, 1, dirty_limit),
    _Spec("mode", Enum("MigMode", tuple(mode.value for mode in MigrationMode)), "normal"),
    _Spec(
        "zero-page-detection",
        _enum("ZeroPageDetection", "none", "legacy", "multifd"),
        "multifd",
    ),
    _Spec("direct-io", BOOL, False),
    _Spec("x-cpr-timeout-ms", UINT32, None, in_range("x-cpr-timeout-ms", 1, MAX_CPR_TIMEOUT_MS)),
    _Spec("x-peer-uid", UINT32, None),
    _Spec("x-cpr-fault", STR_OR_NULL, None, fault_plan),
    _Spec(MIGRATE_FDS, BOOL, None),
    _Spec(_LOCAL, BOOL, None),
)
_BY_NAME = {spec.name: spec for spec in _SPECS}

# Arguments of migrate-set-parameters, and the value of query-migrate-parameters.
MIGRATION_PARAMETERS = Object(
    "MigrationParameters", tuple(Member(spec.name, spec.type, optional=True) for spec in _SPECS)
)


class MigrationParameters:
    """The present values; one holder per process, changed by migrate-set-parameters."""

    def __init__(self) -> None:
        self._values = {spec.name: spec.default for spec in _SPECS if spec.default is not None}

    @classmethod
    def from_globals(cls, properties: Mapping[str, str]) -> Self:
        """Defaults changed by `-global migration.NAME=VALUE`; names of capabilities are skipped.

        Raises MigrationError with QEMU's text.
        """
        parameters = cls()
        for name, text in properties.items():
            if (spec := _BY_NAME.get(name) or _BY_NAME.get(name.removeprefix("x-"))) is None:
                continue
            try:
                parameters.set({spec.name: check_keyval(spec.type, text, name)})
            except (QapiError, MigrationError) as error:
                raise MigrationError(cannot_apply(name, text, str(error))) from error
        return parameters

    def set(self, updates: Mapping[str, Any]) -> None:
        """Set several, all or none. `updates` passed the check of MIGRATION_PARAMETERS.

        Raises MigrationError with QEMU's text.
        """
        for name, value in updates.items():
            rule = _BY_NAME[name].rule
            if rule is not None and (problem := rule(value)) is not None:
                raise MigrationError(problem)
        initial = updates.get("cpu-throttle-initial", self._values["cpu-throttle-initial"])
        if updates.get("max-cpu-throttle", initial) < initial:
            raise MigrationError(
                "Parameter 'max_cpu_throttle' expects an integer in the range of "
                "cpu_throttle_initial to 99"
            )
        self._values.update(
            {name: "" if value is None else value for name, value in _aliased(updates).items()}
        )

    def to_qmp(self) -> dict[str, Any]:
        """The value of query-migrate-parameters."""
        return dict(self._values)

    @property
    def mode(self) -> MigrationMode:
        """How `migrate` works."""
        return MigrationMode(self._values["mode"])

    @property
    def is_cpr(self) -> bool:
        """Whether the mode keeps RAM in place and therefore needs it to be shared."""
        return self.mode is not MigrationMode.NORMAL

    @property
    def passes_fds(self) -> bool:
        """Whether cards that may (their property migrate-fds) pass their fds: the user's choice.

        Selected by the modes whose processes live side by side; a reboot has nobody to pass to.
        """
        both_alive = self.mode in (MigrationMode.CPR_TRANSFER, MigrationMode.CPR_EXEC)
        return both_alive or self.migrate_fds

    @property
    def migrate_fds(self) -> bool:
        """The parameter as it was set."""
        return bool(self._values.get(MIGRATE_FDS, False))

    def allowed_uids(self) -> frozenset[int]:
        """The users whose process may be the other side of an update."""
        extra = self._values.get("x-peer-uid")
        return default_allowed_uids() if extra is None else default_allowed_uids() | {extra}

    def take_fault(self, role: Role) -> FaultPlan | None:
        """The fault that a drill wants in this process's next update in `role`; asked for once."""
        text = self._values.get("x-cpr-fault")
        plan = FaultPlan.parse(text) if text else None
        if plan is None or plan.role is not role:
            return None
        del self._values["x-cpr-fault"]
        return plan

    @property
    def x_cpr_timeout_ms(self) -> int | None:
        """What replaces every deadline of an update, if anything."""
        value = self._values.get("x-cpr-timeout-ms")
        return None if value is None else int(value)

    @property
    def uses_compression(self) -> bool:
        """Whether RAM pages would be compressed."""
        return bool(self._values["multifd-compression"] != "none")

    @property
    def direct_io(self) -> bool:
        """Whether files are to be written past the page cache."""
        return bool(self._values["direct-io"])


def _aliased(updates: Mapping[str, Any]) -> dict[str, Any]:
    """Both names of `migrate-fds` get the value of either. Raises MigrationError."""
    given = {updates[name] for name in (MIGRATE_FDS, _LOCAL) if name in updates}
    if len(given) > 1:
        raise MigrationError(f"Parameters '{MIGRATE_FDS}' and '{_LOCAL}' are the same one")
    return {**updates, **{name: value for value in given for name in (MIGRATE_FDS, _LOCAL)}}


def check_globals(properties: Mapping[str, str]) -> None:
    """Refuse unknown names and bad values of `-global migration.…`. Raises MigrationError."""
    for name, text in properties.items():
        known = name in _BY_NAME or name.removeprefix("x-") in _BY_NAME
        if not known and capability_of(name) is None:
            raise MigrationError(cannot_apply(name, text, f"Property 'migration.{name}' not found"))
    MigrationParameters.from_globals(properties)
    MigrationCapabilities.from_globals(properties)
