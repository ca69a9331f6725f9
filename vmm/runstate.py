"""The run state of a VM as `query-status` names it, and the moves between states that exist.

The table is QEMU's. QEMU aborts the process on a move that is not in it; we raise, because the
guest may be alive and a bug in the book-keeping is no reason to kill it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping

from vmm.errors import RunstateError


class RunState(enum.Enum):
    """Every run state that QEMU 10 knows."""

    DEBUG = "debug"
    INMIGRATE = "inmigrate"
    INTERNAL_ERROR = "internal-error"
    IO_ERROR = "io-error"
    PAUSED = "paused"
    POSTMIGRATE = "postmigrate"
    PRELAUNCH = "prelaunch"
    FINISH_MIGRATE = "finish-migrate"
    RESTORE_VM = "restore-vm"
    RUNNING = "running"
    SAVE_VM = "save-vm"
    SHUTDOWN = "shutdown"
    SUSPENDED = "suspended"
    WATCHDOG = "watchdog"
    GUEST_PANICKED = "guest-panicked"
    COLO = "colo"


_S = RunState
# What a running guest may become, and therefore what may arrive from a source that ran.
_FAULTS = frozenset({_S.INTERNAL_ERROR, _S.IO_ERROR, _S.SHUTDOWN, _S.WATCHDOG, _S.GUEST_PANICKED})

TRANSITIONS: Mapping[RunState, frozenset[RunState]] = {
    _S.PRELAUNCH: frozenset({_S.RUNNING, _S.FINISH_MIGRATE, _S.INMIGRATE, _S.SUSPENDED, _S.PAUSED}),
    _S.INMIGRATE: _FAULTS
    | {
        _S.RUNNING,
        _S.PAUSED,
        _S.SUSPENDED,
        _S.PRELAUNCH,
        _S.POSTMIGRATE,
        _S.FINISH_MIGRATE,
        _S.COLO,
    },
    _S.RUNNING: _FAULTS
    | {
        _S.DEBUG,
        _S.PAUSED,
        _S.FINISH_MIGRATE,
        _S.RESTORE_VM,
        _S.SAVE_VM,
        _S.SUSPENDED,
        _S.COLO,
    },
    _S.PAUSED: frozenset(
        {
            _S.RUNNING,
            _S.FINISH_MIGRATE,
            _S.POSTMIGRATE,
            _S.PRELAUNCH,
            _S.SUSPENDED,
            _S.SHUTDOWN,
            _S.COLO,
        }
    ),
    _S.FINISH_MIGRATE: _FAULTS
    | {_S.RUNNING, _S.PAUSED, _S.POSTMIGRATE, _S.PRELAUNCH, _S.SUSPENDED, _S.COLO},
    _S.POSTMIGRATE: frozenset({_S.RUNNING, _S.FINISH_MIGRATE, _S.PRELAUNCH}),
    _S.SUSPENDED: frozenset(
        {
            _S.RUNNING,
            _S.PAUSED,
            _S.FINISH_MIGRATE,
            _S.PRELAUNCH,
            _S.SAVE_VM,
            _S.RESTORE_VM,
            _S.SHUTDOWN,
            _S.COLO,
        }
    ),
    _S.SHUTDOWN: frozenset({_S.PAUSED, _S.FINISH_MIGRATE, _S.PRELAUNCH, _S.COLO}),
    _S.INTERNAL_ERROR: frozenset({_S.PAUSED, _S.FINISH_MIGRATE, _S.PRELAUNCH}),
    _S.IO_ERROR: frozenset({_S.RUNNING, _S.FINISH_MIGRATE, _S.PRELAUNCH}),
    _S.DEBUG: frozenset({_S.RUNNING, _S.SUSPENDED, _S.FINISH_MIGRATE, _S.PRELAUNCH}),
    _S.RESTORE_VM: frozenset({_S.RUNNING, _S.SUSPENDED, _S.PRELAUNCH}),
    _S.SAVE_VM: frozenset({_S.RUNNING, _S.SUSPENDED}),
    _S.WATCHDOG: frozenset({_S.RUNNING, _S.FINISH_MIGRATE, _S.PRELAUNCH, _S.COLO}),
    _S.GUEST_PANICKED: frozenset({_S.RUNNING, _S.FINISH_MIGRATE, _S.PRELAUNCH}),
    _S.COLO: frozenset({_S.RUNNING, _S.PRELAUNCH, _S.SHUTDOWN}),
}

OnChange = Callable[[RunState, RunState], None]


class RunstateMachine:
    """Holds the state; `on_change(old, new)` is called after each move."""

    def __init__(self, initial: RunState, on_change: OnChange | None = None) -> None:
        self._state = initial
        self._on_change = on_change

    @property
    def state(self) -> RunState:
        """The present run state."""
        return self._state

    def set(self, new: RunState) -> None:
        """Move to `new`; staying is no move. Raises RunstateError on a move not in the table."""
        old = self._state
        if new is old:
            return
        if new not in TRANSITIONS[old]:
            raise RunstateError(f"invalid runstate transition: '{old.value}' -> '{new.value}'")
        self._state = new
        if self._on_change is not None:
            self._on_change(old, new)
