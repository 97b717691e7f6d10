"""Files of a command's own in /etc: what it reads as /etc/resolv.conf, whatever the host has there.

A file is put over the *entry* in /etc, be it a file or a link, and a link is not followed: where it
leads, and whether it leads anywhere, does not matter. The contents lie in a tmpfs that has no place
of its own: it is mounted where nobody looks, each file of it is taken out as a detached mount
(`open_tree`), and that is moved over the entry. So nothing has to be cleaned up.

Two things can be wrong with an entry. It is not there (or is a folder): then there is nothing to
put a file over, and /etc as a whole is stood in for. The stand-in has the same entries: folders are
bound, links copied, and files are links to `/etc/.host/NAME`, where the host's /etc is bound, so
that a file that the host replaces is followed. Or the host replaces it later: with the old entry
the kernel drops what lay over it, in every mount namespace. So a process stays in the command's
mount namespace (`keep_covered`), is woken by inotify, and puts a file there that it has at hand.
For a millisecond, on a busy machine some more, the command sees the host's.

    unshare, /proc/self/ns …      command                     keeper
    cover(files, etc)             runs                        waits for the entries to change
                                                              host: rename("resolv.conf.new", …)
                                  the host's
                                  its own again       ←────── move_mount; builds the next one

What the command does with a file of its own stays its own, and so does, in a stand-in, what it
puts into or takes out of /etc itself; the folders below, and files that are there, are the host's.

Does not do: other places than /etc; a command that takes a mount namespace of its own (there a file
that the host replaces is the host's from then on); what was in /etc/.host.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat

from slirp.linux import syscalls
from slirp.linux.syscalls import CLONE_NEWNS, CLONE_NEWUSER

TYPE_CHECKING = False  # as typing has it; this is imported before there is time for `typing`
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Final, TypeAlias

    Files: TypeAlias = Mapping[str, str]  # by name in /etc: contents

ETC: Final = "/etc"
HOST: Final = ".host"  # in a stand-in: the host's /etc
PLACES: Final = ("/tmp", "/run", "/var", "/dev")  # directories, one of which is there to mount on
ROOM: Final = "size=4m,mode=755"  # of the tmpfs; it holds a few files, or links and empty folders
LOOK_EVERY_MS: Final = 1000  # milliseconds between looks, where the kernel does not tell before
CHANGES: Final = syscalls.IN_ATTRIB | syscalls.IN_DELETE_SELF | syscalls.IN_MOVE_SELF


class Inside:
    """The way into a command's mount namespace, as descriptors."""

    def __init__(self, etc: int, mounts: int, users: int) -> None:
        self.etc = etc  # its /etc
        self.mounts = mounts
        self.users = users  # the user namespace that rules over it, perhaps our own

    @classmethod
    def of_this_process(cls) -> Inside:
        flags = os.O_RDONLY | os.O_CLOEXEC
        return cls(
            os.open(ETC, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC),
            os.open("/proc/self/ns/mnt", flags),
            os.open("/proc/self/ns/user", flags),
        )

    @property
    def fds(self) -> tuple[int, int, int]:
        return (self.etc, self.mounts, self.users)

    def enter(self) -> None:
        """Raises OSError. Only for a process with one thread."""
        if not os.path.samestat(os.fstat(self.users), os.stat("/proc/self/ns/user")):
            syscalls.setns(self.users, CLONE_NEWUSER)
        syscalls.setns(self.mounts, CLONE_NEWNS)

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


def cover(files: Files, etc: int) -> bool:
    """Put the files over their entries, in a mount namespace where nobody looks yet.

    False: /etc as a whole is stood in for, and nothing that the host does will change the files.
    """
    whole = any(not _can_be_covered(name, etc) for name in files)
    for name, tree in _build(files, whole).items():
        syscalls.move_mount(tree, etc, name)
        os.close(tree)
    if whole:
        with contextlib.suppress(OSError):  # it may have lost its name
            os.chdir(os.getcwd())  # which may be in /etc
    return not whole


