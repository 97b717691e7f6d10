"""User-mode networks for benchmarks: each with a namespace of its own, the host at 10.0.2.2.

With IPv6 the host is fd00::2; slirp4netns's guest has its address from a router advertisement then,
which is waited for.

A `Guest` is a running network and a process that sits in its namespace. All networks are started
with the MTU asked for and otherwise as they come. The peers are those that are installed
(`NETWORKS`) or those of Debian testing (`of_testing`): there a process sits in that root, and each
peer enters it by `nsenter`, which costs it a millisecond at its start.

pasta, started by root, becomes nobody and then fails to map users; `--runas 0:0` avoids that, in
newer ones together with `--netns-only`.

Nothing outlives a block, whether it ends well, by an error or by Ctrl-C: tests/kit/family.py. Even
where this process is killed, since what sits in a namespace waits for its standard input to close.

Does not do: networks that need an interface of the host, QEMU.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import slirp
from benchmarks.report import OUT
from tests.kit.family import WAITER, descendants, running
from tests.kit.testing_root import TOOL

HOST: Final = "10.0.2.2"
HOST6: Final = "fd00::2"
READY_FOR: Final = 10.0  # seconds to wait for a network to be up
PASTA: Final = (
    *("pasta", "-q", "-f", "--config-net", "--ns-ifname", "tap0", "-a", "10.0.2.15", "-n", "24"),
    *("-g", HOST, "-t", "none", "-u", "none", "-T", "none", "-U", "none"),
)
PASTA6: Final = ("-a", "fd00::15", "-g", HOST6)
CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")

Argv = Sequence[str]


class Cost(NamedTuple):
    """CPU time of the network's process, seconds."""

    user: float
    system: float


