"""Guest RAM seen from outside: the memfd, read-only, found through /proc/PID/fd.

The view stays valid when the process it was found through has ended, because the pages belong to
the memfd; that is the point of the whole project.
"""

from __future__ import annotations

import mmap
import os
from types import TracebackType
from typing import Self

from guestram.layout import PC_HOLE_END, PC_HOLE_START
from tools.lab.errors import CheckFailedError
from tools.lab.procfs import MemfdIdentity, find_memfd, memfd_identity
from vmm.boot.guest import report as guest_report
from vmm.boot.guest.net_report import NetLink, NetReport, parse_net
from vmm.boot.guest.report import GuestReport


class RamView:
    """Reads guest-physical memory; closed once by its owner."""

    def __init__(self, pid: int, ram_bytes: int, vcpu_count: int) -> None:
        path = find_memfd(pid, ram_bytes)
        self.identity: MemfdIdentity = memfd_identity(path)
        self.ram_bytes = ram_bytes
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        # Only the report is mapped. Everything else is read with pread, which leaves the holes of
        # a sparse memfd alone; reading them through a mapping would allocate every page.
        self._report_bytes = guest_report.report_size_bytes(vcpu_count)
        self._report = mmap.mmap(
            self._fd,
            self._report_bytes,
            flags=mmap.MAP_SHARED,
            prot=mmap.PROT_READ,
            offset=guest_report.REPORT_ADDRESS,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close()

    def read(self, guest_address: int, size_bytes: int) -> bytes:
        """Guest RAM at a guest-physical address; the range must not touch the PC hole.

        Raises CheckFailedError outside RAM.
        """
        offset = self._file_offset(guest_address)
        if offset < 0 or offset + size_bytes > self.ram_bytes:
            raise CheckFailedError(
                f"guest RAM: {size_bytes} bytes at {guest_address:#x} are outside its "
                f"{self.ram_bytes} bytes"
            )
        parts = []
        while size_bytes:
            part = os.pread(self._fd, size_bytes, offset)
            if not part:
                raise CheckFailedError(f"guest RAM: the memfd ends at {offset:#x}")
            parts.append(part)
            offset += len(part)
            size_bytes -= len(part)
        return b"".join(parts)

    def report(self) -> GuestReport:
        """Read the built-in guest's report as it stands now.

        Raises BootError when the guest has not started.
        """
        return guest_report.parse(self._report[:])

    def net_report(self) -> NetReport:
        """Read the report of the built-in guest's network stack.

        Raises CheckFailedError when the guest has no network.
        """
        report = parse_net(self._report[:])
        if report is None or report.link is not NetLink.UP:
            raise CheckFailedError(
                f"the guest has no network ({'not asked for' if report is None else report.link!r})"
            )
        return report

    def close(self) -> None:
        """Unmap and close; harmless the second time."""
        if self._fd >= 0:
            self._report.close()
            os.close(self._fd)
            self._fd = -1

    def _file_offset(self, guest_address: int) -> int:
        """RAM above 4 GiB follows the RAM below the PC hole in the file."""
        if guest_address < PC_HOLE_START:
            return guest_address
        if guest_address < PC_HOLE_END:
            raise CheckFailedError(f"guest RAM: {guest_address:#x} is in the PC hole")
        return guest_address - PC_HOLE_END + PC_HOLE_START
