"""Accelerators: ways to run guest code on this host, tried in the order of the `-accel` options.

Each lives in its own module, imported only when its turn comes: Unicorn's library alone takes
longer to load than the rest of a VMM process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from vmm.accel.base import Accelerator
from vmm.config import AccelOptions
from vmm.errors import AccelError, AccelUnavailable

Opener = Callable[[], Accelerator]


def open_accel(
    options: Sequence[AccelOptions], openers: Mapping[str, Opener] | None = None
) -> tuple[Accelerator, tuple[str, ...]]:
    """Open the first accelerator of `options` that works here.

    Returns it and, for each one before it, why it was passed over (one line, to be printed as a
    warning). Raises AccelError when none works; the text lists every reason. `openers` replaces
    the built-in list.
    """
    known = _OPENERS if openers is None else openers
    reasons: list[str] = []
    for option in options:
        opener = known.get(option.name)
        if opener is None:
            reasons.append(f"invalid accelerator {option.name}")
            continue
        try:
            return opener(), tuple(reasons)
        except AccelUnavailable as error:
            reasons.append(f"{option.name}: {error}")
    tried = "; ".join(reasons) if reasons else "none was named"
    raise AccelError(f"no accelerator found: {tried}; known are {', '.join(sorted(known))}")


def _open_kvm() -> Accelerator:
    from vmm.accel.kvm.system import KvmAccelerator  # noqa: PLC0415 - imported when its turn comes

    return KvmAccelerator()


def _open_unicorn() -> Accelerator:
    from vmm.accel.unicorn_accel import (  # noqa: PLC0415 - imported when its turn comes
        UnicornAccelerator,
    )

    return UnicornAccelerator()


_OPENERS: Mapping[str, Opener] = {"kvm": _open_kvm, "unicorn": _open_unicorn}
