"""User-mode networks for benchmarks: each with a namespace of its own, the host at 10.0.2.2.

A `Guest` is a running network and a process that sits in its namespace. All networks are started
with the MTU asked for and otherwise as they come.

pasta, started by root, becomes nobody and then fails to map users; `--runas 0:0` avoids that.

Does not do: networks that need an interface of the host, QEMU.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

HOST: Final = "10.0.2.2"
READY_FOR: Final = 10.0  # seconds to wait for a network to be up
SITTER: Final = ("sleep", "infinity")
PASTA: Final = (
    *("pasta", "-q", "-f", "--config-net", "--ns-ifname", "tap0", "-a", "10.0.2.15", "-n", "24"),
    *("-g", HOST, "-t", "none", "-u", "none", "-T", "none", "-U", "none"),
)
CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")

Argv = Sequence[str]


class Cost(NamedTuple):
    """CPU time of the network's process, seconds."""

    user: float
    system: float


class Guest:
    """A namespace with a network."""

    def __init__(self, network: int, sitter: int) -> None:
        self.network = network  # PID of the process that is measured
        self._sitter = sitter

    def command(self, argv: Argv) -> list[str]:
        """What runs `argv` in the namespace."""
        user = () if os.geteuid() == 0 else ("-U", "--preserve-credentials")
        return ["nsenter", "-t", str(self._sitter), "-n", *user, "--", *argv]

    def run(self, argv: Argv, timeout: float = 60.0) -> str:
        """The standard output of a command in the namespace."""
        done = subprocess.run(
            self.command(argv), stdout=subprocess.PIPE, timeout=timeout, check=True, text=True
        )
        return done.stdout

    def cost(self) -> Cost:
        fields = Path(f"/proc/{self.network}/stat").read_text().rsplit(")", 1)[1].split()
        return Cost(int(fields[11]) / CLOCK_TICKS, int(fields[12]) / CLOCK_TICKS)

    def memory(self, field: str = "VmRSS") -> int:
        """Octets, of /proc/PID/status."""
        for line in Path(f"/proc/{self.network}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
        raise LookupError(field)


class Network:
    """A program that can be the network of a namespace."""

    name = ""

    def is_here(self) -> bool:
        """Is it installed?"""
        return shutil.which(self.name) is not None

    def guest(self, mtu: int) -> contextlib.AbstractContextManager[Guest]:
        raise NotImplementedError

    def first(self, argv: Argv) -> float:
        """Start the network and run `argv` in it, which prints an instant: seconds until then."""
        raise NotImplementedError


class OneCommand(Network):
    """A program that makes the namespace and runs a command in it."""

    def argv(self, mtu: int, command: Argv) -> list[str]:
        raise NotImplementedError

    @contextlib.contextmanager
    def guest(self, mtu: int) -> Iterator[Guest]:
        with running(self.argv(mtu, SITTER)) as process:
            yield Guest(process.pid, _wait_for(SITTER[0], process))

    def first(self, argv: Argv) -> float:
        begun = time.monotonic()
        done = subprocess.run(
            self.argv(1500, argv), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
        )
        return float(done.stdout) - begun


class Slirp(OneCommand):
    name = "slirp"

    def is_here(self) -> bool:
        return True

    def argv(self, mtu: int, command: Argv) -> list[str]:
        return [sys.executable, "-m", "slirp", "run", "--mtu", str(mtu), "--", *command]


class Pasta(OneCommand):
    name = "pasta"

    def argv(self, mtu: int, command: Argv) -> list[str]:
        runas = ("--runas", "0:0") if os.geteuid() == 0 else ()
        return [*PASTA, *runas, "-m", str(mtu), "--", *command]


class Slirp4netns(Network):
    name = "slirp4netns"

    @contextlib.contextmanager
    def guest(self, mtu: int) -> Iterator[Guest]:
        with self._namespace() as sitter, self._network(mtu, sitter) as process:
            yield Guest(process.pid, sitter)

    def first(self, argv: Argv) -> float:
        with self._namespace() as sitter:
            begun = time.monotonic()
            with self._network(1500, sitter) as process:
                return float(Guest(process.pid, sitter).run(argv)) - begun

    @contextlib.contextmanager
    def _namespace(self) -> Iterator[int]:
        user = () if os.geteuid() == 0 else ("-r",)
        with running(["unshare", *user, "-n", *SITTER]) as process:
            _wait_for(SITTER[0], process)
            yield process.pid

    @contextlib.contextmanager
    def _network(self, mtu: int, sitter: int) -> Iterator[subprocess.Popen[bytes]]:
        ready, told = os.pipe()
        argv = ["slirp4netns", "-c", "-m", str(mtu), "-r", str(told), str(sitter), "tap0"]
        with running(argv, told) as process, os.fdopen(ready, "rb") as pipe:
            os.close(told)
            if not pipe.read(1):
                raise OSError("slirp4netns did not come up")
            yield process


NETWORKS: Final = (Slirp(), Slirp4netns(), Pasta())


@contextlib.contextmanager
def running(argv: Argv, *fds: int) -> Iterator[subprocess.Popen[bytes]]:
    """A program, until the block is left."""
    with subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=fds,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(2.0)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_for(comm: str, process: subprocess.Popen[bytes]) -> int:
    """The process that has become `comm`: this one or a descendant."""
    until = time.monotonic() + READY_FOR
    while time.monotonic() < until and process.poll() is None:
        for pid in _family(process.pid):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == comm:
                    return pid
        time.sleep(0.005)
    raise OSError(f"{process.args!r} did not come up")


def _family(pid: int) -> Iterator[int]:
    yield pid
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield from _family(int(child))