def keep_covered(files: Files, inside: Inside) -> None:
    """Put them there again whenever the host has replaced an entry; returns when it cannot again.

    Runs in a process of its own, which this leaves in the namespace.
    """
    host = os.open(ETC, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    inside.enter()
    keeper = _Keeper(files, inside)
    while not keeper.stands_in:
        with _watch(files, host) as told:
            try:
                if keeper.look():
                    _wait(told)
            except OSError:  # no memory, or the entry has changed again
                _wait(told)


class _Keeper:
    """Has a set of the files at hand, so that the host's are seen for a moment only."""

    def __init__(self, files: Files, inside: Inside) -> None:
        self._files = files
        self._inside = inside
        self._at_hand: dict[str, int] = {}
        self.stands_in = False

    def look(self) -> bool:
        """Cover what is bare. True: nothing was. Raises OSError."""
        etc = self._inside.etc
        bare = [name for name in self._files if not _is_covered(name, etc)]
        if not all(_can_be_covered(name, etc) for name in bare):
            self._move("", self._build(self._files, whole=True)[""])
            self.stands_in = True
            return False
        for name in bare:
            if name in self._at_hand:
                self._move(name, self._at_hand.pop(name))
        used = {n: text for n, text in self._files.items() if n not in self._at_hand}
        if used:
            self._at_hand |= self._build(used, whole=False)
        return not bare

    def _build(self, files: Files, whole: bool) -> dict[str, int]:
        syscalls.unshare(CLONE_NEWNS)  # a copy, in which nobody is disturbed
        try:
            syscalls.mount("", "/", flags=syscalls.MS_REC | syscalls.MS_PRIVATE)
            return _build(files, whole)
        finally:
            syscalls.setns(self._inside.mounts, CLONE_NEWNS)

    def _move(self, name: str, tree: int) -> None:
        try:
            syscalls.move_mount(tree, self._inside.etc, name)
        finally:
            os.close(tree)


def _wait(told: int) -> None:
    waiter = select.poll()
    if told >= 0:
        waiter.register(told, select.POLLIN)
    waiter.poll(LOOK_EVERY_MS)


def _cover_again(files: Files, bare: Files, inside: Inside) -> bool:
    whole = any(not _can_be_covered(name, inside.etc) for name in bare)
    syscalls.unshare(CLONE_NEWNS)  # a copy, in which nobody is disturbed
    syscalls.mount("", "/", flags=syscalls.MS_REC | syscalls.MS_PRIVATE)
    try:
        trees = _build(files if whole else bare, whole)
    finally:
        syscalls.setns(inside.mounts, CLONE_NEWNS)
    try:
        for name, tree in trees.items():
            syscalls.move_mount(tree, inside.etc, name)
    finally:
        for tree in trees.values():
            os.close(tree)
    return not whole


def _can_be_covered(name: str, etc: int) -> bool:
    """Is there an entry, and one that a file can lie over?"""
    try:
        return not stat.S_ISDIR(os.stat(name, dir_fd=etc, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _is_covered(name: str, etc: int) -> bool:
    """Is what is seen there another mount than /etc's own?"""
    try:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=etc)
    except FileNotFoundError:
        return False
    try:
        return _mount_of(fd) != _mount_of(etc)
    finally:
        os.close(fd)


def _mount_of(fd: int) -> bytes:
    """The line that names the mount, proc(5)."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as lines:
        return next(line for line in lines if line.startswith(b"mnt_id:"))


@contextlib.contextmanager
def _watch(files: Files, host: int) -> Iterator[int]:
    """A descriptor that is readable when an entry of the host has become another; -1: none is."""
    try:
        fd = syscalls.inotify_init()
    except OSError:  # the user has no more of them
        yield -1
        return
    try:
        for name in files:
            path = f"/proc/self/fd/{host}/{name}"
            with contextlib.suppress(FileNotFoundError):
                syscalls.inotify_add_watch(fd, path, CHANGES | syscalls.IN_DONT_FOLLOW)
        yield fd
    finally:
        os.close(fd)


# --- building -------------------------------------------------------------------------------------


def _build(files: Files, whole: bool) -> dict[str, int]:
    """Detached mounts, by the name in /etc that they are for; "" for all of /etc."""
    place = next(path for path in PLACES if os.path.isdir(path))
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
    syscalls.mount("slirp", place, "tmpfs", flags, ROOM)
    try:
        if whole:
            top = os.path.join(place, "etc")
            _stand_in(top, files)
            return {"": syscalls.open_tree(top, recursive=True)}
        _write(place, files)
        return {name: syscalls.open_tree(os.path.join(place, name)) for name in files}
    finally:
        syscalls.umount(place, syscalls.MNT_DETACH)


def _write(folder: str, files: Files) -> None:
    for name, text in files.items():
        path = os.path.join(folder, name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(path, 0o644)


def _stand_in(top: str, files: Files) -> None:
    """Another /etc, with the same entries and the files."""
    os.mkdir(top)
    os.chmod(top, 0o755)
    _bind(ETC, os.path.join(top, HOST))
    with os.scandir(ETC) as entries:
        for entry in entries:
            if entry.name not in files and entry.name != HOST:
                _stand_in_for(entry, os.path.join(top, entry.name))
    _write(top, files)


def _stand_in_for(entry: os.DirEntry[str], path: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # gone since
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), path)
        elif entry.is_dir(follow_symlinks=False):
            _bind(entry.path, path)
        else:
            os.symlink(f"{HOST}/{entry.name}", path)


def _bind(folder: str, path: str) -> None:
    os.mkdir(path)
    syscalls.mount(folder, path, flags=syscalls.MS_BIND | syscalls.MS_REC)
