"""House rules that linters do not know, as tests.

Each rule says what to do instead. An exception is an entry in a table below with its reason, never
a comment at the offending line, so that all of them are seen together. Ratchets only go down: an
entry that is no longer needed fails too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRODUCT = ("vmm", "cpr", "guestram")
PACKAGES = (*PRODUCT, "tools", "tests")
TEXT_PLACES = (*PACKAGES, ".ci")
TEXT_SUFFIXES = {".py", ".md", ".toml", ".sh", ".c", ".h", ".S", ".ld", ""}

FILE_LINES_MAX = 400
TEST_FILE_LINES_MAX = 650  # a list of situations is read by its names, not from top to bottom
FUNCTION_LINES_MAX = 70

# path -> lines it may have, and why. It may shrink, not grow.
LONG_FILES = {
    "vmm/qmp/commands.py": (460, "one command after another, a few lines each"),
}
# path::function -> lines it has today.
LONG_FUNCTIONS: dict[str, int] = {}

# Threads and signal handlers are where races begin: each file that makes one, and why it must.
STARTS_THREADS = {
    "vmm/vcputhread.py": "a vCPU runs the guest in a blocking system call",
    "vmm/build.py": "prefault takes a second for each GiB while the loop serves QMP",
    "cpr/unixsocket.py": "connect() of a unix socket waits for a full backlog and cannot be polled",
    "tools/lab/floor_side.py": "the floor of a hand-over: one vCPU thread, as bare as can be",
    "tools/lab/faults/duel.py": "waitid() for a child that SIGSTOP stops; no fd says that",
    "tools/lab/bench/path.py": "a closed loop of datagrams measures truest on blocking sockets",
    "tools/lab/bench/accel_side.py": "kick latency: somebody else must run the vCPU that is kicked",
}
HANDLES_SIGNALS = {
    "vmm/accel/kick.py": "the signal that brings a vCPU out of the guest",
    "vmm/accel/kvm/vcpu.py": "sends that signal",
    "vmm/process.py": "SIGINT, SIGTERM and SIGHUP end a VMM as QMP quit does",
    "tools/pair.py": "SIGINT and SIGTERM end the pair",
}
# Waiting a fixed time. Only a measuring instrument may: it samples a guest that cannot notify it.
MAY_SLEEP: dict[str, str] = {}

# Hosts that a URL in this repository may name: specifications and licences, never a registry.
URL_HOSTS = {"www.w3.org", "www.gnu.org", "fsf.org", "keepachangelog.com", "semver.org"}
REGISTRY = re.compile(
    r"\b(?:pypi|npmjs|pythonhosted|debian|ubuntu|alpinelinux|fedoraproject|crates)\.(?:org|com|io)\b"
)
UNFINISHED = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|X" + r"XX|HA" + r"CK)\b")
BARE_NOQA = re.compile(r"#\s*noqa(?!: [A-Z]+[0-9]+(?:, [A-Z]+[0-9]+)* +\S)")
BARE_NO_COVER = re.compile(r"#\s*pragma: no (?:cover|branch)\s*$", re.MULTILINE)

Problems = Iterator[str]


@cache
def python_files() -> tuple[Path, ...]:
    """All Python files of the packages, sorted, without the caches."""
    return tuple(sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py")))


@cache
def text_files() -> tuple[Path, ...]:
    """Python, C, shell and prose, at the top and in every package."""
    found = [path for name in TEXT_PLACES for path in (ROOT / name).rglob("*")]
    found += ROOT.iterdir()
    return tuple(
        sorted(
            path
            for path in found
            if path.is_file() and path.suffix in TEXT_SUFFIXES and "__pycache__" not in path.parts
            if "corpus" not in path.parts  # bytes that a fuzzer made
            if path.name != "LICENSE" and not path.name.startswith(".coverage")
        )
    )


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a name or attribute chain; "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := dotted(node.value)):
        return f"{base}.{node.attr}"
    return ""


def calls_in(path: Path) -> Iterator[tuple[ast.Call, str]]:
    """Every call with its full dotted name, also after `from module import name`."""
    tree = tree_of(path)
    imported = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            yield node, imported.get(name, name)


def functions_in(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def fixed_waits() -> Problems:
    """Wait for an event with a named deadline instead."""
    for path in python_files():
        for call, name in calls_in(path):
            yields_only = name == "asyncio.sleep" and is_zero(call)
            waits = name in {"time.sleep", "asyncio.sleep"} and not yields_only
            if waits and name_of(path) not in MAY_SLEEP:
                yield f"{name_of(path)}:{call.lineno}: {name}"


def is_zero(call: ast.Call) -> bool:
    return bool(call.args) and isinstance(call.args[0], ast.Constant) and call.args[0].value == 0


def shells() -> Problems:
    """Pass a list of arguments; a shell reads file names as code."""
    for path in python_files():
        for call, name in calls_in(path):
            asks = any(
                keyword.arg == "shell"
                and isinstance(keyword.value, ast.Constant)
                and keyword.value.value is True
                for keyword in call.keywords
            )
            if asks or name in {"os.system", "os.popen", "asyncio.create_subprocess_shell"}:
                yield f"{name_of(path)}:{call.lineno}: {name} runs a shell"


def retried_ioctls() -> Problems:
    """Use ctypes: Python 3.14's fcntl.ioctl retries EINTR, and a kicked KVM_RUN never returns."""
    for path in python_files():
        if path.is_relative_to(ROOT / "vmm" / "accel"):
            for call, name in calls_in(path):
                if name == "fcntl.ioctl":
                    yield f"{name_of(path)}:{call.lineno}: fcntl.ioctl on an accelerator's fd"


