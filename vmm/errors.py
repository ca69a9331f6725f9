"""The error tree of the VMM process.

VmmError
├── ConfigError          the command line or an option value is wrong (exit status 1)
├── AccelError           an accelerator cannot be opened, or a CPU state cannot be saved or loaded
│   └── AccelUnavailable this accelerator is not usable on this machine; the next one is tried
├── BootError            an image cannot be loaded into guest RAM
├── DeviceError          a device or its back-end failed
├── RunstateError        the command is not allowed in the present run state
├── MigrationError       an update cannot start, or failed; the text is QEMU's where QEMU has one
├── SandboxError         the process could not give up its privileges
└── MachineError         starting or stopping the machine failed
"""

from __future__ import annotations


class VmmError(Exception):
    """Root of every error that the vmm package raises on purpose."""


class ConfigError(VmmError):
    """The command line is wrong; the message names the option, what was expected and what came."""


class AccelError(VmmError):
    """An accelerator refused an operation."""


class AccelUnavailable(AccelError):
    """This accelerator cannot be used on this machine; `-accel` lists go on to the next one."""


class BootError(VmmError):
    """A guest image cannot be read, parsed or placed in RAM."""


class DeviceError(VmmError):
    """A device or its back-end cannot be made, saved or loaded."""


class RunstateError(VmmError):
    """The operation is not allowed in the present run state."""


class MigrationError(VmmError):
    """An update cannot start or has failed; the guest stays with the old process."""


class SandboxError(VmmError):
    """`-sandbox on` cannot be kept; the process does not go on without it."""


class MachineError(VmmError):
    """The machine could not be started or stopped."""
