"""-machine, -accel, -enable-kvm, -cpu, -smp."""

from __future__ import annotations

import re

from vmm.cli.builder import ConfigBuilder
from vmm.config import AccelOptions, MachineOptions
from vmm.errors import ConfigError
from vmm.optstr import parse_bool, parse_keyval, parse_number, parse_options

DEFAULT_MACHINE = "cpr-1.0"
MACHINES = ("cpr-1.0",)
ALIASES = {"cpr": "cpr-1.0"}
ACCELERATORS = ("kvm", "unicorn")
MAX_CPUS = 255  # 8-bit APIC ids, as on QEMU's pc

# Machine types that orchestrators name; our machine has fewer devices than any of them.
_FOREIGN_MACHINE = re.compile(r"(?:pc|q35|microvm|pc-i440fx-\d+\.\d+|pc-q35-\d+\.\d+)")
# Properties of those machines that ask for or leave out devices which this one does not have, or
# tune what does not exist here.
_HARMLESS = frozenset(
    {
        *("usb", "graphics", "dump-guest-core", "mem-merge", "smm", "vmport", "suppress-vmdesc"),
        *("hpet", "nvdimm", "acpi", "i8042", "sata", "smbus", "pic", "pit", "rtc", "isa-serial"),
        *("ioapic2", "x-option-roms", "auto-kernel-cmdline", "pcie", "default-bus-bypass-iommu"),
    }
)
_AUTO = "auto"
_TCG_PROPERTIES = frozenset({"thread", "tb-size", "one-insn-per-tb", "split-wx"})
_TOPOLOGY = ("sockets", "dies", "modules", "clusters", "cores", "threads")


def machine(builder: ConfigBuilder, value: str) -> None:
    """-machine; several are merged, the last of a property counts."""
    properties = parse_keyval(value, "type")
    for name, text in properties.items():
        if not isinstance(text, str):
            raise ConfigError(f"Invalid parameter '{name}'")
        builder.machine[name] = text


def finish_machine(builder: ConfigBuilder) -> MachineOptions:
    """All -machine options together. Raises ConfigError with QEMU's text where it has one."""
    given = dict(builder.machine)
    type_name = _machine_type(given.pop("type", DEFAULT_MACHINE), builder)
    given.pop("accel", None)
    backend = given.pop("memory-backend", None)
    aux_ram_share = _on_off("aux-ram-share", given.pop("aux-ram-share", "off"))
    irqchip = _kernel_irqchip(given.pop("kernel-irqchip", _AUTO))
    for name, text in given.items():
        if name not in _HARMLESS:
            raise ConfigError(f"Property '{type_name}-machine.{name}' not found")
        if text != _AUTO:
            _on_off(name, text)
    return MachineOptions(type_name, irqchip, backend, aux_ram_share)


def _machine_type(name: str, builder: ConfigBuilder) -> str:
    if name in MACHINES:
        return name
    if name in ALIASES:
        return ALIASES[name]
    if _FOREIGN_MACHINE.fullmatch(name) is None:
        raise ConfigError(
            f'unsupported machine type: "{name}"\nUse -machine help to list supported machines'
        )
    builder.warnings.append(
        f"machine type '{name}' stands for '{DEFAULT_MACHINE}' here, which has fewer devices"
    )
    return DEFAULT_MACHINE


def irqchip_given(builder: ConfigBuilder) -> bool:
    """Whether the user chose kernel-irqchip; otherwise what is booted decides."""
    return builder.machine.get("kernel-irqchip", _AUTO) != _AUTO


def _kernel_irqchip(text: str) -> bool:
    if text == "split":
        raise ConfigError("kernel-irqchip=split is not supported; use on or off")
    return text != _AUTO and _on_off("kernel-irqchip", text)


def _on_off(name: str, text: str) -> bool:
    value = parse_bool(text)
    if value is None:
        raise ConfigError(f"Parameter '{name}' expects 'on' or 'off'")
    return value


