"""The Linux calls that Python 3.11's `os` lacks, by ctypes; each raises OSError as `os` would.

Namespaces (`unshare`, `setns`), mounts (`mount`, `umount`, `pivot_root`), what a process may still
do (`drop_capabilities`, `set_no_new_privs`, `raise_descriptor_limit`), its tie to its parent
(`die_with_parent`), and news of files (`inotify_init`).

Does not do: decide anything. slirp.linux.netns and slirp.linux.sandbox say what these are for.
"""

from __future__ import annotations

import ctypes
import os
import struct

TYPE_CHECKING = False  # as typing has it; this is imported before there is time for `typing`
if TYPE_CHECKING:
    from typing import Any, Final

CLONE_NEWNS: Final = 0x00020000  # linux/sched.h
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWNET: Final = 0x40000000

MS_RDONLY: Final = 0x1  # linux/mount.h
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_REMOUNT: Final = 0x20
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MS_SHARED: Final = 1 << 20
MNT_DETACH: Final = 0x2

AF_UNIX: Final = 1  # linux/socket.h
SOCK_SEQPACKET: Final = 5

AT_FDCWD: Final = -100  # linux/fcntl.h
AT_RECURSIVE: Final = 0x8000
OPEN_TREE_CLONE: Final = 0x1  # linux/mount.h
OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH: Final = 0x4
MOVE_MOUNT_T_EMPTY_PATH: Final = 0x40
MOUNT_ATTR_RDONLY: Final = 0x1  # linux/mount.h; as MS_RDONLY and so on, for mount_setattr(2)
MOUNT_ATTR_NOSUID: Final = 0x2
MOUNT_ATTR_NODEV: Final = 0x4
MOUNT_ATTR_NOEXEC: Final = 0x8
MOUNT_ATTR_QUIET: Final = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
MOUNT_ATTR: Final = struct.Struct("4Q")  # struct mount_attr: set, clear, propagation, userns

SIGKILL: Final = 9  # signal(7)

PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
PR_SET_DUMPABLE: Final = 4
PR_CAPBSET_DROP: Final = 24
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

CAPABILITY_VERSION_3: Final = 0x20080522  # linux/capability.h
CAPABILITIES_MAX: Final = 64  # bits in version 3's two words
CAP_NET_BIND_SERVICE: Final = 10
NS_GET_USERNS: Final = 0xB701  # linux/nsfs.h: the user namespace that owns a namespace

IN_ATTRIB: Final = 0x4  # linux/inotify.h; also when a link to the file has gone
IN_DELETE_SELF: Final = 0x400
IN_MOVE_SELF: Final = 0x800
IN_DONT_FOLLOW: Final = 0x02000000

_CAPABILITIES: Final = struct.Struct("6I")  # twice effective, permitted, inheritable: low, high

_SYS_OPEN_TREE: Final = 428  # these three on every architecture
_SYS_MOVE_MOUNT: Final = 429
_SYS_MOUNT_SETATTR: Final = 442
_SYS_PIVOT_ROOT: Final = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "ppc64le": 203, "s390x": 217}

libc: Final = ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def socketpair() -> tuple[int, int]:
    """Two connected sockets of sequenced packets, close-on-exec, without the `socket` module."""
    pair = (ctypes.c_int * 2)()
    kind = ctypes.c_int(SOCK_SEQPACKET | os.O_CLOEXEC)
    checked(libc.socketpair(ctypes.c_int(AF_UNIX), kind, ctypes.c_int(0), pair), "socketpair")
    return pair[0], pair[1]


def unshare(flags: int) -> None:
    checked(libc.unshare(ctypes.c_int(flags)), "unshare")


def setns(fd: int, kind: int) -> None:
    checked(libc.setns(ctypes.c_int(fd), ctypes.c_int(kind)), "setns")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    names: list[Any] = [os.fsencode(name) if name else None for name in (source, target, kind)]
    options = data.encode() if data else None
    checked(libc.mount(*names, ctypes.c_ulong(flags), options), target)


def umount(target: str, flags: int = 0) -> None:
    checked(libc.umount2(os.fsencode(target), ctypes.c_int(flags)), target)


