"""The ACPI tables of the machine: what tells an operating system which devices there are.

Hardware-reduced ACPI (ACPI 6.5, section 4.1): no SMI, no PM timer, no SCI. RSDP, XSDT, FADT, MADT
and a DSDT with the serial ports, the clock chip and every virtio-mmio device (LNRO0005 is the id
under which Linux's virtio_mmio looks for them). Distribution kernels need these tables: most are
built without virtio_mmio's command-line parameter, and many without the older MP table.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vmm.boot import aml
from vmm.devices.acpi_sleep import SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT, SOFT_OFF_TYPE
from vmm.devices.keyboard_controller import COMMAND_PORT, PULSE_RESET
from vmm.devices.rtc import RTC_PORTS
from vmm.devices.serial import COM_PORTS
from vmm.devices.virtio.mmio import mmio_slot

# In the window that a BIOS uses, where an operating system also finds the RSDP by itself.
TABLES_ADDRESS = 0xE_0000

_OEM_ID, _OEM_TABLE_ID = b"CPRVMM", b"CPR-1.0 "
_CREATOR = b"CPRV"
_OEM_REVISION = 1
_HEADER = struct.Struct("<4sIBB6s8sI4sI")
_CHECKSUM_OFFSET = 9
_RSDP_SIZE_BYTES, _RSDP_1_SIZE_BYTES = 36, 20
_ALIGNMENT = 16

_LAPIC_ADDRESS, _IOAPIC_ADDRESS = 0xFEE0_0000, 0xFEC0_0000
_MADT_LAPIC, _MADT_IOAPIC, _MADT_LAPIC_NMI = 0, 1, 4
_LAPIC_ENABLED = 1
_ALL_PROCESSORS, _LINT1 = 0xFF, 1

_FADT_SIZE_BYTES = 276
_FADT_REVISION, _FADT_MINOR = 6, 5
_FADT_WBINVD, _FADT_RESET_REG, _FADT_HW_REDUCED = 1 << 0, 1 << 10, 1 << 20
# A control-method power and sleep button, so that nobody looks for fixed-hardware ones.
_FADT_NO_FIXED_BUTTONS = 1 << 4 | 1 << 5
_BOOT_NO_VGA = 1 << 2
_GAS_IO = 1
_GAS_BYTE = 1


@dataclass(frozen=True, slots=True)
class AcpiMachine:
    """What the tables describe."""

    vcpu_count: int
    serial_count: int
    virtio_count: int


def acpi_tables(machine: AcpiMachine) -> bytes:
    """All tables for TABLES_ADDRESS; the RSDP is at its start."""
    area = _Area(TABLES_ADDRESS + _RSDP_SIZE_BYTES)
    dsdt = area.add(_table(b"DSDT", 2, _dsdt(machine)))
    fadt = area.add(_table(b"FACP", _FADT_REVISION, _fadt(dsdt)))
    madt = area.add(_table(b"APIC", 5, _madt(machine)))
    xsdt = area.add(_table(b"XSDT", 1, struct.pack("<2Q", fadt, madt)))
    return _rsdp(xsdt) + bytes(area.content)


class _Area:
    """Tables one after the other; each address is known once the table is there."""

    def __init__(self, start: int) -> None:
        self._start = start
        self.content = bytearray()

    def add(self, table: bytes) -> int:
        address = self._start + len(self.content)
        padding = -address % _ALIGNMENT
        self.content += bytes(padding) + table
        return address + padding


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    length = _HEADER.size + len(body)
    header = _HEADER.pack(
        signature, length, revision, 0, _OEM_ID, _OEM_TABLE_ID, _OEM_REVISION, _CREATOR, 1
    )
    return _with_checksum(header + body, _CHECKSUM_OFFSET)


def _with_checksum(data: bytes, offset: int) -> bytes:
    """The byte at `offset`, zero so far, makes the sum of all bytes zero."""
    summed = bytearray(data)
    summed[offset] = -sum(data) & 0xFF
    return bytes(summed)


def _rsdp(xsdt: int) -> bytes:
    first = struct.pack("<8sB6sBI", b"RSD PTR ", 0, _OEM_ID, 2, 0)
    assert len(first) == _RSDP_1_SIZE_BYTES
    whole = _with_checksum(first, 8) + struct.pack("<IQB3x", _RSDP_SIZE_BYTES, xsdt, 0)
    return _with_checksum(whole, 32)


def _generic_address(port: int) -> bytes:
    return struct.pack("<BBBBQ", _GAS_IO, 8, 0, _GAS_BYTE, port)


def _fadt(dsdt: int) -> bytes:
    """Everything that belongs to ACPI's own hardware is zero: there is none."""
    body = bytearray(_FADT_SIZE_BYTES - _HEADER.size)

    def put(offset: int, data: bytes) -> None:
        body[offset - _HEADER.size : offset - _HEADER.size + len(data)] = data

    flags = _FADT_WBINVD | _FADT_NO_FIXED_BUTTONS | _FADT_RESET_REG | _FADT_HW_REDUCED
    put(40, struct.pack("<I", dsdt))
    put(109, struct.pack("<H", _BOOT_NO_VGA))
    put(112, struct.pack("<I", flags))
    put(116, _generic_address(COMMAND_PORT) + bytes([PULSE_RESET]))
    put(131, bytes([_FADT_MINOR]))
    put(140, struct.pack("<Q", dsdt))
    put(244, _generic_address(SLEEP_CONTROL_PORT) + _generic_address(SLEEP_STATUS_PORT))
    return bytes(body)


