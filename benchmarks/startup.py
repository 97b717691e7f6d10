"""From exec to the TAP being there, to readiness, to the command: this, slirp4netns and pasta.

    python -m benchmarks.startup [--quick] [--rounds N] [--beside FOLDER]

The instant at which a device appears is its namespace's kernel's: a process in there listens for it
(rtnetlink) and notes the time, so nobody polls. Each round starts every program once, in turn; a
figure is the median of the rounds. "exec to exit" is of `--help`, or as named. `--beside FOLDER`
measures another checkout of this project in the same rounds, by `python -m` and with the same
interpreter. Byte code is compiled before.

The last lines are the caller who does not wait: what slirp4netns's own test of DHCP does after it
has started the network; in how many of the rounds the device was there when it was used.

Does not do: traffic. side_by_side has start to first byte.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.networks import PASTA
from benchmarks.report import end_tidily, keep, number, show, table
from tests.kit.family import running

ROUNDS: Final = 20
QUICK_ROUNDS: Final = 5
HERE: Final = Path(__file__).parent.parent
SOURCES: Final = ("slirp", "nic", "dma")
BIN: Final = Path(sys.executable).parent
MILLISECONDS: Final = 1e3
PATIENCE: Final = 10.0  # seconds

TO_TAP: Final = "exec to the TAP"
TO_READY: Final = "exec to readiness"
TO_COMMAND: Final = "exec to the command"
TO_HELP: Final = "exec to exit"
AT_ONCE_LINE: Final = "the device was found at once"
PYTHON_ALONE: Final = "python -c pass"
IMPORT: Final = "import slirp"

Argv = Sequence[str]

# In the namespace: says when it listens, then prints the instant of the first new device.
LISTENER: Final = """
import socket, sys, time
sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
sock.bind((0, 1))  # RTMGRP_LINK
print("listening", flush=True)
sock.recv(65536)
print(time.monotonic(), flush=True)
"""
# As slirp4netns's own test of DHCP goes on after it has started the network, for bash -x.
AT_ONCE: Final = """
look() {
    for name in user mnt net; do here=$(readlink /proc/self/ns/$name); done
    for name in user mnt net; do there=$(readlink /proc/$1/ns/$name); done
    echo --target=$1 --user --preserve-credentials --net
}
log=$(mktemp)
rm $log
nsenter $(look $1) ip link set lo up
exec nsenter $(look $1) ip link set tap0 up
"""


class Program(NamedTuple):
    """One line of the table. The argument vectors are completed by what they are for."""

    name: str
    attach: Argv = ()  # + -r FD PID tap0: gives a namespace a device
    run: Argv = ()  # + COMMAND: makes a namespace and runs a command in it
    help: Argv = ()
    folder: Path = HERE  # where `python -m` finds it


def programs(beside: Path | None) -> Iterator[Program]:
    slirp, compatible = str(BIN / "slirp"), str(BIN / "slirp4netns-py")
    yield Program("slirp4netns-py", attach=(compatible,), help=(compatible, "--help"))
    yield Program(
        "slirp", attach=(slirp, "attach"), run=(slirp, "run", "--"), help=(slirp, "--help")
    )
    if beside is not None:
        module = (sys.executable, "-m")
        for folder, word in ((HERE, "here"), (beside, "beside")):
            its_compatible = (*module, "slirp.cli.slirp4netns")
            slirp_there = (*module, "slirp")
            yield Program(
                f"slirp4netns-py, {word}",
                attach=its_compatible,
                help=(*its_compatible, "--help"),
                folder=folder,
            )
            yield Program(
                f"slirp, {word}",
                attach=(*slirp_there, "attach"),
                run=(*slirp_there, "run", "--"),
                help=(*slirp_there, "--help"),
                folder=folder,
            )
    if shutil.which("slirp4netns"):
        yield Program("slirp4netns", attach=("slirp4netns",), help=("slirp4netns", "--help"))
    if shutil.which("pasta"):
        root = ("--runas", "0:0") if os.geteuid() == 0 else ()
        yield Program("pasta", run=(*PASTA, *root, "--"), help=("pasta", "--help"))


# --- measuring ------------------------------------------------------------------------------------


@contextlib.contextmanager
def namespace(*argv: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a network namespace of its own, its first line read."""
    command = ["unshare", "--map-root-user", "--net", *argv]
    with running(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process


@contextlib.contextmanager
def attached(program: Program, pid: int) -> Iterator[tuple[float, int]]:
    """The instant at which it was started, and the descriptor that becomes readable."""
    ready, told = os.pipe()
    begun = time.monotonic()
    argv = [*program.attach, "-r", str(told), str(pid), "tap0"]
    with running(argv, told, tied=False, cwd=program.folder):
        os.close(told)
        try:
            yield begun, ready
        finally:
            os.close(ready)


def to_tap_and_ready(program: Program) -> tuple[float, float]:
    """Seconds from exec to the device, and to the ready descriptor."""
    with (
        namespace(sys.executable, "-c", LISTENER) as listener,
        attached(program, listener.pid) as (begun, ready),
    ):
        assert listener.stdout is not None
        if os.read(ready, 1) != b"1":
            raise OSError(f"{program.name} did not come up")
        is_ready = time.monotonic()
        return float(listener.stdout.readline()) - begun, is_ready - begun


def to_command(program: Program) -> float:
    """Seconds from exec to the command's own start."""
    begun = time.time()
    done = subprocess.run(
        [*program.run, "date", "+%s.%N"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
        cwd=program.folder,
        timeout=PATIENCE,
    )
    return float(done.stdout) - begun


def whole(argv: Argv, folder: Path = HERE) -> float:
    """Seconds that a program takes from exec to exit."""
    begun = time.monotonic()
    subprocess.run(
        argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False, cwd=folder
    )
    return time.monotonic() - begun


def found_at_once(program: Program) -> float:
    """1.0 where the client that did not wait found the device."""
    with (
        namespace("sh", "-c", "echo; exec cat") as held,
        attached(program, held.pid),
    ):
        done = subprocess.run(
            ["bash", "-x", "-c", AT_ONCE, "bash", str(held.pid)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        return float(done.returncode == 0)


Figures = dict[str, dict[str, list[float]]]  # by line and by program: what the rounds gave


def one_round(figures: Figures, beside: Path | None) -> None:
    """Every program once, in turn."""

    def note(line: str, name: str, value: float) -> None:
        figures.setdefault(line, {}).setdefault(name, []).append(value)

    for program in programs(beside):
        name = program.name
        if program.attach:
            tap, ready = to_tap_and_ready(program)
            note(TO_TAP, name, tap)
            note(TO_READY, name, ready)
            note(AT_ONCE_LINE, name, found_at_once(program))
        if program.run:
            note(TO_COMMAND, name, to_command(program))
        note(TO_HELP, name, whole(program.help, program.folder))
    note(TO_HELP, PYTHON_ALONE, whole([sys.executable, "-c", "pass"]))
    note(TO_HELP, IMPORT, whole([sys.executable, "-c", "import slirp"]))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="How soon a network is there.")
    parser.add_argument("--quick", action="store_true", help="five rounds")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N")
    parser.add_argument("--beside", type=Path, metavar="FOLDER", help="another checkout")
    args = parser.parse_args(argv)
    end_tidily()
    missing = [name for name in ("unshare", "nsenter", "ip", "bash") if not shutil.which(name)]
    if missing:
        show(f"start: left out, not installed: {', '.join(missing)}")
        return
    for folder in (HERE, args.beside) if args.beside else (HERE,):
        for name in SOURCES:
            compileall.compile_dir(folder / name, quiet=2)
    figures: Figures = {}
    rounds = QUICK_ROUNDS if args.quick else args.rounds
    for _ in range(rounds):
        one_round(figures, args.beside)
    report(figures, rounds)


def report(figures: Figures, rounds: int) -> None:
    show(f"start, {rounds} rounds, milliseconds")
    rows = [
        [
            f"{line}: {name}",
            number(statistics.median(values) * MILLISECONDS),
            number(min(values) * MILLISECONDS),
        ]
        for line, by_name in figures.items()
        if line != AT_ONCE_LINE
        for name, values in by_name.items()
    ]
    table(["", "median", "best"], rows)
    for name, values in figures[AT_ONCE_LINE].items():
        show(f"{AT_ONCE_LINE}: {name}, {sum(values):.0f} of {len(values)}")
    keep("startup", {"rounds": rounds, "seconds": figures})


if __name__ == "__main__":
    main()
