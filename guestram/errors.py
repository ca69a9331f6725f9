"""The error tree of the guest memory package.

RamError
├── LayoutError        blocks and slots do not make a guest-physical address space
├── MemfdError         a memfd cannot be created, sized, sealed or mapped
│   └── IdentityError  an adopted fd is another file than the one promised or configured
├── RamAccessError     an access outside RAM, or to RAM that is closed
└── LeaseError         the run lease cannot be used in this way
    ├── LeaseBusyError   another process holds it: that process owns the guest
    └── EpochMovedError  another process ran the guest since our CPU state was saved
"""

from __future__ import annotations


class RamError(Exception):
    """Root of every error that this package raises on purpose."""


class LayoutError(RamError):
    """The layout is not valid; the message names the block or slot."""


class MemfdError(RamError):
    """The operating system or the options refuse this memfd."""


class IdentityError(MemfdError):
    """An fd that came from elsewhere is not the file it should be."""


class RamAccessError(RamError):
    """The guest-physical range is not RAM, or RAM is closed."""


class LeaseError(RamError):
    """The run lease or its control page was used in a way that is not allowed."""


class LeaseBusyError(LeaseError):
    """Another process holds the run lease."""


class EpochMovedError(LeaseError):
    """The saved CPU state is older than RAM; it must never be run."""
