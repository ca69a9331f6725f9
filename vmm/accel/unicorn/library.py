"""libunicorn's C functions, called through ctypes.

The Python binding is not used: importing it costs 50 ms of every VMM start, and its wrappers cost
more than the calls they wrap. Its wheel is what carries the library, so that is where we look.

Two handles to one library: `ctypes.CDLL` releases the GIL around a call and is for running guest
code; `ctypes.PyDLL` keeps it and is for calls of a microsecond, where giving the GIL away and
taking it back would cost more than the call and could cost a whole switch interval.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import importlib.util
from pathlib import Path

from vmm.errors import AccelError, AccelUnavailable

_LIBRARY_FILE = "libunicorn.so.2"
_MIN_VERSION = (2, 1)

ARCH_X86 = 4
MODE_64 = 8
PROT_ALL = 7
PROT_EXEC = 4

HOOK_INTR = 1
HOOK_INSN = 2
INSN_IN = 218
INSN_OUT = 500

ERROR_NONE = 0
ERROR_INVALID_INSTRUCTION = 10

# uc_ctl requests: number, argument count << 26, write << 30.
_CTL_WRITE = 1 << 30
CTL_USE_EXITS = 4 | 1 << 26 | _CTL_WRITE
CTL_FLUSH_TRANSLATIONS = 10 | _CTL_WRITE
CTL_FLUSH_TLB = 11 | _CTL_WRITE

_void_p = ctypes.c_void_p
_u32 = ctypes.c_uint32
_u64 = ctypes.c_uint64
_int = ctypes.c_int

# Callbacks: (engine, ..., user data)
PortRead = ctypes.CFUNCTYPE(_u32, _void_p, _u32, _int, _void_p)
PortWrite = ctypes.CFUNCTYPE(None, _void_p, _u32, _int, _u32, _void_p)
MmioRead = ctypes.CFUNCTYPE(_u64, _void_p, _u64, ctypes.c_uint, _void_p)
MmioWrite = ctypes.CFUNCTYPE(None, _void_p, _u64, ctypes.c_uint, _u64, _void_p)
Exception_ = ctypes.CFUNCTYPE(None, _void_p, _u32, _void_p)


class Library:
    """The functions that the accelerator uses, with their C types."""

    def __init__(self, path: str) -> None:
        releasing = ctypes.CDLL(path)
        keeping = ctypes.PyDLL(path)
        self.emu_start = releasing.uc_emu_start
        self.emu_start.argtypes = (_void_p, _u64, _u64, _u64, ctypes.c_size_t)
        self.open = _function(keeping, "uc_open", _int, _int, _void_p)
        self.close = _function(keeping, "uc_close", _void_p)
        self.emu_stop = _function(keeping, "uc_emu_stop", _void_p)
        self.mem_map = _function(keeping, "uc_mem_map", _void_p, _u64, _u64, _u32)
        self.mem_map_ptr = _function(keeping, "uc_mem_map_ptr", _void_p, _u64, _u64, _u32, _void_p)
        self.mem_write = _function(keeping, "uc_mem_write", _void_p, _u64, ctypes.c_char_p, _u64)
        self.vmem_read = _function(
            keeping, "uc_vmem_read", _void_p, _u64, _u32, _void_p, ctypes.c_size_t
        )
        self.mmio_map = _function(
            keeping, "uc_mmio_map", _void_p, _u64, _u64, MmioRead, _void_p, MmioWrite, _void_p
        )
        # Variadic: the last two of hook_add and of ctl are only read when the request has them.
        self.hook_add = _function(
            keeping, "uc_hook_add", _void_p, _void_p, _int, _void_p, _void_p, _u64, _u64, _int
        )
        self.ctl = _function(keeping, "uc_ctl", _void_p, _u32, _int)
        self.reg_read = _function(keeping, "uc_reg_read", _void_p, _int, _void_p)
        self.reg_read_batch = _function(
            keeping, "uc_reg_read_batch", _void_p, _void_p, _void_p, _int
        )
        self.reg_write_batch = _function(
            keeping, "uc_reg_write_batch", _void_p, _void_p, _void_p, _int
        )
        self.context_alloc = _function(keeping, "uc_context_alloc", _void_p, _void_p)
        self.context_free = _function(keeping, "uc_context_free", _void_p)
        self.context_size = _function(keeping, "uc_context_size", _void_p)
        self.context_size.restype = ctypes.c_size_t
        self.context_save = _function(keeping, "uc_context_save", _void_p, _void_p)
        self.context_restore = _function(keeping, "uc_context_restore", _void_p, _void_p)
        self._strerror = _function(keeping, "uc_strerror", _int)
        self._strerror.restype = ctypes.c_char_p
        major, minor = _int(), _int()
        keeping.uc_version(ctypes.byref(major), ctypes.byref(minor))
        self.version = (major.value, minor.value)

    def error_text(self, error: int) -> str:
        """Unicorn's own words for an error number."""
        text: bytes = self._strerror(error)
        return text.decode()

    def check(self, error: int, what: str) -> None:
        """Raise AccelError unless `error` is none."""
        if error != ERROR_NONE:
            raise AccelError(f"unicorn: {what} failed: {self.error_text(error)}")


def _function(library: ctypes.CDLL, name: str, *argument_types: object) -> ctypes._NamedFuncPointer:
    function = getattr(library, name)
    function.argtypes = argument_types
    return function  # type: ignore[no-any-return]  # getattr of a CDLL is untyped


@functools.cache
def load_library() -> Library:
    """Find and load libunicorn, once per process.

    Raises AccelUnavailable when it is not installed or is too old.
    """
    path = _library_path()
    try:
        library = Library(path)
    except (OSError, AttributeError) as error:
        raise AccelUnavailable(
            f"the unicorn library {path} cannot be used ({error}); reinstall it: "
            "pip install --force-reinstall unicorn"
        ) from error
    if library.version < _MIN_VERSION:
        raise AccelUnavailable(
            f"the unicorn library {path} has version {library.version[0]}.{library.version[1]}, "
            f"expected {_MIN_VERSION[0]}.{_MIN_VERSION[1]} or newer: pip install --upgrade unicorn"
        )
    return library


def _library_path() -> str:
    package = importlib.util.find_spec("unicorn")  # finds without importing
    for folder in (package.submodule_search_locations or ()) if package is not None else ():
        file = Path(folder) / "lib" / _LIBRARY_FILE
        if file.exists():
            return str(file)
    system_wide = ctypes.util.find_library("unicorn")
    if system_wide is None:
        raise AccelUnavailable("the unicorn engine is not installed: pip install unicorn")
    return system_wide
