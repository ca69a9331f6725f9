"""The error tree of the lab.

LabError
├── OptionError          the command line of a tool asks for something impossible
├── LaunchError          a VMM process did not come up; carries the end of its stderr
├── DeadlineError        an awaited event did not come within its named deadline
├── UpdateFailedError    a live update failed; carries the reasons of both sides
├── EmulatorStalledError an emulated machine stands still, by a defect of its emulator
└── CheckFailedError     an update succeeded but a promise was broken (sequence, RAM, leak)
"""

from __future__ import annotations


class LabError(Exception):
    """Root of every error that the lab raises on purpose."""


class OptionError(LabError):
    """A tool's options contradict each other or this machine."""


class LaunchError(LabError):
    """A VMM process ended, or refused to talk, before it was ready."""


class DeadlineError(LabError):
    """An event did not come in time; the message names the event and the deadline."""


class UpdateFailedError(LabError):
    """The update did not happen; the guest should still be in the old process."""


class EmulatorStalledError(LabError):
    """The emulated machine's processor waits for an interrupt that its emulator lost."""


class CheckFailedError(LabError):
    """Something that must hold after every update does not hold."""