class Guest:
    """A namespace with a network."""

    def __init__(self, network: int, sitter: int, host: str = HOST) -> None:
        self.network = network  # PID of the process that is measured
        self.sitter = sitter  # PID of the process in the namespace
        self.host = host  # where the host is

    def command(self, argv: Argv) -> list[str]:
        """What runs `argv` in the namespace."""
        user = () if os.geteuid() == 0 else ("-U", "--preserve-credentials")
        return ["nsenter", "-t", str(self.sitter), "-n", *user, "--", *argv]

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
        """Bytes, of /proc/PID/status."""
        for line in Path(f"/proc/{self.network}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
        raise LookupError(field)


class Network:
    """A program that can be the network of a namespace."""

    name = ""

    def __init__(self, entering: Argv = ()) -> None:
        self.entering = entering  # what leads to where the program is

    def is_here(self) -> bool:
        """Is it installed?"""
        return bool(self.entering) or shutil.which(self.name) is not None

    def version(self) -> str:
        asked = [*self.entering, self.name, "--version"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=READY_FOR, check=False)
        found = re.search(r"\b\d+\.\d\S*", done.stdout)
        return found[0] if found is not None else "of unknown version"

    def guest(self, mtu: int, ipv6: bool = False) -> contextlib.AbstractContextManager[Guest]:
        raise NotImplementedError

    def first(self, argv: Argv) -> float:
        """Start the network and run `argv` in it, which prints an instant: seconds until then."""
        raise NotImplementedError


class OneCommand(Network):
    """A program that makes the namespace and runs a command in it."""

    def argv(self, mtu: int, command: Argv, ipv6: bool = False) -> list[str]:
        raise NotImplementedError

    @contextlib.contextmanager
    def guest(self, mtu: int, ipv6: bool = False) -> Iterator[Guest]:
        with running(self.argv(mtu, WAITER, ipv6)) as process:
            sitter = _wait_for(WAITER[0], process)
            yield Guest(process.pid, sitter, HOST6 if ipv6 else HOST)

    def first(self, argv: Argv) -> float:
        begun = time.monotonic()
        with running(self.argv(1500, argv), tied=False, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            return float(process.stdout.read()) - begun


class Slirp(OneCommand):
    name = "slirp"

    def is_here(self) -> bool:
        return True

    def version(self) -> str:
        return slirp.__version__

    def argv(self, mtu: int, command: Argv, ipv6: bool = False) -> list[str]:
        return [sys.executable, "-m", "slirp", "run", "--mtu", str(mtu), "--", *command]


class Pasta(OneCommand):
    name = "pasta"

    def argv(self, mtu: int, command: Argv, ipv6: bool = False) -> list[str]:
        runas: Argv = ()
        if os.geteuid() == 0:
            runas = ("--netns-only", "--runas", "0") if self.entering else ("--runas", "0:0")
        more = PASTA6 if ipv6 else ()
        return [*self.entering, *PASTA, *more, *runas, "-m", str(mtu), "--", *command]


class Slirp4netns(Network):
    name = "slirp4netns"

    @contextlib.contextmanager
    def guest(self, mtu: int, ipv6: bool = False) -> Iterator[Guest]:
        more = ("--enable-ipv6",) if ipv6 else ()
        with self._namespace() as sitter, self._network(mtu, sitter, more) as process:
            guest = Guest(process.pid, sitter, HOST6 if ipv6 else HOST)
            if ipv6:
                _wait_for_address(guest)
            yield guest

    def first(self, argv: Argv) -> float:
        with self._namespace() as sitter:
            begun = time.monotonic()
            with self._network(1500, sitter) as process:
                return float(Guest(process.pid, sitter).run(argv)) - begun

    @contextlib.contextmanager
    def _namespace(self) -> Iterator[int]:
        user = () if os.geteuid() == 0 else ("-r",)
        with running(["unshare", *user, "-n", *WAITER]) as process:
            _wait_for(WAITER[0], process)
            yield process.pid

    @contextlib.contextmanager
    def _network(self, mtu: int, sitter: int, more: Argv = ()) -> Iterator[subprocess.Popen[bytes]]:
        ready, told = os.pipe()
        ended, held = os.pipe()  # slirp4netns ends when `held` is closed: with this process
        options = ["-c", "-m", str(mtu), "-r", str(told), "-e", str(ended), *more]
        argv = [*self.entering, "slirp4netns", *options, str(sitter), "tap0"]
        with os.fdopen(ready, "rb") as pipe, os.fdopen(held, "wb"):
            try:
                with running(argv, told, ended, tied=False) as process:
                    os.close(told)
                    told = -1
                    if not pipe.read(1):
                        raise OSError("slirp4netns did not come up")
                    yield process
            finally:
                for fd in filter(lambda fd: fd >= 0, (told, ended)):
                    os.close(fd)


NETWORKS: Final = (Slirp(), Slirp4netns(), Pasta())


@contextlib.contextmanager
def of_testing() -> Iterator[tuple[Network, ...]]:
    """This network, and its peers from the root of Debian testing, which is built if need be."""
    if subprocess.run([TOOL], stdout=subprocess.DEVNULL, check=False).returncode != 0:
        raise SystemExit("benchmarks: no root of Debian testing")
    OUT.mkdir(exist_ok=True)
    with running([TOOL, "--bind", str(OUT), "--", *WAITER]) as process:
        sitter = _wait_for(WAITER[0], process)
        entering = ("nsenter", "--target", str(sitter), "--mount", "--")
        yield Slirp(), Slirp4netns(entering), Pasta(entering)


def _wait_for_address(guest: Guest) -> None:
    """Until the guest's IPv6 address may be used."""
    until = time.monotonic() + READY_FOR
    asking = ("ip", "-6", "addr", "show", "dev", "tap0", "scope", "global", "-tentative")
    while time.monotonic() < until:
        if "inet6" in guest.run(asking):
            return
        time.sleep(0.05)
    raise OSError("no IPv6 address came up")


def _wait_for(comm: str, process: subprocess.Popen[bytes]) -> int:
    """The process that has become `comm`: this one or a descendant."""
    until = time.monotonic() + READY_FOR
    while time.monotonic() < until and process.poll() is None:
        for pid in (process.pid, *descendants(process.pid)):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == comm:
                    return pid
        time.sleep(0.005)
    raise OSError(f"{process.args!r} did not come up")
