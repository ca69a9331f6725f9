"""Fixtures that every test package shares, and what a skipped test means.

* A test says what it needs with a marker (`needs_kvm`, `needs_root`); without it, it is skipped.
* With CI=true a skip is a failure unless a marked need is truly absent: CI installs what tests use,
  so any other skip hides something that was never tested.
* `long` and `nested` tests run only when asked for: `pytest -m long`, or by name.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.needs import NEEDS, absent_needs, skip_verdict

ACCELERATORS = [
    pytest.param("kvm", marks=pytest.mark.needs_kvm),
    "unicorn",
]


@pytest.fixture(params=ACCELERATORS)
def accel(request: pytest.FixtureRequest) -> str:
    """The name of each accelerator in turn, for `-accel`; kvm only where /dev/kvm opens."""
    return str(request.param)


@pytest.fixture
def socket_dir() -> Iterator[Path]:
    """A directory with a short path: AF_UNIX paths end at 107 bytes, and tmp_path's are longer."""
    with tempfile.TemporaryDirectory(prefix="cpr-", dir="/tmp") as directory:
        yield Path(directory)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out `long` and `nested` tests unless a marker expression or a name asks for them."""
    if config.option.markexpr or any("::" in argument for argument in config.args):
        return
    long_items = [item for item in items if _is_long(item)]
    if long_items:
        config.hook.pytest_deselected(items=long_items)
        items[:] = [item for item in items if not _is_long(item)]


def _is_long(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(name) for name in ("long", "nested"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose marked need is absent on this machine."""
    absent = absent_needs(_needs_of(item))
    if absent:
        pytest.skip("; ".join(NEEDS[name].reason for name in absent))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI, turn a skip that no absent need explains into a failure."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI") == "true":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        verdict = skip_verdict(_needs_of(item), reason)
        if verdict is not None:
            report.outcome = "failed"
            report.longrepr = verdict
    return report


def _needs_of(item: pytest.Item) -> frozenset[str]:
    return frozenset(marker.name for marker in item.iter_markers() if marker.name in NEEDS)
