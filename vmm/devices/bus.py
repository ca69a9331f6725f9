"""The machine's I/O space: which device answers a port or a memory-mapped address.

Every exit of the guest passes here, so an access is one dictionary look-up and one call. Ports are
looked up by number, memory-mapped addresses by page: a memory-mapped device has whole 4 KiB pages.
As on a PC, a read that nobody claims gives all ones and a write that nobody claims is dropped.

The bus has no state of its own and no lock: it is complete before the first vCPU runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from vmm.devices.base import PortDevice
from vmm.errors import DeviceError

ALL_ONES = {1: 0xFF, 2: 0xFFFF, 4: 0xFFFF_FFFF, 8: 0xFFFF_FFFF_FFFF_FFFF}
PORT_COUNT = 0x1_0000
_PAGE_SHIFT = 12
_PAGE_MASK = (1 << _PAGE_SHIFT) - 1

_Read = Callable[[int, int], int]
_Write = Callable[[int, int, int], None]


class MmioDevice(Protocol):
    """A device with memory-mapped registers; offsets count from the start of its range."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    def mmio_read(self, offset: int, size: int) -> int:
        """Load of 1, 2, 4 or 8 bytes."""
        ...

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """Store of 1, 2, 4 or 8 bytes."""
        ...


class SystemBus:
    """Implements `vmm.accel.base.IoBus`; called on vCPU threads."""

    def __init__(self) -> None:
        self._ports: dict[int, tuple[_Read, _Write, int, str]] = {}
        self._pages: dict[int, tuple[_Read, _Write, int, str]] = {}

    def attach(self, device: PortDevice) -> None:
        """Give a device its ports; DeviceError if another device has one of them."""
        ports = device.ports
        if not ports or ports[0] < 0 or ports[-1] >= PORT_COUNT or ports.step != 1:
            raise DeviceError(
                f"{device.name}: ports {ports} are not a range within 0..{PORT_COUNT - 1:#x}"
            )
        for port in ports:
            if port in self._ports:
                raise DeviceError(
                    f"{device.name}: port {port:#x} belongs to {self._ports[port][3]}; give one of "
                    "the two another base"
                )
        for offset, port in enumerate(ports):
            self._ports[port] = (device.port_read, device.port_write, offset, device.name)

    def attach_mmio(self, addresses: range, device: MmioDevice) -> None:
        """Give a device whole pages of guest-physical addresses; DeviceError on a conflict."""
        if not addresses or addresses.start & _PAGE_MASK or addresses.stop & _PAGE_MASK:
            raise DeviceError(
                f"{device.name}: {addresses.start:#x}..{addresses.stop:#x} is not a range of whole "
                "4 KiB pages"
            )
        pages = range(addresses.start >> _PAGE_SHIFT, addresses.stop >> _PAGE_SHIFT)
        for page in pages:
            if page in self._pages:
                raise DeviceError(
                    f"{device.name}: address {page << _PAGE_SHIFT:#x} belongs to "
                    f"{self._pages[page][3]}"
                )
        for index, page in enumerate(pages):
            offset = index << _PAGE_SHIFT
            self._pages[page] = (device.mmio_read, device.mmio_write, offset, device.name)

    def pio_read(self, port: int, size: int) -> int:
        """`in`."""
        claim = self._ports.get(port)
        return ALL_ONES[size] if claim is None else claim[0](claim[2], size)

    def pio_write(self, port: int, size: int, value: int) -> None:
        """`out`."""
        claim = self._ports.get(port)
        if claim is not None:
            claim[1](claim[2], size, value)

    def mmio_read(self, addr: int, size: int) -> int:
        """Load from an address that is not RAM."""
        claim = self._pages.get(addr >> _PAGE_SHIFT)
        if claim is None:
            return ALL_ONES[size]
        return claim[0](claim[2] + (addr & _PAGE_MASK), size)

    def mmio_write(self, addr: int, size: int, value: int) -> None:
        """Store to an address that is not RAM."""
        claim = self._pages.get(addr >> _PAGE_SHIFT)
        if claim is not None:
            claim[1](claim[2] + (addr & _PAGE_MASK), size, value)
