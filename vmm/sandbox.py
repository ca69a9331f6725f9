"""Least privilege at run time: what this process gives up once its options are understood.

`-sandbox on` (the default) means, in this order, and for good:

* no_new_privs: no program that it could run would gain anything (prctl(2));
* an empty capability bounding set, so that not even a file with capabilities gives any;
* not dumpable: no other process of the same user may trace it or read its memory, guest RAM with it
  (`x-dumpable=on` for those who debug, or look at it from outside, without being root);
* a seccomp filter over all threads (libseccomp): what a VMM never does fails with EPERM.

A vCPU thread, which runs next to guest code, gives up more when it starts: it opens, connects,
creates and ends nothing. The groups and their names are QEMU's (`-sandbox` in its man page), where
they end the process; here the call fails, and the error says so.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Any

import prctl

from vmm.config import SandboxOptions
from vmm.errors import SandboxError

# What no VMM does, and an intruder would like to: other processes' memory, kernel code and keys,
# namespaces and mounts, the system as a whole.
_NEVER = (
    "ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "process_madvise",
    "init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "bpf",
    "perf_event_open", "userfaultfd", "add_key", "request_key", "keyctl", "io_uring_setup",
    "setns", "unshare", "chroot", "pivot_root", "mount", "umount2", "move_mount", "open_tree",
    "fsopen", "fsmount", "fspick", "mount_setattr", "open_by_handle_at", "name_to_handle_at",
    "reboot", "swapon", "swapoff", "syslog", "acct", "quotactl", "iopl", "ioperm", "modify_ldt",
    "settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "sethostname", "setdomainname",
    "vhangup", "nfsservctl", "lookup_dcookie", "mknod", "mknodat",
)  # fmt: skip
_OBSOLETE = (
    "_sysctl", "afs_syscall", "create_module", "get_kernel_syms", "getpmsg", "putpmsg",
    "query_module", "security", "sysfs", "tuxcall", "uselib", "ustat", "vserver",
)  # fmt: skip
_ELEVATE = ("setuid", "setgid", "setpgid", "setsid", "setreuid", "setregid", "setresuid",
            "setresgid", "setfsuid", "setfsgid", "setgroups", "capset")  # fmt: skip
_SPAWN = ("fork", "vfork", "execve", "execveat")
# Not setpriority, sched_setscheduler and sched_setaffinity, which an update needs (vmm.update:
# priority, placement); taking more than its user may have needs a capability anyway.
_RESOURCES = ("setrlimit", "sched_setparam", "sched_setattr", "ioprio_set",
              "mbind", "set_mempolicy", "migrate_pages", "move_pages")  # fmt: skip
_NOT_ON_A_VCPU = (
    "open", "openat", "openat2", "creat", "memfd_create", "memfd_secret",
    "socket", "socketpair", "connect", "bind", "listen", "accept", "accept4",
    "unlink", "unlinkat", "rename", "renameat", "renameat2", "mkdir", "mkdirat", "rmdir", "link",
    "linkat", "symlink", "symlinkat", "chmod", "fchmod", "fchmodat", "chown", "fchown", "fchownat",
    "lchown", "truncate", "setxattr", "fsetxattr", "kill", "pidfd_open", "pidfd_getfd",
    "pidfd_send_signal", "clone", "setpriority", "sched_setscheduler", "sched_setaffinity",
    "setrlimit", *_SPAWN, *_ELEVATE,
)  # fmt: skip

_CLONE_THREAD = 0x0001_0000


def confine_process(options: SandboxOptions) -> None:
    """Give up what `options` say; every thread that starts later inherits it.

    Raises SandboxError when libseccomp is missing or the kernel refuses.
    """
    if not options.enabled:
        return
    prctl.set_no_new_privs(1)
    _empty_bounding_set()
    if not options.dumpable:
        prctl.set_dumpable(0)
    denied = [*_NEVER]
    for group, wanted in (
        (_OBSOLETE, options.deny_obsolete),
        (_ELEVATE, options.deny_elevate_privileges),
        (_SPAWN, options.deny_spawn),
        (_RESOURCES, options.deny_resource_control),
    ):
        denied += group if wanted else ()
    seccomp = _library()
    rules = _deny(seccomp, denied)
    if options.deny_spawn:  # a thread is made by clone(2), a process too
        rules.add_rule(
            seccomp.ERRNO(errno.EPERM), "clone", seccomp.Arg(0, seccomp.MASKED_EQ, _CLONE_THREAD, 0)
        )
        # Its flags are in memory, where no filter can see them; libc then uses clone(2).
        rules.add_rule(seccomp.ERRNO(errno.ENOSYS), "clone3")
    if options.deny_resource_control:  # with a new limit; reading one is harmless
        rules.add_rule(seccomp.ERRNO(errno.EPERM), "prlimit64", seccomp.Arg(2, seccomp.NE, 0))
    _load(rules)


def confine_vcpu_thread(options: SandboxOptions) -> None:
    """Called on a vCPU thread before it runs the guest; raises as `confine_process`."""
    if options.enabled:
        _load(_deny(_library(), _NOT_ON_A_VCPU))


def _empty_bounding_set() -> None:
    """Nothing happens without CAP_SETPCAP, and then there is nothing that it could give."""
    if prctl.cap_effective.setpcap:
        prctl.capbset.limit()


def _library() -> Any:
    try:
        import pyseccomp  # noqa: PLC0415 - raises where libseccomp is missing
    except (ImportError, RuntimeError) as error:
        raise SandboxError(
            f"-sandbox on needs libseccomp ({error}); install it (Debian: libseccomp2), or use "
            "-sandbox off"
        ) from error
    return pyseccomp


def _deny(seccomp: Any, names: Iterable[str]) -> Any:
    """A filter in which these calls fail with EPERM; one that this machine lacks fails anyway."""
    rules = seccomp.SyscallFilter(seccomp.ALLOW)
    for name in dict.fromkeys(names):
        if seccomp.resolve_syscall(seccomp.Arch.NATIVE, name) >= 0:
            rules.add_rule(seccomp.ERRNO(errno.EPERM), name)
    return rules


def _load(rules: Any) -> None:
    try:
        rules.load()
    except OSError as error:
        raise SandboxError(
            f"-sandbox on: the kernel refuses the seccomp filter ({error.strerror}); use "
            "-sandbox off"
        ) from error
