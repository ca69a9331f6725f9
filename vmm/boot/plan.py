"""What booting means here: bytes to put into RAM, and where each vCPU starts.

A plan is made once from the configuration, checked completely (nothing outside RAM, nothing on top
of anything else), and applied at power-on and at every reset. A successor that adopts a running
guest makes the plan too, for later resets, and writes nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from guestram.layout import PC_HOLE_END, PC_HOLE_START
from vmm.accel.x86_state import CpuState
from vmm.errors import BootError

_ZERO_CHUNK = bytes(1 << 20)  # zero-filling goes by this much, so that a large bss costs no memory


class RamWriter(Protocol):
    """The part of guest RAM that a plan needs (`guestram.ram.GuestRam` has it)."""

    def write(self, guest_address: int, data: bytes, /) -> None:
        """Put `data` at a guest-physical address."""
        ...


class CpuStart(Protocol):
    """How one vCPU starts."""

    def apply(self, index: int, base: CpuState) -> CpuState:
        """The start state of vCPU `index`, made from its reset state."""
        ...


@dataclass(frozen=True, slots=True)
class BootPiece:
    """`data` at `address`, followed by zeros up to `size_bytes`; `name` is for messages."""

    name: str
    address: int
    data: bytes
    size_bytes: int

    @classmethod
    def of(cls, name: str, address: int, data: bytes) -> BootPiece:
        """A piece without zeros behind it."""
        return cls(name, address, data, len(data))

    @property
    def end(self) -> int:
        """First address behind the piece."""
        return self.address + self.size_bytes


@dataclass(frozen=True, slots=True)
class BootPlan:
    """Everything a power-on or a reset puts into the machine."""

    pieces: tuple[BootPiece, ...]
    starts: Mapping[int, CpuStart]

    def write_to(self, ram: RamWriter) -> None:
        """Put every piece into RAM; RAM outside the pieces stays as it is, as on a PC's reset."""
        for piece in self.pieces:
            ram.write(piece.address, piece.data)
            zero = piece.address + len(piece.data)
            while zero < piece.end:
                size = min(len(_ZERO_CHUNK), piece.end - zero)
                ram.write(zero, _ZERO_CHUNK[:size])
                zero += size

    def cpu_state(self, index: int, base: CpuState) -> CpuState | None:
        """The start state of vCPU `index`; None: it stays in reset, waiting to be started."""
        start = self.starts.get(index)
        return None if start is None else start.apply(index, base)


def check_pieces(pieces: Iterable[BootPiece], ram_bytes: int) -> None:
    """Raise BootError for a piece that is not in RAM, or that lies on another one."""
    below = min(ram_bytes, PC_HOLE_START)
    above_end = PC_HOLE_END + ram_bytes - below
    previous: BootPiece | None = None
    for piece in sorted(pieces, key=lambda piece: (piece.address, piece.end)):
        in_low = piece.end <= below
        in_high = piece.address >= PC_HOLE_END and piece.end <= above_end
        if not (in_low or in_high):
            high = f" and {PC_HOLE_END:#x}..{above_end:#x}" if ram_bytes > below else ""
            raise BootError(
                f"{piece.name} needs {piece.address:#x}..{piece.end:#x}, but RAM is 0..{below:#x}"
                f"{high}; give the guest more memory (-m) or load it elsewhere"
            )
        if previous is not None and piece.address < previous.end:
            raise BootError(
                f"{piece.name} at {piece.address:#x} overlaps {previous.name} at "
                f"{previous.address:#x}..{previous.end:#x}"
            )
        if piece.size_bytes:
            previous = piece
