"""The ACPI tables as an operating system walks them, and as ACPICA's compiler reads them."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest

from vmm.boot import aml
from vmm.boot.acpi import TABLES_ADDRESS, AcpiMachine, acpi_tables
from vmm.devices.serial import COM_PORTS
from vmm.devices.virtio.mmio import mmio_slot

MACHINE = AcpiMachine(vcpu_count=3, serial_count=2, virtio_count=17)


class Tables:
    """Follow the pointers from the RSDP."""

    def __init__(self, area: bytes) -> None:
        self.area = area
        assert area[:8] == b"RSD PTR "
        assert sum(area[:20]) & 0xFF == sum(area[:36]) & 0xFF == 0
        (xsdt,) = struct.unpack_from("<Q", area, 24)
        content = self.at(xsdt)
        entries = struct.unpack_from(f"<{(len(content) - 36) // 8}Q", content, 36)
        self.by_name = {self.at(entry)[:4]: self.at(entry) for entry in entries}
        self.by_name[b"DSDT"] = self.at(struct.unpack_from("<Q", self.by_name[b"FACP"], 140)[0])

    def at(self, address: int) -> bytes:
        """The table at a guest address, its checksum verified."""
        offset = address - TABLES_ADDRESS
        (length,) = struct.unpack_from("<I", self.area, offset + 4)
        table = self.area[offset : offset + length]
        assert len(table) == length
        assert sum(table) & 0xFF == 0
        return table


def test_the_tables_hang_together() -> None:
    tables = Tables(acpi_tables(MACHINE)).by_name
    assert set(tables) == {b"FACP", b"APIC", b"DSDT"}
    assert (
        struct.unpack_from("<I", tables[b"FACP"], 40)[0]
        == struct.unpack_from("<Q", tables[b"FACP"], 140)[0]
    )


def test_every_vcpu_has_an_enabled_local_apic() -> None:
    for count in (1, 3, 255):
        madt = Tables(acpi_tables(AcpiMachine(count, 1, 0))).by_name[b"APIC"]
        kinds = []
        offset = 44
        while offset < len(madt):
            kinds.append(madt[offset : offset + madt[offset + 1]])
            offset += madt[offset + 1]
        lapics = [entry for entry in kinds if entry[0] == 0]
        assert [(e[3], e[4]) for e in lapics] == [(index, 1) for index in range(count)]
        assert [entry[0] for entry in kinds[count:]] == [1, 4]


@pytest.mark.parametrize("size", [0, 61, 62, 63, 4000, 4092, 4093, 70_000, 1 << 20])
def test_package_lengths_count_themselves(size: int) -> None:
    encoded = aml.scope("X", [bytes(size)])
    extra = encoded[1] >> 6
    length = encoded[1] & (0x0F if extra else 0x3F)
    for index in range(extra):
        length |= encoded[2 + index] << 4 + 8 * index
    assert length == len(encoded) - 1
    assert extra == 0 or length > 63


def test_a_term_that_aml_cannot_express_is_refused() -> None:
    with pytest.raises(ValueError, match="name segment"):
        aml.name("TOOLONG", aml.integer(0))
    with pytest.raises(ValueError, match="at most 268435455"):
        aml.scope("X", [bytes(1 << 28)])


@pytest.mark.needs_iasl
def test_acpica_reads_the_devices_that_the_machine_has(tmp_path: Path) -> None:
    for signature, table in Tables(acpi_tables(MACHINE)).by_name.items():
        (tmp_path / f"{signature.decode()}.aml").write_bytes(table)
    for name in ("DSDT", "FACP", "APIC"):
        assert "Checksum" not in _iasl(tmp_path, "-d", f"{name}.aml").stderr
    source = (tmp_path / "DSDT.dsl").read_text()
    for number in range(MACHINE.serial_count):
        port, gsi = COM_PORTS[number]
        device = source.split(f"Device (COM{number + 1})")[1].split("Device")[0]
        assert f"0x{port:04X}" in device
        assert f"0x{gsi:08X}" in device
        assert "Edge, ActiveHigh" in device
    for slot in range(MACHINE.virtio_count):
        addresses, gsi = mmio_slot(slot)
        device = source.split(f"Device (VR{slot:02d})")[1].split("Device")[0]
        assert '"LNRO0005"' in device
        assert f"0x{addresses.start:08X}" in device
        assert f"0x{gsi:08X}" in device
        assert "Level, ActiveHigh" in device
    assert "0 Errors" in _iasl(tmp_path, "DSDT.dsl").stdout


def _iasl(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["iasl", *arguments], check=True, cwd=folder, capture_output=True, text=True, timeout=60
    )
