"""Processes around a network namespace, for tests of the commands that serve one.

`Holder` is a process in a user and a network namespace of its own, as an ordinary user makes them;
`run_in` runs a program beside it. `ORDINARY` in front of a command line makes root an ordinary
user: one inside a user namespace that maps nobody else (so that the interpreter may lie where only
root may read), with no capability, an id that is not 0, and nested namespaces of its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.kit.family import TIED, end
from tests.kit.need import need_tool, need_tun

ROOT: Final = Path(__file__).parent.parent.parent
PYTHON: Final = (sys.executable, "-W", "error")
SLIRP: Final = (*PYTHON, "-m", "slirp")
SLIRP4NETNS: Final = (*PYTHON, "-m", "slirp.cli.slirp4netns")
ORDINARY: Final = ("unshare", "--user", "--map-user=1000", "--map-group=1000")
PATIENCE: Final = 30.0  # seconds that anything here may take


def as_user() -> tuple[str, ...]:
    """What to put before a command line so that an ordinary user runs it."""
    return ORDINARY if os.geteuid() == 0 else ()


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run to the end with what is printed kept; from the project's folder."""
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


class Holder:
    """A process that waits in a namespace of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid
        self.path = f"/proc/{process.pid}/ns/net"

    def run_in(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the namespace, as its root."""
        return run(*self.entering(), *command)

    def entering(self) -> tuple[str, ...]:
        target = ("nsenter", "--target", str(self.pid))
        return (*target, "--user", "--preserve-credentials", "--net")


@contextmanager
def holder(script: str = "exec sleep 1000") -> Iterator[Holder]:
    """`script` is the shell's; the namespace is there when this yields."""
    need_tun()
    for tool in ("unshare", "nsenter", "ip", TIED[0]):
        need_tool(tool)
    # Tied behind `unshare`, since a new user namespace unties.
    command = ["unshare", "--user", "--map-root-user", "--net", "--mount", *TIED, "sh", "-c"]
    with subprocess.Popen(
        [*command, f"echo; {script}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield Holder(process)
        finally:
            end(process, signal.SIGKILL)


@contextmanager
def attached(*command: str, who: tuple[str, ...] = ()) -> Iterator[subprocess.Popen[str]]:
    """A command that takes --ready-fd, run until the end of the block; ready when this yields."""
    reader, writer = os.pipe()
    with subprocess.Popen(
        [*who, *TIED, *command[:-2], "--ready-fd", str(writer), *command[-2:]],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=[writer],
        text=True,
    ) as process:
        os.close(writer)
        try:
            told = os.read(reader, 10)
            assert told == b"1", process.communicate(timeout=PATIENCE)
            assert os.read(reader, 10) == b""  # and closed
            yield process
        finally:
            os.close(reader)
            end(process, signal.SIGKILL)
