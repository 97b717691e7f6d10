"""IPv4 and IPv6 through one network, turn about: throughput, and what a byte costs the network.

    python -m benchmarks.families [--quick] [--rounds N] [--seconds S]

One namespace per MTU, which has both families; each round runs iperf3 in every direction by each
family, and the family that goes first changes with the round. Figures are medians of the rounds:
Gbit/s as the receiver counted them, and CPU seconds of the network per Gbit,
which is what the machine's other work disturbs least. A ratio is IPv6's to IPv4's, more than 1 is
better for IPv6 in both columns.

Does not do: the peers (benchmarks.side_by_side --only IPv6), small packets.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
from collections.abc import Iterator
from typing import Final, NamedTuple

from benchmarks.networks import HOST, HOST6, Guest, Slirp
from benchmarks.report import end_tidily, keep, number, show, table
from benchmarks.side_by_side import iperf

MTUS: Final = (1500, 65520)
DIRECTIONS: Final = {"up": [], "down": ["-R"]}
FAMILIES: Final = {"IPv4": HOST, "IPv6": HOST6}


class Sample(NamedTuple):
    """One run."""

    rate: float  # Gbit/s
    cost: float  # CPU seconds of the network per Gbit


Results = dict[str, dict[str, list[Sample]]]  # by direction with MTU, and by family


def one_run(guest: Guest, host: str, argv: list[str], seconds: int) -> Sample:
    before = sum(guest.cost())
    rate = iperf(Guest(guest.network, guest.sitter, host), argv, seconds) / 1e9
    return Sample(rate, (sum(guest.cost()) - before) / (rate * seconds))


def measure(rounds: int, seconds: int) -> Results:
    results: Results = {}
    for mtu in MTUS:
        with Slirp().guest(mtu) as guest:
            for count in range(rounds):
                show(f"MTU {mtu}, round {count + 1} of {rounds}")
                families = list(FAMILIES.items())[:: -1 if count % 2 else 1]
                for direction, argv in DIRECTIONS.items():
                    row = results.setdefault(f"{direction}, MTU {mtu}", {})
                    for family, host in families:
                        row.setdefault(family, []).append(one_run(guest, host, argv, seconds))
    return results


def rows_of(results: Results) -> Iterator[list[str]]:
    """What stands in docs/performance.md."""
    for name, row in results.items():
        four, six = (
            Sample(*map(statistics.median, zip(*row[family], strict=True))) for family in FAMILIES
        )
        yield [
            name,
            *map(number, (four.rate, six.rate, six.rate / four.rate)),
            *map(number, (four.cost, six.cost, four.cost / six.cost)),
        ]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.families", description="IPv4 and IPv6 through one network, turn about."
    )
    parser.add_argument("--quick", action="store_true", help="one round of a second each")
    parser.add_argument("--rounds", type=int, default=6, help="(6)")
    parser.add_argument("--seconds", type=int, default=2, help="of each run (2)")
    args = parser.parse_args(argv)
    end_tidily()
    for tool in ("iperf3", "nsenter"):
        if shutil.which(tool) is None:
            raise SystemExit(f"benchmarks: {tool} is not installed")
    rounds, seconds = (1, 1) if args.quick else (args.rounds, args.seconds)
    results = measure(rounds, seconds)
    head = ["", "Gbit/s: IPv4", "IPv6", "ratio", "CPU s per Gbit: IPv4", "IPv6", "ratio"]
    table(head, list(rows_of(results)))
    keep("families", {"rounds": rounds, "seconds": seconds, "results": results})


if __name__ == "__main__":
    main()