def accel(builder: ConfigBuilder, value: str) -> None:
    """-accel NAME[,property=value]; several are tried in order."""
    options = parse_options(value, "accel")
    properties = {option.key: option.value for option in options}
    name = properties.pop("accel", "")
    if (irqchip := properties.pop("kernel-irqchip", None)) is not None:
        builder.machine["kernel-irqchip"] = irqchip
    builder.accels.append(_accelerator(name, properties, builder))


def enable_kvm(builder: ConfigBuilder) -> None:
    """-enable-kvm: -machine accel=kvm."""
    builder.machine["accel"] = "kvm"


def finish_accels(builder: ConfigBuilder) -> tuple[AccelOptions, ...]:
    """What -accel or -machine accel= ask for; empty: the default list."""
    listed = builder.machine.get("accel")
    if listed is not None and builder.accels:
        raise ConfigError('The -accel and "-machine accel=" options are incompatible')
    if listed is not None:
        return tuple(_accelerator(name, {}, builder) for name in listed.split(":"))
    return tuple(builder.accels)


def _accelerator(name: str, properties: dict[str, str], builder: ConfigBuilder) -> AccelOptions:
    if name == "tcg":
        builder.warnings.append(
            "accelerator 'tcg' stands for 'unicorn' here, the software accelerator"
        )
        rest = {key: text for key, text in properties.items() if key not in _TCG_PROPERTIES}
        return AccelOptions("unicorn", rest)
    if name not in ACCELERATORS:
        raise ConfigError(f"invalid accelerator {name}; there are {', '.join(ACCELERATORS)}")
    return AccelOptions(name, properties)


def cpu(builder: ConfigBuilder, value: str) -> None:
    """-cpu MODEL; the accelerator decides which models it has."""
    model, comma, features = value.partition(",")
    if comma and features != "migratable=on":
        raise ConfigError(
            f"CPU features ('{features}') cannot be chosen here; every CPU state is transferable"
        )
    builder.cpu_model = model


def smp(builder: ConfigBuilder, value: str) -> None:
    """-smp [cpus=]N[,sockets=,cores=,threads=,maxcpus=]; the product must be N."""
    given = {name: _count(name, text) for name, text in parse_keyval(value, "cpus").items()}
    if any(number <= 0 for number in given.values()):
        raise ConfigError("Invalid CPU topology: CPU topology parameters must be greater than zero")
    product = 1
    for name in _TOPOLOGY:
        product *= given.get(name, 1)
    cpus = given.get("cpus", given.get("maxcpus", product))
    maximum = given.get("maxcpus", max(cpus, product) if "cpus" not in given else cpus)
    _check_topology(given, product, cpus, maximum)
    builder.vcpu_count = cpus


def _count(name: str, text: object) -> int:
    if name not in ("cpus", "maxcpus", *_TOPOLOGY):
        raise ConfigError(f"Parameter 'smp.{name}' is unexpected")
    number = parse_number(text) if isinstance(text, str) else None
    if number is None:
        raise ConfigError(f"Parameter 'smp.{name}' expects integer")
    return number


def _check_topology(given: dict[str, int], product: int, cpus: int, maximum: int) -> None:
    complete = {"sockets", "cores", "threads"} <= given.keys()
    shown = " * ".join(f"{name} ({given.get(name, 1)})" for name in _TOPOLOGY if name in given)
    if maximum < cpus:
        raise ConfigError(
            "Invalid CPU topology: maxcpus must be equal to or greater than smp: "
            f"maxcpus ({maximum}) < smp_cpus ({cpus})"
        )
    if maximum % product or (complete and product != maximum):
        raise ConfigError(
            "Invalid CPU topology: product of the hierarchy must match maxcpus: "
            f"{shown} != maxcpus ({maximum})"
        )
    if cpus > MAX_CPUS:
        raise ConfigError(
            f"Invalid SMP CPUs {cpus}. The max CPUs supported by machine '{DEFAULT_MACHINE}' is "
            f"{MAX_CPUS}"
        )
    if maximum > cpus:
        raise ConfigError(f"maxcpus ({maximum}) above cpus ({cpus}): there is no CPU hot-plug")
