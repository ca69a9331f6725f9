"""A real successor that writes down what it was sent, and dies before it would run the guest.

    python -m tests.framework.recording_vmm FILE -- the arguments of vmm

FILE gets HELLO and STATE, one after the other, as they are encoded on the wire. What is new in
every update is made zero: the nonce, the time of the stop, and each CPU's time stamp.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from cpr.codec import encode
from cpr.handshake import Action
from cpr.messages import NONCE_SIZE_BYTES, Hello, Message, State
from cpr.vmstate import Section
from vmm.__main__ import main
from vmm.accel.x86_section import CpuSection
from vmm.update.target import TargetUpdate


def command(recording: Path) -> tuple[str, ...]:
    """The command to give to the lab as a build."""
    return (sys.executable, "-m", "tests.framework.recording_vmm", str(recording), "--")


def _timeless(message: State) -> tuple[Section, ...]:
    return tuple(
        Section.save(
            section.name, replace(section.load(CpuSection), tsc=0, tsc_host_ns=0, tsc_offset=None)
        )
        if section.kind == CpuSection.NAME
        else section
        for section in message.sections
    )


def _arm(recording: Path) -> None:
    perform = TargetUpdate.perform

    def recording_perform(self: TargetUpdate, action: Action, message: Message | None) -> None:
        if isinstance(message, Hello):
            recording.write_bytes(encode(replace(message, nonce=bytes(NONCE_SIZE_BYTES))))
        if isinstance(message, State):
            with recording.open("ab") as file:
                file.write(encode(replace(message, stopped_ns=0, sections=_timeless(message))))
            os.kill(os.getpid(), signal.SIGKILL)
        perform(self, action, message)

    TargetUpdate.perform = recording_perform  # type: ignore[method-assign]


if __name__ == "__main__":
    separator = sys.argv.index("--")
    _arm(Path(sys.argv[1]))
    sys.exit(main(sys.argv[separator + 1 :]))
