"""`-add-fd` and `/dev/fdset/N`: a file that the launcher opened, named instead of a path.

In any option `/dev/fdset/N` means a file of set N. QEMU picks the fd of the set whose access mode
fits; so do we, by what the option needs. The file is opened anew through /proc/self/fd, so each
user has its own position; the inherited fd itself stays with the process, never passed on.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import re
from collections.abc import Sequence
from pathlib import Path

from vmm.config import Chardev, FloppyImage, InheritedFd, LoaderDevice, VmmConfig
from vmm.errors import ConfigError
from vmm.optstr import parse_number

_FDSET = re.compile(r"/dev/fdset/(\d+)")
_READABLE = frozenset({os.O_RDONLY, os.O_RDWR})
_WRITABLE = frozenset({os.O_WRONLY, os.O_RDWR})


def resolve_fdsets(config: VmmConfig) -> VmmConfig:
    """Replace every `/dev/fdset/N`; ConfigError when a set or a fitting fd is not there."""
    fds = config.inherited_fds
    for fd in fds:
        os.set_inheritable(fd.fd, False)  # open, as the option's own check found; ours alone now
    return dataclasses.replace(
        config,
        kernel=_readable(config.kernel, fds),
        initrd=_readable(config.initrd, fds),
        floppy=_floppy(config.floppy, fds),
        loaders=tuple(_loader(loader, fds) for loader in config.loaders),
        chardevs=tuple(_chardev(chardev, fds) for chardev in config.chardevs),
    )


def fd_number(text: str) -> int:
    """The number of an inherited fd, as `fd=` gives it. Raises ConfigError with QEMU's text."""
    number = parse_number(text)
    if number is None:
        raise ConfigError(f"Unable to parse FD number {text}")
    return number


def _floppy(floppy: FloppyImage | None, fds: Sequence[InheritedFd]) -> FloppyImage | None:
    path = None if floppy is None else _readable(floppy.file, fds)
    return None if path is None else FloppyImage(path)


def _loader(loader: LoaderDevice, fds: Sequence[InheritedFd]) -> LoaderDevice:
    return dataclasses.replace(loader, file=_readable(loader.file, fds))


def _chardev(chardev: Chardev, fds: Sequence[InheritedFd]) -> Chardev:
    return dataclasses.replace(chardev, path=_resolve(chardev.path, fds, _WRITABLE, "write"))


def _readable(path: Path | None, fds: Sequence[InheritedFd]) -> Path | None:
    return _resolve(path, fds, _READABLE, "read")


def _resolve(
    path: Path | None, fds: Sequence[InheritedFd], modes: frozenset[int], what: str
) -> Path | None:
    match = None if path is None else _FDSET.fullmatch(str(path))
    if match is None:
        return path
    members = [fd for fd in fds if fd.fdset == parse_number(match[1])]
    if not members:
        raise ConfigError(f"{path}: there is no fd set {match[1]}; give it with -add-fd")
    for member in members:
        if fcntl.fcntl(member.fd, fcntl.F_GETFL) & os.O_ACCMODE in modes:
            return Path(f"/proc/self/fd/{member.fd}")
    raise ConfigError(f"{path}: no fd of the set is open to {what}")
