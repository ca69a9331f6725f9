"""Parameters and capabilities; texts and defaults were read from QEMU 10.0.2."""

from __future__ import annotations

from typing import Any

import pytest

from vmm.errors import MigrationError
from vmm.migration.capabilities import CAPABILITIES, CAPABILITY_LIST, MigrationCapabilities
from vmm.migration.parameters import (
    MIGRATION_PARAMETERS,
    MigrationMode,
    MigrationParameters,
    check_globals,
)
from vmm.qapi import QapiError, check

QEMU_DEFAULTS = {
    "cpu-throttle-tailslow": False,
    "xbzrle-cache-size": 67108864,
    "cpu-throttle-initial": 20,
    "announce-max": 550,
    "direct-io": False,
    "avail-switchover-bandwidth": 0,
    "zero-page-detection": "multifd",
    "multifd-qatzip-level": 1,
    "multifd-channels": 2,
    "mode": "normal",
    "multifd-zstd-level": 1,
    "announce-initial": 50,
    "downtime-limit": 300,
    "tls-authz": "",
    "vcpu-dirty-limit": 1,
    "multifd-compression": "none",
    "announce-rounds": 5,
    "announce-step": 100,
    "tls-creds": "",
    "x-vcpu-dirty-limit-period": 1000,
    "multifd-zlib-level": 1,
    "max-cpu-throttle": 99,
    "max-postcopy-bandwidth": 0,
    "tls-hostname": "",
    "throttle-trigger-threshold": 50,
    "max-bandwidth": 134217728,
    "x-checkpoint-delay": 20000,
    "cpu-throttle-increment": 10,
}


def set_checked(parameters: MigrationParameters, values: dict[str, Any]) -> None:
    """As migrate-set-parameters does."""
    parameters.set(check(MIGRATION_PARAMETERS, values))


def test_defaults_are_qemus() -> None:
    assert MigrationParameters().to_qmp() == QEMU_DEFAULTS


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"mode": "y"}, "Parameter 'mode' does not accept value 'y'"),
        ({"mode": 1}, "Invalid parameter type for 'mode', expected: string"),
        ({"foo": 1}, "Parameter 'foo' is unexpected"),
        (
            {"multifd-channels": 0},
            "Parameter 'multifd_channels' expects a value between 1 and 255",
        ),
        ({"multifd-channels": 256}, "Parameter 'multifd-channels' expects uint8_t"),
        ({"multifd-channels": "2"}, "Parameter 'multifd-channels' expects uint64"),
        (
            {"downtime-limit": 2000001},
            "Parameter 'downtime_limit' expects an integer in the range of 0 to (2000 * 1000) ms",
        ),
        ({"max-bandwidth": 1.5}, "Parameter 'max-bandwidth' expects uint64"),
        (
            {"cpu-throttle-initial": 0},
            "Parameter 'cpu_throttle_initial' expects an integer in the range of 1 to 99",
        ),
        (
            {"cpu-throttle-increment": 100},
            "Parameter 'cpu_throttle_increment' expects an integer in the range of 1 to 99",
        ),
        (
            {"cpu-throttle-tailslow": 1},
            "Invalid parameter type for 'cpu-throttle-tailslow', expected: boolean",
        ),
        (
            {"max-cpu-throttle": 1},
            "Parameter 'max_cpu_throttle' expects an integer in the range of "
            "cpu_throttle_initial to 99",
        ),
        (
            {"max-cpu-throttle": 100},
            "Parameter 'max_cpu_throttle' expects an integer in the range of "
            "cpu_throttle_initial to 99",
        ),
        (
            {"throttle-trigger-threshold": 0},
            "Parameter 'throttle_trigger_threshold' expects an integer in the range of 1 to 100",
        ),
        (
            {"announce-initial": 1000000},
            "Parameter 'announce_initial' expects a value between 0 and 100000",
        ),
        (
            {"announce-rounds": 100000},
            "Parameter 'announce_rounds' expects a value between 0 and 1000",
        ),
        (
            {"announce-step": 0},
            "Parameter 'announce_step' expects a value between 0 and 10000",
        ),
        (
            {"xbzrle-cache-size": 1},
            "Parameter 'xbzrle_cache_size' expects a power of two no less than the target page "
            "size",
        ),
        (
            {"multifd-compression": "zz"},
            "Parameter 'multifd-compression' does not accept value 'zz'",
        ),
        (
            {"multifd-zlib-level": 10},
            "Parameter 'multifd_zlib_level' expects a value between 0 and 9",
        ),
        (
            {"multifd-zstd-level": 21},
            "Parameter 'multifd_zstd_level' expects a value between 0 and 20",
        ),
        ({"tls-creds": 1}, "Invalid parameter type for 'tls-creds', expected: StrOrNull"),
        (
            {"zero-page-detection": "zz"},
            "Parameter 'zero-page-detection' does not accept value 'zz'",
        ),
        (
            {"x-vcpu-dirty-limit-period": 0},
            "Parameter 'x-vcpu-dirty-limit-period' expects a value between 1 and 1000",
        ),
        ({"vcpu-dirty-limit": 0}, "Parameter 'vcpu_dirty_limit' must be greater than 1 MB/s"),
        ({"direct-io": 1}, "Invalid parameter type for 'direct-io', expected: boolean"),
    ],
)
def test_a_bad_value_gets_qemus_text(values: dict[str, Any], text: str) -> None:
    parameters = MigrationParameters()
    with pytest.raises((MigrationError, QapiError)) as caught:
        set_checked(parameters, values)
    assert str(caught.value) == text
    assert parameters.to_qmp() == QEMU_DEFAULTS


