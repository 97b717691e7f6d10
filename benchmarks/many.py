"""Many connections: does a new one cost more when ten thousand are open, and what do these cost?

    python -m benchmarks.many [--quick]

In a namespace, connections are opened, carry a byte each way and then stay idle; meanwhile others
connect, send a byte, receive one and close, as fast as they can. CPU time is the network process's,
from /proc; the memory is what is its own (RssAnon).

Does not do: peers. side_by_side compares the memory of a thousand.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import subprocess
import time
from typing import Final, NamedTuple

from benchmarks.networks import HOST, Guest, Slirp
from benchmarks.report import end_tidily, keep, number, show, table
from benchmarks.side_by_side import compile_load, echo_server
from tests.kit.family import running

COUNTS: Final = (10, 1000, 10_000)
ROUNDS: Final = 3
FORGOTTEN_AFTER: Final = 2.5  # seconds: connections that ended are no longer in TIME-WAIT
IDLE_FOR: Final = 2.0  # seconds in which nothing should be done


class Figures(NamedTuple):
    """One round with so many idle connections."""

    per_second: float  # new connections
    cost: float  # µs of CPU time for a new one
    each: float  # bytes per idle one
    at_rest: float  # share of a processor while nothing happens


def with_open(guest: Guest, load: str, count: int, seconds: float) -> Figures:
    with echo_server(load) as idle_port, echo_server(load) as port:
        guest.run([load, "opens", HOST, port, "0.2"])
        time.sleep(FORGOTTEN_AFTER)
        before = guest.memory("RssAnon")
        argv = guest.command([load, "idle", HOST, idle_port, str(count)])
        with running(argv, stdout=subprocess.PIPE) as client:
            assert client.stdout is not None
            if client.stdout.readline() != b"ready\n":
                raise OSError(f"{count} connections could not be opened")
            each = (guest.memory("RssAnon") - before) / count
            at_rest = guest.cost()
            time.sleep(IDLE_FOR)
            begun = guest.cost()
            rate = float(guest.run([load, "opens", HOST, port, str(seconds)]))
            ended = guest.cost()
    return Figures(
        rate,
        (sum(ended) - sum(begun)) * 1e6 / (rate * seconds),
        each,
        (sum(begun) - sum(at_rest)) / IDLE_FOR,
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Ten or ten thousand connections.")
    parser.add_argument("--quick", action="store_true", help="shorter runs")
    args = parser.parse_args(argv)
    end_tidily()
    if shutil.which("nsenter") is None:
        show("many connections: left out, nsenter not installed")
        return
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    load = compile_load()
    rounds: dict[int, list[Figures]] = {}
    for count in COUNTS * (1 if args.quick else ROUNDS):
        if count + 100 > limit:
            show(f"left out, {count:,} connections: the limit of descriptors is {limit:,}")
            continue
        with Slirp().guest(1500) as guest:
            figures = with_open(guest, load, count, 0.5 if args.quick else 2.0)
            rounds.setdefault(count, []).append(figures)
    medians = {
        count: Figures(*map(statistics.median, zip(*row, strict=True)))
        for count, row in rounds.items()
    }
    show("many connections")
    table(
        ["idle connections", "new/s", "CPU µs/new", "KiB each", "CPU % at rest"],
        [
            [
                f"{count:,}",
                number(row.per_second),
                number(row.cost),
                number(row.each / 1024),
                number(row.at_rest * 100),
            ]
            for count, row in medians.items()
        ],
    )
    keep("many", {str(count): figures._asdict() for count, figures in medians.items()})


if __name__ == "__main__":
    main()
