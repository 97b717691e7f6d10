"""Processes for the length of a block, and all that comes of them: nothing outlives who started it.

    with running(["pasta", "--", "cat"]) as process:
        ...

A program that is told to end may leave others behind: pasta, for one, ends and leaves the command
that it ran, which is then the first process of a namespace and deaf to Ctrl-C. So, however a block
is left, all that is below the process is noted (by pidfd) before it is told to end, and killed
afterwards; so are the orphans that this process inherits then, which it knows by their session. A
terminal's Ctrl-C does not reach that session, so it is always `end` that ends the programs. Where
this process is killed and `end` never runs, the kernel kills the program (`TIED`), and what that
leaves has the standard input that closes now: whatever has only to wait should be `cat`.

`leftovers` is the judge: in a process that adopts orphans, what a test has left is a child.

Does not do: end what has moved to a session of its own after its parent had gone; `leftovers` finds
it. A signal in the instant between a program's start and the block's finds no block to leave; then
it is as if this process had been killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final

PATIENCE: Final = 5.0  # seconds that a process may take to end
TIED: Final = ("setpriv", "--pdeathsig", "KILL", "--")  # before a command: it dies with its parent
WAITER: Final = ("cat",)  # waits until its standard input is closed
PR_SET_CHILD_SUBREAPER: Final = 36  # linux/prctl.h


def children(pid: int) -> list[int]:
    """Of all its threads."""
    found: list[int] = []
    with contextlib.suppress(OSError):  # it has ended
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):  # this thread has
                found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


def descendants(pid: int) -> Iterator[int]:
    for child in children(pid):
        yield child
        yield from descendants(child)


def end(process: subprocess.Popen[Any], number: int = signal.SIGTERM) -> None:
    """Tell the process to end, see that it does, and end what it leaves.

    Its session is its own, or it leaves what is noted only.
    """
    below = [fd for pid in descendants(process.pid) if (fd := _pidfd(pid)) is not None]
    try:
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        process.send_signal(number)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    finally:
        for fd in below:
            _kill(fd)
        _end_orphans(process.pid)


def _end_orphans(session: int) -> None:
    """Of a session whose leader has ended; again and again, since each may leave others."""
    while orphans := [pid for pid in children(os.getpid()) if _session(pid) == session]:
        for pid in orphans:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _kill(pidfd: int) -> None:
    """Kill it, if it still runs, wait until it has ended, and close the descriptor."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    select.select([pidfd], [], [], PATIENCE)
    os.close(pidfd)


@contextlib.contextmanager
def running(
    argv: Sequence[str],
    *fds: int,
    tied: bool = True,
    stdout: int | IO[Any] = subprocess.DEVNULL,
    stderr: int | IO[Any] | None = subprocess.DEVNULL,
    cwd: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A program, until the block is left; `tied` costs it a millisecond at its start."""
    adopt_orphans()
    with subprocess.Popen(
        [*(TIED if tied else ()), *argv],
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=stderr,
        pass_fds=fds,
        cwd=cwd,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            end(process)


# --- the judge ------------------------------------------------------------------------------------


def adopt_orphans() -> None:
    """From now on what a child of this process leaves behind becomes this process's child."""
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError("no PR_SET_CHILD_SUBREAPER; Linux 3.4 has it")


def _command_line(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    except OSError:
        return f"process {pid}, which has just ended"
    return b" ".join(words).decode(errors="replace")


def leftovers(before: Sequence[int]) -> list[str]:
    """The command lines of children that were not there `before` and do not end; they are killed.

    Children that have ended, and nobody has waited for, are waited for.
    """
    left = []
    for pid in children(os.getpid()):
        pidfd = _pidfd(pid) if pid not in before else None
        if pidfd is None:
            continue
        if not select.select([pidfd], [], [], PATIENCE)[0]:
            left.append(_command_line(pid))
        for below in [*descendants(pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(below, signal.SIGKILL)
        _kill(pidfd)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return left