def test_several_parameters_are_set_all_or_none() -> None:
    parameters = MigrationParameters()
    with pytest.raises(MigrationError):
        set_checked(parameters, {"mode": "cpr-transfer", "announce-step": 0})
    assert parameters.to_qmp()["mode"] == "normal"
    set_checked(parameters, {"mode": "cpr-transfer", "announce-step": 7})
    assert parameters.mode is MigrationMode.CPR_TRANSFER
    assert parameters.is_cpr
    assert parameters.to_qmp()["announce-step"] == 7


def test_a_negative_size_is_refused_instead_of_wrapping_round() -> None:
    with pytest.raises(QapiError, match="'max-bandwidth' expects uint64"):
        set_checked(MigrationParameters(), {"max-bandwidth": -1})


def test_throttle_limits_may_be_set_together() -> None:
    parameters = MigrationParameters()
    set_checked(parameters, {"cpu-throttle-initial": 5, "max-cpu-throttle": 10})
    with pytest.raises(MigrationError, match="max_cpu_throttle"):
        set_checked(parameters, {"max-cpu-throttle": 4})


def test_tls_is_refused_and_not_ignored() -> None:
    parameters = MigrationParameters()
    set_checked(parameters, {"tls-creds": None})
    assert parameters.to_qmp()["tls-creds"] == ""
    with pytest.raises(MigrationError, match="TLS is not supported"):
        set_checked(parameters, {"tls-creds": "tls0"})


def test_our_deadline_override_is_unset_until_it_is_set() -> None:
    parameters = MigrationParameters()
    assert parameters.x_cpr_timeout_ms is None
    set_checked(parameters, {"x-cpr-timeout-ms": 250})
    assert parameters.x_cpr_timeout_ms == 250
    assert parameters.to_qmp()["x-cpr-timeout-ms"] == 250
    with pytest.raises(MigrationError, match="between 1 and 3600000"):
        set_checked(parameters, {"x-cpr-timeout-ms": 0})


def test_globals_preset_parameters_and_capabilities() -> None:
    properties = {
        "x-events": "on",
        "mode": "cpr-transfer",
        "x-max-bandwidth": "1G",
        "x-ignore-shared": "on",
        "x-cpr-timeout-ms": "100",
    }
    check_globals(properties)
    parameters = MigrationParameters.from_globals(properties)
    capabilities = MigrationCapabilities.from_globals(properties)
    assert parameters.mode is MigrationMode.CPR_TRANSFER
    assert parameters.to_qmp()["max-bandwidth"] == 1 << 30
    assert parameters.x_cpr_timeout_ms == 100
    assert capabilities.events
    assert capabilities.is_on("x-ignore-shared")
    assert not capabilities.pause_before_switchover


@pytest.mark.parametrize(
    ("properties", "text"),
    [
        (
            {"foo": "1"},
            "can't apply global migration.foo=1: Property 'migration.foo' not found",
        ),
        (
            {"events": "on"},
            "can't apply global migration.events=on: Property 'migration.events' not found",
        ),
        (
            {"x-events": "maybe"},
            "can't apply global migration.x-events=maybe: "
            "Parameter 'x-events' expects 'on' or 'off'",
        ),
        (
            {"mode": "zz"},
            "can't apply global migration.mode=zz: Parameter 'mode' does not accept value 'zz'",
        ),
        (
            {"x-switchover-ack": "on"},
            "can't apply global migration.x-switchover-ack=on: "
            "Capability 'switchover-ack' requires capability 'return-path'",
        ),
    ],
)
def test_bad_globals_get_qemus_text(properties: dict[str, str], text: str) -> None:
    with pytest.raises(MigrationError) as caught:
        check_globals(properties)
    assert str(caught.value) == text


