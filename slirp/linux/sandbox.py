"""Giving up what a running network no longer needs: the file system and the rights.

`enter_sandbox` is for a process that has opened everything it will ever need, save the ports of
forwards that are still to come. Afterwards it sees /etc and /run, read-only, and nothing else of
the file system; its only capability is CAP_NET_BIND_SERVICE, and it cannot gain another. That is
slirp4netns's sandbox. As an ordinary user it gets there by a user namespace of its own, which is
what makes a mount namespace possible (and where the capability is worth nothing to the host).

Two things must go on working in there. Modules that are imported when first used are imported
before (`preload`). The host may replace its resolv.conf at any time; what is in /etc and /run is
followed there, links between the two included. Where it leads elsewhere (a link below /tmp), a
small process that stays outside reads it and sends what it says through a pipe (`ResolvKeeper`).
That process can be told nothing.

The filter of system calls is slirp.linux.seccomp.

Does not do: follow a resolv.conf that leads out of /etc and /run only after the sandbox was closed;
make read-only what the host mounts below /run later (it keeps its own rights).
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import re
import time
from collections.abc import Iterable, Iterator
from typing import Final

from slirp.linux import lookup, netns, syscalls
from slirp.linux.aside import Aside
from slirp.wire import checksum

# What is imported at first use somewhere in the network, and codecs that are found by name.
LAZY_MODULES: Final = (
    "numpy",
    "json",
    "encodings.idna",
    "encodings.latin_1",
    "ipaddress",
    "traceback",
    "linecache",
    "slirp.linux.sd_notify",
)
# What a control socket's verbs need beside
CONTROL_MODULES: Final = (
    "pathlib",
    "slirp.host.handover",
    "slirp.host.state",
    "slirp.sight.capture",
    "slirp.sight.selection",
)
THREAD_SETTINGS: Final = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
LONG_SUM: Final = 1 << 17  # bytes: enough for every way of summing to be taken
SHOWN: Final = ("/etc", "/run")  # what is still seen: resolv.conf and what it links to
KEPT: Final = 1 << syscalls.CAP_NET_BIND_SERVICE  # for forwards of ports below 1024
PLACES: Final = ("/tmp", "/run", "/var", "/dev")  # directories, one of which is there to mount on
QUIET: Final = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
LOOK_EVERY: Final = 1.0  # seconds between looks at the host's resolv.conf
RESOLV_MAX: Final = 4096  # bytes of resolv.conf that are passed on; a pipe takes them at once


def preload(further: Iterable[str] = ()) -> None:
    """Import now what would be imported later, from files that will not be there."""
    for name in THREAD_SETTINGS:
        os.environ[name] = "1"  # a thread would keep its own capabilities
    for name in (*LAZY_MODULES, *further):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    checksum.ones_sum([memoryview(bytes(LONG_SUM))])


def _be_single_threaded() -> None:
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise netns.NamespaceError(f"{threads} threads run; only one can give up its rights")


def enter_sandbox(further: Iterable[str] = ()) -> None:
    """Leave the file system and the capabilities behind. Raises NamespaceError or OSError.

    `further`: modules that will be needed beside those that always are.
    """
    preload(further)
    _be_single_threaded()
    netns.unshare_as_anyone(syscalls.CLONE_NEWNS)
    syscalls.mount("", "/", flags=syscalls.MS_REC | syscalls.MS_SLAVE)
    place = next(path for path in PLACES if os.path.isdir(path))
    with _opened(filter(os.path.isdir, SHOWN)) as shown:  # before `place` covers one of them
        options = f"size=4k,nr_inodes={1 + len(shown)},mode=755"
        syscalls.mount("slirp", place, "tmpfs", QUIET, options)
        for path, fd in shown.items():
            _show(f"/proc/self/fd/{fd}", place + path)
    os.chdir(place)
    syscalls.pivot_root(".", ".")  # the old root now lies over the new one
    syscalls.umount(".", syscalls.MNT_DETACH)
    os.chdir("/")
    remount = syscalls.MS_REMOUNT | syscalls.MS_BIND | syscalls.MS_RDONLY
    syscalls.mount("", "/", flags=remount | QUIET)
    syscalls.drop_capabilities(KEPT)


@contextlib.contextmanager
def _opened(paths: Iterable[str]) -> Iterator[dict[str, int]]:
    with contextlib.ExitStack() as stack:
        found = {}
        for path in paths:
            found[path] = fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
        yield found


def _show(source: str, target: str) -> None:
    """Mount a directory, and what is mounted in it, read-only at another place."""
    os.mkdir(target)
    syscalls.mount(source, target, flags=syscalls.MS_BIND | syscalls.MS_REC)
    try:
        syscalls.mount_setattr(target, syscalls.MOUNT_ATTR_QUIET | syscalls.MOUNT_ATTR_RDONLY)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        _make_read_only(target)


def _make_read_only(top: str) -> None:
    """The same mount by mount, for Linux before 5.12."""
    remount = syscalls.MS_REMOUNT | syscalls.MS_BIND | syscalls.MS_RDONLY | QUIET
    syscalls.mount("", top, flags=remount)
    for path in _mount_points():
        if path.startswith(top + "/"):
            with contextlib.suppress(OSError):  # nor can this process write in it, then
                syscalls.mount("", path, flags=remount)


def _mount_points() -> list[str]:
    """Of this mount namespace, proc(5); blanks and the like are written as \\ooo there."""
    with open("/proc/self/mountinfo", "rb") as table:
        words = [line.split()[4] for line in table]
    plain = [re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), word) for word in words]
    return [os.fsdecode(word) for word in plain]


def is_shown(path: str) -> bool:
    """Does `path` lead, with all its links, through nothing but what the sandbox shows?"""
    return all(
        any(entry == place or entry.startswith(f"{place}/") for place in SHOWN)
        for entry in lookup.entries(path)
    )


class ResolvKeeper:
    """A process outside the sandbox that reports each change of resolv.conf through a pipe.

    To be made before the sandbox is entered. `fileno()` is readable when there is news.
    """

    def __init__(self, path: str = "/etc/resolv.conf") -> None:
        self._reader, writer = os.pipe2(os.O_CLOEXEC)
        self._process = Aside(lambda: _keep(path, writer), keep=[writer])
        os.close(writer)

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        return self._reader

    def read(self) -> bytes:
        """The file's text after a change; empty when the process has ended."""
        return os.read(self._reader, RESOLV_MAX)

    def close(self) -> None:
        os.close(self._reader)
        self._process.close()


def _keep(path: str, writer: int) -> None:
    said: bytes | None = None
    while True:
        try:
            with open(path, "rb") as file:
                text = file.read(RESOLV_MAX)
        except OSError:
            text = b""
        if text != said:
            os.write(writer, text or b"\n")
            said = text
        time.sleep(LOOK_EVERY)