def _madt(machine: AcpiMachine) -> bytes:
    body = struct.pack("<II", _LAPIC_ADDRESS, 0)
    for index in range(machine.vcpu_count):
        body += struct.pack("<BBBBI", _MADT_LAPIC, 8, index, index, _LAPIC_ENABLED)
    body += struct.pack("<BBBBII", _MADT_IOAPIC, 12, 0, 0, _IOAPIC_ADDRESS, 0)
    return body + struct.pack("<BBBHB", _MADT_LAPIC_NMI, 6, _ALL_PROCESSORS, 0, _LINT1)


def _dsdt(machine: AcpiMachine) -> bytes:
    devices = [_serial(number) for number in range(machine.serial_count)]
    devices.append(
        aml.device(
            "RTC",
            (
                aml.name("_HID", aml.eisa_id("PNP0B00")),
                aml.name("_CRS", aml.resources([aml.io_ports(RTC_PORTS)])),
            ),
        )
    )
    devices += [_virtio(slot) for slot in range(machine.virtio_count)]
    off = aml.package([aml.integer(SOFT_OFF_TYPE), *[aml.integer(0)] * 3])
    return aml.scope("\\_SB", devices) + aml.name("\\_S5", off)


def _serial(number: int) -> bytes:
    base, gsi = COM_PORTS[number]
    ports = aml.io_ports(range(base, base + 8))
    return aml.device(
        f"COM{number + 1}",
        (
            aml.name("_HID", aml.eisa_id("PNP0501")),
            aml.name("_UID", aml.integer(number + 1)),
            aml.name("_CRS", aml.resources([ports, aml.interrupt(gsi, edge=True)])),
        ),
    )


def _virtio(slot: int) -> bytes:
    """The line stays up until the driver acknowledges, hence level."""
    addresses, gsi = mmio_slot(slot)
    place = [aml.memory(addresses), aml.interrupt(gsi, edge=False)]
    return aml.device(
        f"VR{slot:02d}",
        (
            aml.name("_HID", aml.string("LNRO0005")),
            aml.name("_UID", aml.integer(slot)),
            aml.name("_CCA", aml.integer(1)),  # DMA is coherent
            aml.name("_CRS", aml.resources(place)),
        ),
    )
