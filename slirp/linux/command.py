"""A command in a network namespace of its own, with this process as its network.

A child process makes the namespaces (network and mount; as an ordinary user also a user namespace,
which is what gives the right to the others), sets the TAP device up, waits until the parent's
network runs, and becomes the command.

    parent                                child
    fork ───────────────────────────────→ unshare, maps, files, TAP, addresses, routes
    descriptors     ←───── SCM_RIGHTS ─── (or the text of what went wrong)
    keeper: see slirp.linux.own_files
    attaches the TAP to a network, forwards …
    start() ──────────── one byte ─────→ execvp

A parent that ends takes its command and its keeper with it (PR_SET_PDEATHSIG), and the command's
files of its own have no place in the host's file system, so nothing has to be cleaned up.

Does not do: PID namespaces, cgroups, a terminal of its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal

from slirp.linux import own_files, report, syscalls
from slirp.linux.aside import Aside
from slirp.linux.netns import unshare_as_anyone, write_to
from slirp.linux.own_files import Inside

TYPE_CHECKING = False  # as typing has it; this is imported before there is time for `typing`
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final, NoReturn

    from slirp.linux.own_files import Files

SIGNALS_OF_PYTHON: Final = (signal.SIGPIPE, signal.SIGXFSZ)  # which the interpreter ignores

EXIT_NOT_EXECUTABLE: Final = 126  # as shells have it
EXIT_NOT_FOUND: Final = 127


def _relax(gid: int) -> None:
    # A file's capabilities do not count in a user namespace, so `ping` needs the ping socket; and
    # an ordinary user's server may have port 80 of a network that is the user's own.
    settings = {"ping_group_range": f"{gid} {gid}", "ip_unprivileged_port_start": "0"}
    for name, value in settings.items():
        with contextlib.suppress(OSError):
            write_to(f"/proc/sys/net/ipv4/{name}", value)


class Command:
    """A command in a network namespace of its own, held until its network runs.

    `make_tap()` runs inside the namespace and returns the device's descriptor, which `ready()`
    hands out here. `files()` gives contents for names in /etc that only the command sees; it runs
    in other processes too. `before_exec()` runs last in the child, to undo what the parent did to
    itself (signal masks).
    """

    def __init__(
        self,
        argv: Sequence[str],
        make_tap: Callable[[], int],
        *,
        files: Callable[[], Files] = dict,
        map_root: bool = False,
        before_exec: Callable[[], None] = lambda: None,
    ) -> None:
        self._channel, theirs = syscalls.socketpair()
        self._files = files
        self._keeper: Aside | None = None
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._channel)
            _child(theirs, parent, argv, make_tap, self._files, map_root, before_exec)
        os.close(theirs)
        self.pidfd = os.pidfd_open(self.pid)  # readable when the command has ended
        self.status: int | None = None

    def ready(self) -> int:
        """Wait until the namespace is there: the TAP's descriptor. Raises NamespaceError."""
        tap, *way_in = report.read(self._channel)
        if way_in:
            self._keep_covered(Inside(*way_in))
        return tap

    def _keep_covered(self, inside: Inside) -> None:
        try:
            files = self._files
            self._keeper = Aside(lambda: own_files.keep_covered(files(), inside), keep=inside.fds)
        finally:
            inside.close()

    def start(self) -> None:
        """Let the command begin."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._channel, b"!")
        self._leave()

    def _leave(self) -> None:
        if self._channel >= 0:
            os.close(self._channel)
            self._channel = -1

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def wait(self) -> int:
        """The exit status as a shell gives it: 128 + the signal that killed it."""
        if self.status is None:
            _, status = os.waitpid(self.pid, 0)
            code = os.waitstatus_to_exitcode(status)
            self.status = code if code >= 0 else 128 - code
        return self.status

    def close(self) -> None:
        """End it, if it still runs, and give the descriptors back (not the TAP's)."""
        self._leave()
        if self.status is None:
            self.signal(signal.SIGKILL)
            self.wait()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
        if self._keeper is not None:
            self._keeper.close()
            self._keeper = None


def _child(
    channel: int,
    parent: int,
    argv: Sequence[str],
    make_tap: Callable[[], int],
    files: Callable[[], Files],
    map_root: bool,
    before_exec: Callable[[], None],
) -> NoReturn:
    status = 1
    try:
        unshare_as_anyone(syscalls.CLONE_NEWNET | syscalls.CLONE_NEWNS, map_root)
        syscalls.die_with_parent(parent)
        tap = make_tap()  # first, so that it is there early
        way_in = _cover(files())
        _relax(os.getegid())
        report.send(channel, tap, *way_in)
        os.close(tap)
        if os.read(channel, 1):
            before_exec()
            status = _execute(argv)
    except BaseException as error:  # whatever it is: this process ends here, the parent tells
        report.send_failure(channel, error)
    finally:
        os._exit(status)


def _cover(files: Files) -> Sequence[int]:
    """The way in for the keeper, if it is to be kept."""
    if not files:
        return ()
    syscalls.mount("", "/", flags=syscalls.MS_REC | syscalls.MS_SLAVE)
    inside = Inside.of_this_process()
    return inside.fds if own_files.cover(files, inside.etc) else ()


def _execute(argv: Sequence[str]) -> int:
    """Become the command; returns only when that fails, with the exit status for it."""
    for number in SIGNALS_OF_PYTHON:
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(argv[0], list(argv))
    except OSError as error:
        os.write(2, f"slirp run: {argv[0]}: {error.strerror}\n".encode())
        missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
        return EXIT_NOT_FOUND if missing else EXIT_NOT_EXECUTABLE
