"""-m, -object memory-backend-…, -numa node,memdev=."""

from __future__ import annotations

from typing import Any

from vmm.cli.builder import ConfigBuilder
from vmm.config import MemoryBackend
from vmm.errors import ConfigError
from vmm.optstr import is_identifier, parse_keyval, parse_options, parse_size
from vmm.qapi import BOOL, SIZE, STR, UINT32, Enum, Member, Object, Variant, check, check_keyval
from vmm.qmp.jsonvalue import parse_json

SIZE_HELP = (
    "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
    "and exabytes, respectively."
)
ID_HELP = "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter."
# QEMU rounds RAM up to this, and smaller RAM could not hold a boot sector.
_RAM_GRANULE_BYTES = 8 << 10

_COMMON = (
    Member("size", SIZE),
    Member("share", BOOL, optional=True),
    Member("prealloc", BOOL, optional=True),
    Member("prealloc-threads", UINT32, optional=True),
    Member("merge", BOOL, optional=True),
    Member("dump", BOOL, optional=True),
    Member("reserve", BOOL, optional=True),
    Member("policy", Enum("HostMemPolicy", ("default",)), optional=True),
    Member("x-use-canonical-path-for-ramblock-id", BOOL, optional=True),
)
_MEMFD = (
    Member("seal", BOOL, optional=True),
    Member("hugetlb", BOOL, optional=True),
    Member("hugetlbsize", SIZE, optional=True),
)
OBJECT_TYPES = ("memory-backend-memfd", "memory-backend-ram")
_OBJECT = Object(
    "ObjectOptions",
    (Member("qom-type", Enum("ObjectType", OBJECT_TYPES)), Member("id", STR)),
    tag="qom-type",
    variants=(
        Variant("memory-backend-memfd", Object("MemfdProperties", (*_COMMON, *_MEMFD))),
        Variant("memory-backend-ram", Object("MemoryBackendProperties", _COMMON)),
    ),
)


def memory(builder: ConfigBuilder, value: str) -> None:
    """-m [size=]N[kMGT]; without suffix it is mebibytes."""
    given: dict[str, Any] = parse_keyval(value, "size")
    size = _size(given.pop("size", "0"), "size")
    maximum = given.pop("maxmem", None)
    slots = given.pop("slots", "0")
    for name in given:
        raise ConfigError(f"Invalid parameter '{name}'")
    if slots != "0" and maximum is None:
        raise ConfigError("slots specified but no max-size")
    if slots != "0" or (maximum is not None and _size(maximum, "maxmem") != size):
        raise ConfigError("slots and maxmem above size: there is no memory hot-plug")
    rounded = -(-size // _RAM_GRANULE_BYTES) * _RAM_GRANULE_BYTES
    builder.memory_size_bytes = rounded or None


def _size(text: object, name: str) -> int:
    size = parse_size(text, "M") if isinstance(text, str) else None
    if size is None:
        raise ConfigError(
            f"Parameter '{name}' expects a non-negative number below 2^64\n{SIZE_HELP}"
        )
    return size


def object_(builder: ConfigBuilder, value: str) -> None:
    """-object memory-backend-memfd|memory-backend-ram, as options or as JSON."""
    if value.startswith("{"):
        given = check(_OBJECT, parse_json(value))
    else:
        given = check_keyval(_OBJECT, _flat(builder, value), unexpected="Invalid parameter '{}'")
    backend = _backend(given)
    if backend.id in builder.backends:
        raise ConfigError(f"Duplicate ID '{backend.id}' for object")
    if given.get("hugetlbsize") and not backend.hugetlb:
        builder.warnings.append(f"{backend.id}: hugetlbsize has no effect without hugetlb=on")
    builder.backends[backend.id] = backend


def _flat(builder: ConfigBuilder, value: str) -> dict[str, str]:
    options = parse_options(value, "qom-type")
    builder.warnings += [
        f"short-form boolean option '{option.key}' deprecated; "
        f"please use {option.key}={option.value} instead"
        for option in options
        if option.short
    ]
    return {option.key: option.value for option in options}


def _backend(given: dict[str, Any]) -> MemoryBackend:
    if not is_identifier(given["id"]):
        raise ConfigError(f"Parameter 'id' expects an identifier\n{ID_HELP}")
    kind = given["qom-type"].removeprefix("memory-backend-")
    if given["size"] == 0:
        raise ConfigError(f"property 'size' of {given['qom-type']} doesn't take value '0'")
    hugetlb = given.get("hugetlb", False)
    return MemoryBackend(
        id=given["id"],
        kind=kind,
        size_bytes=given["size"],
        share=given.get("share", kind == "memfd"),
        seal=given.get("seal", True),
        hugetlb=hugetlb,
        hugetlb_size_bytes=given.get("hugetlbsize") or None if hugetlb else None,
        prealloc=given.get("prealloc", False),
    )


def numa(builder: ConfigBuilder, value: str) -> None:
    """-numa node,memdev=ID: guest RAM made of several back-ends, in this order."""
    given = {option.key: option.value for option in parse_options(value, "type")}
    if given.pop("type", None) != "node":
        raise ConfigError("only '-numa node,memdev=ID' is supported: it joins memory back-ends")
    memdev = given.pop("memdev", None)
    given.pop("nodeid", None)
    given.pop("cpus", None)
    for name in given:
        raise ConfigError(f"Invalid parameter '{name}'")
    if memdev is None:
        raise ConfigError("Parameter 'memdev' is missing")
    builder.numa_memdevs.append(memdev)