def test_capabilities_are_qemus_and_all_off() -> None:
    listed = MigrationCapabilities().to_qmp()
    assert [entry["capability"] for entry in listed] == list(CAPABILITIES)
    assert len(CAPABILITIES) == 22
    assert not any(entry["state"] for entry in listed)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (
            ["switchover-ack"],
            "Capability 'switchover-ack' requires capability 'return-path'",
        ),
        (["postcopy-preempt"], "Postcopy preempt requires postcopy-ram"),
        (["multifd", "xbzrle"], "Multifd is not compatible with xbzrle"),
        (["mapped-ram", "xbzrle"], "Mapped-ram migration is incompatible with xbzrle"),
        (["mapped-ram", "postcopy-ram"], "Mapped-ram migration is incompatible with postcopy"),
        (["multifd", "postcopy-ram"], "Postcopy is not yet compatible with multifd"),
        (["x-ignore-shared", "postcopy-ram"], "Postcopy is not compatible with ignore-shared"),
        (
            ["background-snapshot", "return-path"],
            "Background-snapshot is not compatible with return-path",
        ),
        (
            ["background-snapshot", "multifd"],
            "Background-snapshot is not compatible with multifd",
        ),
        (
            ["background-snapshot", "zero-copy-send"],
            "Background-snapshot is not compatible with zero-copy-send",
        ),
        (
            ["zero-copy-send"],
            "Zero copy only available for non-compressed non-TLS multifd migration",
        ),
        (
            ["dirty-limit"],
            "dirty-limit requires KVM with accelerator property 'dirty-ring-size' set",
        ),
    ],
)
def test_capability_conflicts_get_qemus_text(names: list[str], text: str) -> None:
    capabilities = MigrationCapabilities()
    with pytest.raises(MigrationError) as caught:
        capabilities.set(dict.fromkeys(names, True))
    assert str(caught.value) == text
    assert capabilities.to_qmp() == MigrationCapabilities().to_qmp()


def test_of_a_capability_given_twice_the_last_counts() -> None:
    capabilities = MigrationCapabilities()
    capabilities.set_list(
        [{"capability": "events", "state": True}, {"capability": "events", "state": False}]
    )
    assert not capabilities.events


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "Invalid parameter type for 'capabilities', expected: array"),
        ([1], "Invalid parameter type for 'capabilities[0]', expected: object"),
        (
            [{"capability": "zz", "state": True}],
            "Parameter 'capability' does not accept value 'zz'",
        ),
        ([{"capability": "events"}], "Parameter 'capabilities[0].state' is missing"),
        (
            [{"capability": "events", "state": 1}],
            "Invalid parameter type for 'capabilities[0].state', expected: boolean",
        ),
        (
            [{"capability": "events", "state": True, "x": 1}],
            "Parameter 'capabilities[0].x' is unexpected",
        ),
    ],
)
def test_malformed_capability_lists_get_qemus_text(value: Any, text: str) -> None:
    with pytest.raises(QapiError) as caught:
        check(CAPABILITY_LIST, value, "capabilities")
    assert str(caught.value) == text


@pytest.mark.parametrize("name", ["migrate-fds", "local"])
def test_migrate_fds_has_two_names_and_is_reported_once_set(name: str) -> None:
    parameters = MigrationParameters()
    assert not parameters.to_qmp().keys() & {"migrate-fds", "local"}
    parameters.set({name: True})
    assert parameters.migrate_fds
    assert parameters.to_qmp()["migrate-fds"] is parameters.to_qmp()["local"] is True
    parameters.set({name: False})
    assert not parameters.migrate_fds


def test_two_names_of_migrate_fds_with_two_values_are_refused() -> None:
    with pytest.raises(MigrationError, match="are the same one"):
        MigrationParameters().set({"migrate-fds": True, "local": False})


@pytest.mark.parametrize(
    ("mode", "set_to", "passes"),
    [
        ("normal", None, False),
        ("normal", True, True),
        ("cpr-transfer", None, True),
        ("cpr-transfer", False, True),
        ("cpr-exec", None, True),
        ("cpr-reboot", None, False),
    ],
)
def test_modes_whose_processes_live_side_by_side_select_migrate_fds(
    mode: str, set_to: bool | None, passes: bool
) -> None:
    parameters = MigrationParameters()
    parameters.set({"mode": mode} | ({} if set_to is None else {"migrate-fds": set_to}))
    assert parameters.passes_fds is passes


def test_peer_uid_is_allowed_beside_our_own() -> None:
    parameters = MigrationParameters.from_globals({"x-peer-uid": "65534"})
    assert parameters.allowed_uids() == MigrationParameters().allowed_uids() | {65534}
