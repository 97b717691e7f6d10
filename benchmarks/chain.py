"""The whole chain without a CPU: host socket, TCP, IPv4, Ethernet, Lance, LEDMA, IOMMU, memory.

    python -m benchmarks.chain [--quick]

A process of its own is the host's end of a TCP connection; the guest's end is guest_tcp.py behind
the Python driver. Segments of 1,460 bytes, the window and the rings of a real driver. The figures
are per CPU second of the process that runs network, chip, driver and guest TCP ("one core").

Set-ups: BSWP=1; BSWP=0 with the lanes exchanged in place and through a bounce buffer; and BSWP=1
with every byte copied at every stage (copying.py), which is what vectors save.

The stages' times come from a run of their own with a clock around every stage, since the clock
costs too. They are exclusive: a stage's time is without that of the stages below it.

The last figure is how much the process grows while a guest downloads 1 GB.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import resource
import socket
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.copying import CopyingPath, CopyingPort
from benchmarks.guest_tcp import MSS, GuestTcp
from benchmarks.report import keep, number, show, table
from benchmarks.stages import Stopwatch
from dma.ledma import Mode
from dma.transfer import DmaPath
from slirp import Network
from slirp.address import mac_from_text
from slirp.guest.driver import LanceDriver
from slirp.guest.machine import sun4m_board

OCTETS: Final = 64 << 20  # of one run
QUICK_OCTETS: Final = 16 << 20
ROUNDS: Final = 3
GIGABYTE: Final = 10**9  # bytes
RING: Final = 128  # descriptors
BUFFER: Final = 1544  # bytes, as NetBSD's
BLOCK: Final = bytes(1 << 16)
QUIET: Final = 0.0002  # seconds without a frame after which the guest sends its delayed ACK

DIRECTIONS: Final = ("host to guest", "guest to host")


class SetUp(NamedTuple):
    name: str
    bswp: int = 1
    mode: Mode = "in-place"
    copying: bool = False


SET_UPS: Final = (
    SetUp("BSWP=1"),
    SetUp("BSWP=0 in place", bswp=0),
    SetUp("BSWP=0 bounced", bswp=0, mode="bounce"),
    SetUp("copied at every stage", copying=True),
)


class Figures(NamedTuple):
    """One run."""

    octets: int
    wall: float  # seconds
    user: float
    system: float
    copied: dict[str, int]  # bytes by stage

    def mbits(self) -> float:
        """Mbit per CPU second."""
        return self.octets * 8 / (self.user + self.system) / 1e6

    def frame_us(self) -> float:
        return (self.user + self.system) * 1e6 / (self.octets / MSS)


# The host's end


def _serve(listener: socket.socket, octets: int) -> None:
    """Send so many bytes, or for 0 take all that come."""
    peer, _ = listener.accept()
    with peer, contextlib.suppress(ConnectionError):
        if octets:
            for _ in range(octets // len(BLOCK)):
                peer.sendall(BLOCK)
        else:
            room = bytearray(1 << 20)
            while peer.recv_into(room):
                pass


@contextlib.contextmanager
def host(octets: int) -> Iterator[int]:
    """A process that serves one connection; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        context = multiprocessing.get_context("fork")
        process: BaseProcess = context.Process(target=_serve, args=(listener, octets))
        process.start()
        try:
            yield listener.getsockname()[1]
        finally:
            process.terminate()
            process.join()


# The chain


class Chain:
    """Board, driver, network and one connection."""

    def __init__(self, set_up: SetUp, port: int, watch: Stopwatch | None) -> None:
        self.paths: list[CopyingPath] = []
        self._watch = watch
        self._copying = set_up.copying
        self.board = sun4m_board(mode=set_up.mode, wrap=self._wrap)
        self.driver = LanceDriver(
            self.board, self.board.lance, rx_count=RING, tx_count=RING, bswp=set_up.bswp,
            rx_buffer=BUFFER, tx_buffer=BUFFER, zero_copy=True,
        )  # fmt: skip
        self.network = Network(resolvers=["127.0.0.1"])
        self.port: Any = self.board.lance
        if set_up.copying:
            self.port = CopyingPort(self.board.lance)
        self.guest = GuestTcp(self.driver, mac_from_text(self.network.mac), port, set_up.bswp)
        if watch is not None:
            watch.around(self)
        self.network.attach(self.port)
        self.driver.start()

    def _wrap(self, stage: str, path: DmaPath) -> DmaPath:
        if self._copying:
            path = CopyingPath(path)
            self.paths.append(path)
        return path if self._watch is None else self._watch.path(stage, path)

    def turn(self, timeout: float = 0.0) -> bool:
        """Network, then driver; whether anything happened."""
        busy = self.network.poll(timeout) > 0
        while self.board.interrupt:
            busy = True
            self.guest.handle_interrupt()
        return busy

    def open(self) -> None:
        self.guest.connect()
        while not self.guest.is_open:
            self.turn(0.001)

    def download(self, octets: int) -> None:
        guest = self.guest
        while guest.received < octets:
            if not self.turn():
                guest.flush()
                self.turn(QUIET)

    def upload(self, octets: int) -> None:
        sent = 0
        while sent < octets:
            sent += self.guest.pump() * MSS
            if not self.turn():
                self.turn(QUIET)
        while self.guest.in_flight():
            self.turn(QUIET)

    def copied(self) -> dict[str, int]:
        tcp = self.network.stats()["tcp"]["octets_copied"]
        if not self.paths:
            return {"tcp": tcp, "ledma": self.board.ledma.copied_bytes}
        port = self.port.copied
        return {"tcp, ip, ethernet": port, "dma": sum(path.copied for path in self.paths)}

    def close(self) -> None:
        self.network.close()
        self.board.close()


