"""A filter of system calls, for a process that has opened everything it will need.

`seccomp_loader` gives a filter that refuses the calls that an intruder would want and a network
does not (running programs, looking into other processes, mounts, modules, kexec …) with EPERM,
through libseccomp: Debian's python3-seccomp or the pyseccomp package. Where neither is installed it
says so and does nothing by halves.

Callers ask for slirp4netns's help text to see whether it has the filter, before each network that
they start; so this imports little.

Does not do: an allow list (the interpreter's and the C library's own calls differ by version).
"""

from __future__ import annotations

from slirp.errors import ConfigError
from slirp.linux import syscalls

TYPE_CHECKING = False  # as typing has it; this is imported before there is time for `typing`
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any, Final

REFUSED_CALLS: Final = (  # names with blanks between
    # running programs, looking into other processes
    "execve execveat ptrace process_vm_readv process_vm_writev process_madvise kcmp",
    "pidfd_open pidfd_getfd pidfd_send_signal",
    # another view of the files, other namespaces
    "mount umount umount2 pivot_root chroot move_mount open_tree mount_setattr",
    "fsopen fsmount fsconfig fspick setns unshare",
    "name_to_handle_at open_by_handle_at quotactl swapon swapoff acct",
    # the kernel itself
    "init_module finit_module delete_module kexec_load kexec_file_load reboot",
    "bpf perf_event_open userfaultfd lookup_dcookie syslog iopl ioperm",
    "io_uring_setup io_uring_enter io_uring_register",
    # keys, clocks, names
    "keyctl add_key request_key settimeofday clock_settime adjtimex clock_adjtime",
    "sethostname setdomainname vhangup personality",
)


def _seccomp() -> ModuleType | Any:
    from importlib import import_module

    for name in ("seccomp", "pyseccomp"):
        try:
            module = import_module(name)
        except (ImportError, RuntimeError, OSError):  # the package, or its libseccomp, is missing
            continue
        if hasattr(module, "SyscallFilter"):
            return module
    raise ConfigError(
        "--enable-seccomp needs libseccomp's Python binding: "
        "apt-get install python3-seccomp, or pip install 'slirp[seccomp]'"
    )


def seccomp_available() -> bool:
    try:
        _seccomp()
    except ConfigError:
        return False
    return True


def seccomp_version() -> str | None:
    """libseccomp's version, or None where there can be no filter."""
    if not seccomp_available():
        return None

    import ctypes

    class Version(ctypes.Structure):
        _fields_ = (("major", ctypes.c_uint), ("minor", ctypes.c_uint), ("micro", ctypes.c_uint))

    try:
        version = ctypes.CDLL("libseccomp.so.2").seccomp_version
    except (OSError, AttributeError):
        return None
    version.restype = ctypes.POINTER(Version)
    found = version().contents
    return f"{found.major}.{found.minor}.{found.micro}"


def seccomp_loader() -> Callable[[], tuple[str, ...]]:
    """A function that puts the filter into force and returns the calls it refuses.

    In two steps, so that the library is found while there is a file system. Raises ConfigError.
    """
    seccomp = _seccomp()

    def load() -> tuple[str, ...]:
        rules = seccomp.SyscallFilter(seccomp.ALLOW)
        refused = []
        for name in " ".join(REFUSED_CALLS).split():
            try:
                rules.add_rule(seccomp.ERRNO(1), name)
            except (OSError, RuntimeError, ValueError):  # not a call of this architecture
                continue
            refused.append(name)
        syscalls.set_no_new_privs()
        rules.load()
        return tuple(refused)

    return load
