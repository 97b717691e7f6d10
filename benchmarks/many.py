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
from typing import Final

from benchmarks.networks import HOST, Guest, Slirp
from benchmarks.report import keep, number, show, table
from benchmarks.side_by_side import compile_load, echo_server

COUNTS: Final = (10, 1000, 10_000)
ROUNDS: Final = 3
IDLE_FOR: Final = 2.0  # seconds in which nothing should be done


def with_open(guest: Guest, load: str, count: int, seconds: float) -> dict[str, float]:
    """Figures with so many idle connections."""
    with echo_server(load) as idle_port, echo_server(load) as port:
        guest.run([load, "opens", HOST, port, "0.2"])
        time.sleep(2.5)  # until the ends of these are forgotten (TIME-WAIT)
        before = guest.memory("RssAnon")
        argv = guest.command([load, "idle", HOST, idle_port, str(count)])
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
            assert client.stdout is not None
            if client.stdout.readline() != b"ready\n":
                raise OSError(f"{count} connections could not be opened")
            each = (guest.memory("RssAnon") - before) / count
            at_rest = guest.cost()
            time.sleep(IDLE_FOR)
            rested = guest.cost()
            rates, costs = [], []
            for _ in range(ROUNDS):
                begun = guest.cost()
                rate = float(guest.run([load, "opens", HOST, port, str(seconds)]))
                ended = guest.cost()
                rates.append(rate)
                costs.append((sum(ended) - sum(begun)) * 1e6 / (rate * seconds))
    return {
        "new_per_second": statistics.median(rates),
        "cpu_us_per_new": statistics.median(costs),
        "octets_each": each,
        "idle_cpu_share": (sum(rested) - sum(at_rest)) / IDLE_FOR,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Ten or ten thousand connections.")
    parser.add_argument("--quick", action="store_true", help="shorter runs")
    args = parser.parse_args(argv)
    if shutil.which("nsenter") is None:
        show("many connections: left out, nsenter not installed")
        return
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    load = compile_load()
    figures = {}
    for count in COUNTS:
        if count + 100 > limit:
            show(f"left out, {count:,} connections: the limit of descriptors is {limit:,}")
            continue
        with Slirp().guest(1500) as guest:
            figures[count] = with_open(guest, load, count, 0.5 if args.quick else 2.0)
    show("many connections")
    table(
        ["idle connections", "new/s", "CPU µs/new", "KiB each", "CPU % at rest"],
        [
            [
                f"{count:,}",
                number(row["new_per_second"]),
                number(row["cpu_us_per_new"]),
                number(row["octets_each"] / 1024),
                number(row["idle_cpu_share"] * 100),
            ]
            for count, row in figures.items()
        ],
    )
    keep("many", {"by_idle_connections": figures})


if __name__ == "__main__":
    main()