@contextlib.contextmanager
def chain(set_up: SetUp, octets: int, watch: Stopwatch | None = None) -> Iterator[Chain]:
    """A chain with an open connection to a host that sends `octets`, or for 0 takes them."""
    with host(octets) as port:
        made = Chain(set_up, port, watch)
        try:
            made.open()
            yield made
        finally:
            made.close()


def run(set_up: SetUp, direction: str, octets: int, watch: Stopwatch | None = None) -> Figures:
    down = direction == DIRECTIONS[0]
    with chain(set_up, octets if down else 0, watch) as made:
        before, begun = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
        if down:
            made.download(octets)
        else:
            made.upload(octets)
        wall, after = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_SELF)
        return Figures(
            octets, wall, after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime,
            made.copied(),
        )  # fmt: skip


def resident() -> int:
    """Bytes of this process in memory."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * resource.getpagesize()


def growth(octets: int) -> int:
    """Bytes that the process has gained at the end of a download."""
    with chain(SET_UPS[0], octets) as made:
        before = resident()
        made.download(octets)
        return resident() - before


# The report


def measure(octets: int, rounds: int) -> dict[str, dict[str, Figures]]:
    """The best of each set-up's runs: what is slower was disturbed."""
    best: dict[str, dict[str, Figures]] = {}
    for _ in range(rounds):
        for direction in DIRECTIONS:
            for set_up in SET_UPS:
                figures = run(set_up, direction, octets)
                row = best.setdefault(direction, {})
                known = row.get(set_up.name)
                if known is None or figures.mbits() > known.mbits():
                    row[set_up.name] = figures
    return best


def report(best: dict[str, dict[str, Figures]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for direction, row in best.items():
        base = row[SET_UPS[-1].name].mbits()
        show(f"\n{direction}, segments of {MSS:,} bytes")
        table(
            ["", "Mbit/s per CPU", "Mbit/s", "µs/frame", "user", "system", "× copying"],
            [
                [
                    name, number(f.mbits()), number(f.octets * 8 / f.wall / 1e6),
                    number(f.frame_us()), number(f.user * MSS * 1e6 / f.octets),
                    number(f.system * MSS * 1e6 / f.octets), number(f.mbits() / base),
                ]
                for name, f in row.items()
            ],
        )  # fmt: skip
        for name, f in row.items():
            per_octet = {stage: round(n / f.octets, 3) for stage, n in f.copied.items()}
            show(f"  copied per byte of payload, {name}: {per_octet}")
        out[direction] = {
            name: f._asdict() | {"mbits_per_cpu": f.mbits(), "ratio": f.mbits() / base}
            for name, f in row.items()
        }
    return out


def stages(octets: int) -> dict[str, dict[str, float]]:
    """µs per frame by stage, BSWP=1, of the fastest of several runs."""
    out: dict[str, dict[str, float]] = {}
    for direction in DIRECTIONS:
        rows = []
        for _ in range(ROUNDS):
            watch = Stopwatch()
            frames = run(SET_UPS[0], direction, octets, watch).octets / MSS
            rows.append({name: took * 1e6 / frames for name, took in watch.exclusive().items()})
        out[direction] = min(rows, key=lambda row: sum(row.values()))
    names = list(dict.fromkeys(name for row in out.values() for name in row))
    show("\nµs per frame by stage, with the clock's own cost; BSWP=1")
    table(["", *out], [[n, *(number(row.get(n)) for row in out.values())] for n in names])
    return out


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The chain from socket to guest memory.")
    parser.add_argument("--quick", action="store_true", help="one short round")
    args = parser.parse_args(argv)
    octets = QUICK_OCTETS if args.quick else OCTETS
    results = report(measure(octets, 1 if args.quick else ROUNDS))
    by_stage = stages(octets)
    size = (QUICK_OCTETS if args.quick else GIGABYTE) // len(BLOCK) * len(BLOCK)
    grown = growth(size)
    show(f"\na download of {size / 1e6:,.0f} MB leaves the process {grown / 1e6:.1f} MB larger")
    keep(
        "chain",
        {"runs": results, "stages_us": by_stage, "download": {"octets": size, "growth": grown}},
    )


if __name__ == "__main__":
    main()