def lossy_fd_receivers() -> Problems:
    """Use recvmsg with MSG_CMSG_CLOEXEC: socket.recv_fds ignores flags, its fds are inheritable."""
    for path in python_files():
        for call, name in calls_in(path) if path.relative_to(ROOT).parts[0] != "tests" else ():
            if name == "socket.recv_fds":
                yield f"{name_of(path)}:{call.lineno}: socket.recv_fds"


def undocumented_modules() -> Problems:
    """Say at the top what the file is for; the names of test files say it already."""
    for path in python_files():
        if (
            not path.name.startswith("test_")
            and path.stat().st_size
            and not ast.get_docstring(tree_of(path))
        ):
            yield f"{name_of(path)}: no module docstring"


def global_statements() -> Problems:
    """Give the state an owner."""
    for path in python_files():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Global):
                yield f"{name_of(path)}:{node.lineno}: global {', '.join(node.names)}"


def mutable_module_variables() -> Problems:
    """Name a table that nobody changes in capitals; give anything else an owner."""
    mutable = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
    for path in python_files():
        for node in tree_of(path).body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, mutable):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    name = dotted(target)
                    if name != name.upper() and not name.startswith("__"):
                        yield f"{name_of(path)}:{node.lineno}: {name}"


def long_files() -> Problems:
    """Split by idea, or list the file in LONG_FILES with a reason."""
    for path in python_files():
        name, lines = name_of(path), len(path.read_text(encoding="utf-8").splitlines())
        usual = TEST_FILE_LINES_MAX if path.name.startswith("test_") else FILE_LINES_MAX
        allowed, _reason = LONG_FILES.get(name, (usual, ""))
        if lines > allowed:
            yield f"{name}: {lines} lines, at most {allowed}"
        if name in LONG_FILES and lines <= usual:
            yield f"{name}: no longer long, take it out of LONG_FILES"


def long_functions() -> Problems:
    """Split by step; the signature and the docstring count."""
    lengths = {
        f"{name_of(path)}::{function.name}": (function.end_lineno or 0) - function.lineno + 1
        for path in python_files()
        for function in functions_in(path)
    }
    for name, lines in lengths.items():
        allowed = LONG_FUNCTIONS.get(name, FUNCTION_LINES_MAX)
        if lines > allowed:
            yield f"{name}: {lines} lines, at most {allowed}"
    for name in LONG_FUNCTIONS:
        if lengths.get(name, 0) <= FUNCTION_LINES_MAX:
            yield f"{name}: no longer long, take it out of LONG_FUNCTIONS"


def unlisted_threads_and_handlers() -> Problems:
    """A new maker of threads or signal handlers is a design decision: list it with its reason."""
    threads = re.compile(r"(?:^|\.)(?:Thread|to_thread|run_in_executor|ThreadPoolExecutor)$")
    handlers = re.compile(r"(?:^|\.)(?:signal\.signal|pthread_kill|add_signal_handler)$")
    for pattern, listed in ((threads, STARTS_THREADS), (handlers, HANDLES_SIGNALS)):
        users = {
            name_of(path)
            for path in python_files()
            if path.relative_to(ROOT).parts[0] != "tests"
            if any(pattern.search(name) for _call, name in calls_in(path))
        }
        yield from (f"{name}: {pattern.pattern}" for name in sorted(users - listed.keys()))
        yield from (f"{name}: is listed and need not be" for name in sorted(listed.keys() - users))


