"""tools/with-env on machines that lack something: PATH holds only what each test puts there."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "tools" / "with-env"
PLAIN_TOOLS = "sh env cat dirname flock grep readlink rm sed sha256sum tail tr mkdir cp"
PYTHON_THAT_WORKS = """#!/bin/sh
echo "python $*" >>"$CALLS"
case "$*" in
    "-m venv"*) mkdir -p "$4/bin" && cp "$0" "$4/bin/python" && cp "$0" "$4/bin/pip" ;;
    *"pip install"*) [ -z "$PIP_FAILS" ] || { echo "  ERROR: No matching distribution"; exit 1; } ;;
esac
"""
PYTHON_TOO_OLD = """#!/bin/sh
[ "$1" = -V ] && echo "Python 3.9.2"
[ "$1" = -V ]
"""


@dataclass(frozen=True)
class Machine:
    """A checkout with the script in it, and a PATH of its own."""

    root: Path

    @property
    def bin(self) -> Path:
        return self.root / "bin"

    def has(self, name: str, text: str = "#!/bin/sh\n") -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def start(self, *command: str, **settings: str) -> subprocess.Popen[str]:
        env = {"PATH": str(self.bin), "CALLS": str(self.root / "calls"), "PIP_FAILS": ""}
        return subprocess.Popen(
            [self.root / "tools" / "with-env", *command],
            env={**env, **settings},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *command: str, **settings: str) -> tuple[int, list[str]]:
        """Exit status and the lines on stderr."""
        with self.start(*command, **settings) as process:
            _output, errors = process.communicate(timeout=60)
        return process.returncode, errors.splitlines()

    def calls(self, word: str) -> list[str]:
        log = self.root / "calls"
        return [line for line in log.read_text().splitlines() if word in line]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A bare machine on which we are root."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "tools").mkdir()
    shutil.copy(SCRIPT, tmp_path / "tools")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    for name in PLAIN_TOOLS.split():
        (tmp_path / "bin" / name).symlink_to(shutil.which(name) or name)
    made = Machine(tmp_path)
    made.has("id", "#!/bin/sh\necho 0\n")
    made.has("hello", "#!/bin/sh\necho hello >&2\n")
    return made


@pytest.fixture
def ready(machine: Machine) -> Machine:
    """A machine with Python and a package manager that installs whatever is asked for."""
    machine.has("python3", PYTHON_THAT_WORKS)
    machine.has("apt-get", '#!/bin/sh\necho "apt-get $*" >>"$CALLS"\n')
    return machine


def test_no_package_manager_names_what_is_missing_in_one_line(machine: Machine) -> None:
    status, errors = machine.run("hello")
    assert status == 1
    assert len(errors) == 1
    assert "python venv headers compiler libcap libseccomp" in errors[0]
    assert "no apt-get, dnf or apk" in errors[0]


def test_not_root_and_no_sudo_names_the_packages_in_one_line(machine: Machine) -> None:
    machine.has("apt-get")
    machine.has("id", "#!/bin/sh\necho 1000\n")
    status, errors = machine.run("hello")
    assert status == 1
    assert len(errors) == 1
    assert "python3 python3-venv python3-dev gcc libc6-dev libcap-dev libseccomp2" in errors[0]
    assert "no sudo" in errors[0]


def test_sudo_is_used_when_not_root_and_the_plan_is_said_before(ready: Machine) -> None:
    ready.has("id", "#!/bin/sh\necho 1000\n")
    ready.has("sudo", '#!/bin/sh\necho "sudo $*" >>"$CALLS"\n')
    status, errors = ready.run("hello")
    assert status == 0
    assert "installing system packages with sudo -n apt-get" in errors[0]
    assert ready.calls("sudo -n env DEBIAN_FRONTEND=noninteractive apt-get")


def test_package_manager_that_fails_is_quoted(machine: Machine) -> None:
    machine.has("apt-get", "#!/bin/sh\necho 'E: Failed to fetch (no network)'\nexit 100\n")
    status, errors = machine.run("hello")
    assert status == 1
    assert errors[-1].startswith("with-env: missing: python3 ")
    assert "E: Failed to fetch (no network)" in errors[-1]


def test_python_that_is_too_old_is_named_with_its_version(machine: Machine) -> None:
    machine.has("apt-get")
    machine.has("python3", PYTHON_TOO_OLD)
    status, errors = machine.run("hello")
    assert status == 1
    assert "missing: Python 3.11 or newer (python3 here: Python 3.9.2)" in errors[-1]


def test_pip_that_fails_is_quoted_and_nothing_is_stamped(ready: Machine) -> None:
    status, errors = ready.run("hello", PIP_FAILS="1")
    assert status == 1
    assert "pip: ERROR: No matching distribution" in errors[-1]
    assert ready.run("hello")[0] == 0


def test_first_run_installs_and_then_runs_the_command_in_the_environment(ready: Machine) -> None:
    ready.has("hello", '#!/bin/sh\necho "$VIRTUAL_ENV $PATH" >&2\n')
    status, errors = ready.run("hello")
    assert status == 0
    venv = ready.root / ".venv"
    assert errors[-1] == f"{venv} {venv}/bin:{ready.bin}"
    assert len(ready.calls("pip install")) == 1


def test_second_run_starts_neither_python_nor_pip(ready: Machine) -> None:
    ready.run("hello")
    (ready.root / "calls").unlink()
    status, errors = ready.run("hello")
    assert (status, errors) == (0, ["hello"])
    assert not (ready.root / "calls").exists()


def test_changed_declarations_refresh_the_environment(ready: Machine) -> None:
    ready.run("hello")
    (ready.root / "pyproject.toml").write_text("[project]\ndependencies = ['new']\n")
    ready.run("hello")
    assert len(ready.calls("pip install")) == 2


def test_development_tools_are_installed_for_the_commands_that_need_them(ready: Machine) -> None:
    ready.has("pytest")
    ready.run("hello")
    assert not ready.calls("[dev]")
    ready.run("pytest")
    assert ready.calls("[dev]")


def test_environment_with_development_tools_serves_every_command(ready: Machine) -> None:
    ready.has("pytest")
    ready.run("pytest")
    ready.run("hello")
    assert len(ready.calls("pip install")) == 1


def test_two_first_runs_at_once_install_once(ready: Machine) -> None:
    first, second = ready.start("hello"), ready.start("hello")
    for process in (first, second):
        with process:
            process.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0)
    assert len(ready.calls("pip install")) == 1


def test_exit_status_is_the_commands(ready: Machine) -> None:
    ready.has("hello", "#!/bin/sh\nexit 7\n")
    assert ready.run("hello")[0] == 7


def test_no_command_is_a_usage_error() -> None:
    done = subprocess.run([SCRIPT], env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "usage: tools/with-env COMMAND" in done.stderr
