"""What the commands of the lab have in common on their command lines."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import sys
from pathlib import Path

from tools.lab.errors import OptionError

KVM_DEVICE = Path("/dev/kvm")
MIB = 1 << 20
_SUFFIXES = {"": MIB, "K": 1 << 10, "M": MIB, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str) -> int:
    """Bytes of `256M`, `4G`, `64` (MiB, as QEMU's -m); whole MiB only.

    Raises argparse.ArgumentTypeError.
    """
    number, suffix = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    if not number.isdecimal() or suffix not in _SUFFIXES:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 256M or 4G")
    size_bytes = int(number) * _SUFFIXES[suffix]
    if not size_bytes or size_bytes % MIB:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of MiB")
    return size_bytes


def parse_count(text: str) -> int:
    """Parse a number of at least 1; raises argparse.ArgumentTypeError."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def parse_command(text: str) -> tuple[str, ...]:
    """Split a command as a shell would; raises argparse.ArgumentTypeError."""
    words = tuple(shlex.split(text))
    if not words:
        raise argparse.ArgumentTypeError("the command is empty")
    return words


def own_vmm() -> tuple[str, ...]:
    """Run this checkout's VMM with this Python: works from any directory and any PATH."""
    return (sys.executable, "-m", "vmm")


def available_accels(vcpu_count: int) -> tuple[str, ...]:
    """Name the accelerators that can run a guest with so many vCPUs on this machine.

    Raises OptionError when there is none, with what to do.
    """
    found = []
    if os.access(KVM_DEVICE, os.R_OK | os.W_OK):
        found.append("kvm")
    if vcpu_count == 1 and importlib.util.find_spec("unicorn") is not None:
        found.append("unicorn")  # it runs one vCPU
    if not found:
        raise OptionError(
            f"no accelerator for {vcpu_count} vCPUs: {KVM_DEVICE} cannot be opened, and unicorn "
            "(pip install unicorn) runs one vCPU only"
        )
    return tuple(found)