def mount_setattr(path: str, attributes: int) -> None:
    """Set MOUNT_ATTR_ bits on a mount and on all that are below it (Linux 5.12)."""
    request = MOUNT_ATTR.pack(attributes, 0, 0, 0)
    result = libc.syscall(
        ctypes.c_long(_SYS_MOUNT_SETATTR), ctypes.c_int(AT_FDCWD), os.fsencode(path),
        ctypes.c_uint(AT_RECURSIVE), request, ctypes.c_size_t(len(request)),
    )  # fmt: skip
    checked(result, path)


def open_tree(path: str, *, recursive: bool = False) -> int:
    """A copy of the mount at `path`, or of what lies below `path` in it, that is mounted nowhere.

    With `recursive` what is mounted below is copied too.
    """
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (AT_RECURSIVE if recursive else 0)
    result = libc.syscall(
        ctypes.c_long(_SYS_OPEN_TREE), ctypes.c_int(AT_FDCWD), os.fsencode(path),
        ctypes.c_uint(flags),
    )  # fmt: skip
    return checked(result, path)


def move_mount(tree: int, folder: int, name: str) -> None:
    """Mount a detached tree over an entry of a folder; "" is the folder itself.

    A link is covered as it is, not followed.
    """
    flags = MOVE_MOUNT_F_EMPTY_PATH | (0 if name else MOVE_MOUNT_T_EMPTY_PATH)
    result = libc.syscall(
        ctypes.c_long(_SYS_MOVE_MOUNT), ctypes.c_int(tree), b"", ctypes.c_int(folder),
        os.fsencode(name), ctypes.c_uint(flags),
    )  # fmt: skip
    checked(result, name)


def inotify_init() -> int:
    """A descriptor that tells of changes to files, close-on-exec."""
    return checked(libc.inotify_init1(ctypes.c_int(os.O_CLOEXEC)), "inotify")


def inotify_add_watch(fd: int, path: str, events: int) -> None:
    mask = ctypes.c_uint32(events)
    checked(libc.inotify_add_watch(ctypes.c_int(fd), os.fsencode(path), mask), path)


def pivot_root(new_root: str, put_old: str) -> None:
    number = _SYS_PIVOT_ROOT.get(os.uname().machine)
    if number is None:
        raise OSError(0, f"pivot_root's number is not known on {os.uname().machine}")
    paths = os.fsencode(new_root), os.fsencode(put_old)
    checked(libc.syscall(ctypes.c_long(number), *paths), "pivot_root")


def _prctl(option: int, *arguments: int) -> None:
    words = [ctypes.c_ulong(word) for word in (*arguments, 0, 0, 0, 0)[:4]]
    checked(libc.prctl(ctypes.c_int(option), *words), "prctl")


def die_with_parent(parent: int, signum: int = SIGKILL) -> None:
    """Have the kernel send `signum` to this process when its parent (by id) ends.

    To be called after the last change of credentials, since that forgets it.
    """
    _prctl(PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent:  # it ended before the call
        os.kill(os.getpid(), signum)


def set_no_new_privs() -> None:
    """Neither this process nor what it may execute gains rights by set-user-ID files."""
    _prctl(PR_SET_NO_NEW_PRIVS, 1)


def set_dumpable(dumpable: bool) -> None:
    """Whether others of the same user may look into this process (/proc/PID, ptrace)."""
    _prctl(PR_SET_DUMPABLE, int(dumpable))


def drop_capabilities(keep: int = 0) -> None:
    """Give up every capability in every set, for good; `keep`: bits of those that are left.

    What is left can be used and not be passed on, and is no more than what was there.
    """
    header = struct.pack("Ii", CAPABILITY_VERSION_3, 0)
    before = ctypes.create_string_buffer(_CAPABILITIES.size)
    checked(libc.capget(header, before), "capget")
    low, high = _CAPABILITIES.unpack(before)[1::3]
    left = (high << 32 | low) & keep
    for capability in range(CAPABILITIES_MAX):
        if left >> capability & 1:
            continue
        try:
            _prctl(PR_CAPBSET_DROP, capability)
        except OSError:  # EINVAL: past the kernel's last one; EPERM: there was nothing to drop
            break
    _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    low, high = left & 0xFFFFFFFF, left >> 32
    checked(libc.capset(header, _CAPABILITIES.pack(low, low, 0, high, high, 0)), "capset")
    set_no_new_privs()


def raise_descriptor_limit() -> int:
    """Allow this process as many descriptors as it may have; how many that is."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
