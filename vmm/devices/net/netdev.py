"""From `-netdev` to a tap back-end: a new tap at boot, the running guest's own tap in an update.

`open_netdev` may need privilege; `adopt_netdev` never opens anything: the fds came from the old
process, already open. Scripts run where a tap is opened and where it is given up for good, so not
at an update: the tap then changes hands as it is.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Mapping, Sequence

from cpr.ownedfd import OwnedFd
from vmm.config import TapNetdev
from vmm.devices.net import tun
from vmm.devices.net.tap import TapBackend
from vmm.devices.virtio.net_backend import NetFd
from vmm.errors import DeviceError

# Adding a tap to a bridge takes milliseconds; a script that waits longer is stuck.
SCRIPT_DEADLINE_S = 30


class Netdev:
    """One `-netdev`, open. Owns its back-end; `hold_fds` is said when an update begins."""

    def __init__(self, config: TapNetdev, backend: TapBackend) -> None:
        self.config = config
        self.backend = backend
        self._held = False

    @property
    def is_live(self) -> bool:
        """Whether the tap still exists; a deleted one leaves an fd that does nothing."""
        try:
            tun.tap_info(self.backend.fds()[0].fd)
        except DeviceError:
            return False
        return True

    def fds(self) -> tuple[NetFd, ...]:
        """What a successor needs."""
        return self.backend.fds()

    def hold_fds(self) -> None:
        """A successor gets the tap: `close` leaves it as it is."""
        self._held = True

    def release_fds(self) -> None:
        """The update did not happen: the tap is ours again."""
        self._held = False

    def close(self) -> None:
        """Close the tap; runs the down-script unless a successor has it. Idempotent."""
        script, self._held, held = self.config.downscript, True, self._held
        try:
            if script is not None and not held and not self.config.fds:
                run_script(script, self.backend.ifname)
        finally:
            self.backend.close()


def open_netdev(config: TapNetdev, loop: asyncio.AbstractEventLoop) -> Netdev:
    """Open the tap (or take the inherited fds) and run the up-script.

    Raises DeviceError with QEMU's text.
    """
    fds = _inherited(config) if config.fds else _open_queues(config)
    backend = TapBackend(config.id, fds, loop)
    try:
        _configure(config, backend)
        if config.script is not None and not config.fds:
            run_script(config.script, backend.ifname)
    except BaseException:
        backend.close()
        raise
    return Netdev(config, backend)


def adopt_netdev(
    config: TapNetdev,
    fds: Sequence[OwnedFd],
    identities: Mapping[str, Mapping[str, int]],
    loop: asyncio.AbstractEventLoop,
) -> Netdev:
    """Take over a running guest's tap; owns `fds` in either case and changes nothing about the tap.

    `identities` are what HELLO promised, by fd name. Raises DeviceError naming the fd that is not
    what was promised, or not the tap of this configuration.
    """
    try:
        for fd in fds:
            _check_identity(fd, identities[fd.name])
            _check_name(config, fd)
    except DeviceError:
        for fd in fds:
            fd.close()
        raise
    return Netdev(config, TapBackend(config.id, [fd.detach() for fd in fds], loop))


def run_script(script: str, ifname: str) -> None:
    """Run `script IFNAME` and wait for it. Raises DeviceError with QEMU's text."""
    try:
        status = subprocess.run(
            [script, ifname], check=False, stdin=subprocess.DEVNULL, timeout=SCRIPT_DEADLINE_S
        ).returncode
    except OSError as error:
        raise DeviceError(f"could not launch network script {script}: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise DeviceError(
            f"network script {script} did not end within {SCRIPT_DEADLINE_S} s"
        ) from error
    if status != 0:
        raise DeviceError(f"network script {script} failed with status {status}")


def _inherited(config: TapNetdev) -> list[int]:
    """Our own duplicates, so that every fd is close-on-exec and has one owner."""
    owned: list[int] = []
    try:
        for fd in config.fds:
            with OwnedFd.adopt(fd, f"tap:{config.id}:{len(owned)}") as inherited:
                owned.append(OwnedFd.duplicate_of(inherited.fileno(), inherited.name).detach())
    except Exception as error:
        for fd in owned:
            os.close(fd)
        raise DeviceError(f"netdev '{config.id}': {error}") from error
    return owned


def _open_queues(config: TapNetdev) -> list[int]:
    fds: list[int] = []
    ifname = config.ifname or ""
    try:
        for _queue in range(config.queues):
            fds.append(tun.open_tap(ifname, multi_queue=config.queues > 1))
            ifname = tun.tap_info(fds[0]).ifname
    except DeviceError:
        for fd in fds:
            os.close(fd)
        raise
    return fds


def _configure(config: TapNetdev, backend: TapBackend) -> None:
    """Frames use the first queue: the kernel must put none into another one."""
    try:
        for queue in backend.fds()[1:]:
            tun.detach_queue(queue.fd)
        if config.sndbuf_bytes is not None:
            tun.set_send_buffer(backend.fds()[0].fd, config.sndbuf_bytes)
    except OSError as error:
        raise DeviceError(f"netdev '{config.id}': {error.strerror}") from error


def _check_identity(fd: OwnedFd, promised: Mapping[str, int]) -> None:
    found = tun.tap_identity(fd.fileno())
    if found != dict(promised):
        raise DeviceError(
            f"fd '{fd.name}' is a queue of tap '{tun.tap_info(fd.fileno()).ifname}', which is not "
            f"what the source promised ({found} instead of {dict(promised)})"
        )


def _check_name(config: TapNetdev, fd: OwnedFd) -> None:
    """A name with a pattern ("tap%d") was completed by the kernel and says nothing."""
    ifname = tun.tap_info(fd.fileno()).ifname
    if config.ifname is not None and "%" not in config.ifname and config.ifname != ifname:
        raise DeviceError(
            f"fd '{fd.name}' is a queue of tap '{ifname}', and -netdev {config.id} says "
            f"ifname={config.ifname}"
        )
