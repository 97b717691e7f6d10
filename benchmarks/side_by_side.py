"""This network, slirp4netns and pasta, each in turn under the same loads.

    python -m benchmarks.side_by_side [--quick] [--rounds N] [--only WORD] [--peers testing]

Every network gets a fresh namespace per MTU and round; what is not installed is left out. With
`--peers testing` the others are those of Debian testing (tools/testing-root). A figure
is the median of the rounds. The ratio is to the better of the other two, turned so that more than 1
is better. TCP throughput is iperf3's; the other loads are load.c's, compiled here. Both ends run on
the same machine as the network in the middle, so on two processors they compete.

`--only IPv6` has the works of IPv6 only; add nothing and they come after IPv4's of the same round.

Nothing here fails because something is slow.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from benchmarks.networks import HOST, NETWORKS, Guest, Network, of_testing
from benchmarks.report import OUT, end_tidily, keep, number, show, table
from tests.kit.family import running

ROUNDS: Final = 3
DATAGRAM: Final = 1400  # bytes
IDLE: Final = 1000  # connections
TRIPS: Final = 5000
IPV6: Final = "IPv6: "  # in front of the works of IPv6

Figures = dict[str, float]


class Work(NamedTuple):
    """One line of the table."""

    unit: str
    more_is_better: bool


class Setting(NamedTuple):
    seconds: float  # that a load runs
    only: str
    prefix: str = ""  # of the works' names

    def wants(self, name: str) -> bool:
        return self.only in self.prefix + name


def compile_load() -> str:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit("benchmarks: no C compiler for load.c; install gcc")
    OUT.mkdir(exist_ok=True)
    path = str(OUT / "load")
    source = str(OUT.parent / "load.c")
    subprocess.run([compiler, "-O2", "-o", path, source], check=True)
    return path


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> str:
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("", 0))
        return str(sock.getsockname()[1])


@contextlib.contextmanager
def echo_server(load: str) -> Iterator[str]:
    """A server that echoes; its port."""
    port = free_port()
    with running([load, "serve", port]):
        _wait_for_port(port)
        yield port


def _wait_for_port(port: str) -> None:
    for _ in range(1000):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(port))):
            return
        time.sleep(0.005)
    raise OSError(f"no server at port {port}")


# Loads


def tcp_throughput(guest: Guest, mtu: int, setting: Setting) -> Iterator[tuple[str, Work, float]]:
    for streams in (1, 8):
        for direction, option in (("up", []), ("down", ["-R"])):
            name = f"TCP {direction}, MTU {mtu}, {streams} stream{'s' * (streams > 1)}"
            if setting.wants(name):
                argv = ["-P", str(streams), *option]
                yield name, Work("Gbit/s", True), iperf(guest, argv, setting.seconds) / 1e9


def iperf(guest: Guest, argv: list[str], seconds: float) -> float:
    """Bits per second, as the receiver counted them."""
    port = free_port()
    family = "-6" if ":" in guest.host else "-4"
    with running(["iperf3", family, "-s", "-1", "-p", port]):
        time.sleep(0.15)  # a probe of the port would be its one client
        out = guest.run(["iperf3", "-c", guest.host, "-p", port, "-J", "-t", str(seconds), *argv])
    return float(json.loads(out)["end"]["sum_received"]["bits_per_second"])


def udp_up(guest: Guest, load: str, seconds: float) -> float:
    """Datagrams per second that arrived."""
    port = free_port(socket.SOCK_DGRAM)
    with running([load, "sink", port], stdout=subprocess.PIPE) as sink:
        time.sleep(0.05)
        guest.run([load, "flood", guest.host, port, str(DATAGRAM), str(seconds)])
        return float(sink.communicate(timeout=20)[0])


def udp_down(guest: Guest, load: str, seconds: float) -> float:
    port = free_port(socket.SOCK_DGRAM)
    with running([load, "pour", port, str(DATAGRAM), str(seconds)]):
        time.sleep(0.05)
        return float(guest.run([load, "sink", port, guest.host]))


def idle_memory(guest: Guest, load: str, port: str) -> float:
    """Bytes of the process's own memory per connection that says nothing."""
    guest.run([load, "opens", guest.host, port, "0.2"])  # what is made once is there
    time.sleep(2.5)  # … and what the connections before left has gone (TIME-WAIT)
    before = guest.memory("RssAnon")
    argv = guest.command([load, "idle", guest.host, port, str(IDLE)])
    with running(argv, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        if client.stdout.readline() != b"ready\n":
            raise OSError("the connections could not be opened")
        time.sleep(0.1)
        after = guest.memory("RssAnon")
    return (after - before) / IDLE


def at_1500(guest: Guest, load: str, setting: Setting) -> Iterator[tuple[str, Work, float]]:
    seconds = setting.seconds
    with echo_server(load) as port:
        if setting.wants("round trip"):
            p50, p99 = map(float, guest.run([load, "trips", guest.host, port, str(TRIPS)]).split())
            yield "TCP round trip, p50", Work("µs", False), p50
            yield "TCP round trip, p99", Work("µs", False), p99
        if setting.wants("connect-request-close"):
            rate = float(guest.run([load, "opens", guest.host, port, str(seconds)]))
            yield "TCP connect-request-close", Work("1/s", True), rate
        if setting.wants("UDP up"):
            yield f"UDP up, {DATAGRAM} bytes", Work("1/s", True), udp_up(guest, load, seconds)
        if setting.wants("UDP down"):
            yield f"UDP down, {DATAGRAM} bytes", Work("1/s", True), udp_down(guest, load, seconds)
        if setting.wants("RSS"):
            iperf(guest, ["-R"], seconds)
            yield "RSS after a download", Work("MiB", False), guest.memory() / 2**20
        if setting.wants("idle"):
            each = idle_memory(guest, load, port) / 1024
            yield f"memory per idle connection, of {IDLE:,}", Work("KiB", False), each


def start(network: Network, load: str) -> float:
    """Seconds from starting the network to the first byte from the host."""
    with echo_server(load) as port:
        return network.first([load, "first", HOST, port])


# Rounds

Results = dict[str, dict[str, list[float]]]  # by work and network


class Benchmark:
    """All rounds of all networks."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.load = compile_load()
        self.works: dict[str, Work] = {}
        self.results: Results = {}
        self.failures: list[str] = []

    def round(self, network: Network) -> None:
        if self.setting.wants("start"):
            with self._tolerant(network, "start"):
                took = start(network, self.load) * 1e3
                self._add(network, ("start to first byte", Work("ms", False), took))
        self._family(network, self.setting, ipv6=False)
        self._family(network, self.setting._replace(prefix=IPV6), ipv6=True)

    def _family(self, network: Network, setting: Setting, ipv6: bool) -> None:
        steps: list[tuple[int, Callable[[Guest], Iterator[tuple[str, Work, float]]]]] = [
            # What is short comes first: a machine that has just been full is not the same.
            (1500, lambda guest: at_1500(guest, self.load, setting)),
            (1500, lambda guest: tcp_throughput(guest, 1500, setting)),
            (65520, lambda guest: tcp_throughput(guest, 65520, setting)),
        ]
        for mtu, step in steps:
            what = f"{setting.prefix}MTU {mtu}"
            with self._tolerant(network, what), network.guest(mtu, ipv6) as guest:
                for name, work, value in step(guest):
                    self._add(network, (setting.prefix + name, work, value))

    def _add(self, network: Network, figure: tuple[str, Work, float]) -> None:
        name, work, value = figure
        self.works[name] = work
        self.results.setdefault(name, {}).setdefault(network.name, []).append(value)

    @contextlib.contextmanager
    def _tolerant(self, network: Network, what: str) -> Iterator[None]:
        """A network that fails under a load goes without the figure."""
        try:
            yield
        except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
            self.failures.append(f"{network.name}, {what}: {error}")

    def report(self, networks: Sequence[Network]) -> dict[str, Any]:
        names = [network.name for network in networks]
        rows, figures = [], {}
        for name, work in self.works.items():
            medians = {n: statistics.median(v) for n, v in self.results[name].items()}
            ratio = ratio_of(medians, work)
            cells = [number(medians.get(n)) for n in names]
            rows.append([name, work.unit, *cells, number(ratio)])
            figures[name] = {"unit": work.unit, "median": medians, "ratio": ratio}
        table(["", "unit", *names, "ratio"], rows)
        for failure in self.failures:
            show(f"left out: {failure}")
        return {"figures": figures, "rounds": self.results, "failures": self.failures}


def ratio_of(medians: Figures, work: Work) -> float | None:
    """This network to the better of the others; more than 1 is better."""
    own = medians.get("slirp")
    others = [value for name, value in medians.items() if name != "slirp"]
    if own is None or not others:
        return None
    if work.more_is_better:
        return own / max(others) if max(others) > 0 else None
    return min(others) / own if own > 0 else None


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="This network and its peers, side by side.")
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"default {ROUNDS}")
    parser.add_argument("--only", default="", metavar="WORD", help="works whose name has this")
    parser.add_argument("--networks", metavar="NAME,…", help="only these")
    where = "of what the others are: installed (the default), or Debian testing's newer ones"
    parser.add_argument(
        "--peers", choices=("installed", "testing"), default="installed", help=where
    )
    args = parser.parse_args(argv)
    end_tidily()
    missing = [tool for tool in ("iperf3", "nsenter", "unshare") if shutil.which(tool) is None]
    if missing:
        show(f"side by side: left out, {', '.join(missing)} not installed")
        return
    with of_testing() if args.peers == "testing" else contextlib.nullcontext(NETWORKS) as found:
        wanted = args.networks.split(",") if args.networks else None
        compare([n for n in found if n.is_here() and (wanted is None or n.name in wanted)], args)


def compare(networks: Sequence[Network], args: argparse.Namespace) -> None:
    benchmark = Benchmark(Setting(1.0 if args.quick else 2.0, args.only))
    rounds = args.rounds or (1 if args.quick else ROUNDS)
    for count in range(rounds):
        for network in networks:
            if sys.stderr.isatty():
                sys.stderr.write(f"round {count + 1} of {rounds}: {network.name}\n")
            benchmark.round(network)
    show(f"side by side: medians of {rounds} rounds, load {os.getloadavg()[0]:.1f}")
    versions = {network.name: network.version() for network in networks}
    show(", ".join(f"{name} {version}" for name, version in versions.items()))
    name = "side_by_side" + ("-testing" if args.peers == "testing" else "")
    keep(name, {"versions": versions, **benchmark.report(networks)})


if __name__ == "__main__":
    main()