def unfinished_work() -> Problems:
    """Finish it, or file an issue; a comment is where work is forgotten."""
    yield from lines_matching(UNFINISHED)


def bare_suppressions() -> Problems:
    """Name the rule and give the reason in words: `# noqa: X123 - why`."""
    for path in python_files():
        for pattern in (BARE_NOQA, BARE_NO_COVER):
            yield from matches(path, pattern)


def registry_hosts() -> Problems:
    """Use the system's own configuration of pip and apt."""
    yield from lines_matching(REGISTRY)


def unknown_urls() -> Problems:
    """Name documents by title; a URL's host must be in URL_HOSTS, or end in .invalid."""
    url = re.compile(r"https?://([A-Za-z0-9.-]+)")
    for path in text_files():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for host in url.findall(line):
                if host not in URL_HOSTS and "." in host and not host.endswith(".invalid"):
                    yield f"{name_of(path)}:{number}: {host}"


def lines_matching(pattern: re.Pattern[str]) -> Problems:
    for path in text_files():
        if path != Path(__file__):
            yield from matches(path, pattern)


def matches(path: Path, pattern: re.Pattern[str]) -> Problems:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if pattern.search(line) and path != Path(__file__):
            yield f"{name_of(path)}:{number}: {line.strip()}"


# A call that fails the test by itself, and a name whose promise is that nothing is raised.
TELLING_CALL = re.compile(r"(?:^|_)(?:check|assert|expect|verify|raises|warns|fail|within|wait)")
ONLY_MUST_NOT_RAISE = re.compile(r"_(?:allowed|harmless|does_nothing)$")


def assertless_tests() -> Problems:
    """Assert: directly, with pytest.raises, through a helper that does, or by a wait that ends.

    A test that something is allowed says so in the last word of its name: allowed, harmless.
    """
    helpers = asserting_helpers()
    for path in python_files():
        if path.name.startswith("test_"):
            for function in functions_in(path):
                fails = asserts_itself(function) or called_names(function) & helpers
                exempt = ONLY_MUST_NOT_RAISE.search(function.name)
                if function.name.startswith("test_") and not fails and not exempt:
                    yield f"{name_of(path)}:{function.lineno}: {function.name} asserts nothing"


def asserting_helpers() -> set[str]:
    """Names of functions of the tests that assert, or call one that does."""
    calls = {
        function.name: called_names(function)
        for path in python_files()
        if path.is_relative_to(ROOT / "tests")
        for function in functions_in(path)
    }
    helpers = {
        function.name
        for path in python_files()
        if path.is_relative_to(ROOT / "tests")
        for function in functions_in(path)
        if asserts_itself(function)
    }
    while more := {name for name, called in calls.items() if called & helpers} - helpers:
        helpers |= more
    return helpers


def asserts_itself(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether it can fail by its own words; `except X` lets everything but X fail it."""
    return any(
        isinstance(node, ast.Assert | ast.Raise | ast.ExceptHandler) for node in ast.walk(function)
    ) or any(TELLING_CALL.search(name) for name in called_names(function))


def called_names(function: ast.AST) -> set[str]:
    """The last word of each name that is called."""
    calls = (node for node in ast.walk(function) if isinstance(node, ast.Call))
    return {dotted(call.func).rpartition(".")[2] for call in calls}


RULES: tuple[Callable[[], Problems], ...] = (
    fixed_waits,
    shells,
    retried_ioctls,
    lossy_fd_receivers,
    undocumented_modules,
    global_statements,
    mutable_module_variables,
    long_files,
    long_functions,
    unlisted_threads_and_handlers,
    unfinished_work,
    bare_suppressions,
    registry_hosts,
    unknown_urls,
    assertless_tests,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_house_rule_is_kept(rule: Callable[[], Problems]) -> None:
    problems = list(rule())
    assert not problems, "\n".join([rule.__doc__ or "", *problems])


def test_every_text_file_is_looked_at() -> None:
    """The walk itself works: a rule over no files would always pass."""
    assert {"tools/with-env", ".ci/run"} <= {name_of(path) for path in text_files()}
    assert "tests/test_tidy.py" in {name_of(path) for path in python_files()}
