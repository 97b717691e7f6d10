"""All benchmarks in turn: python -m benchmarks [--quick] [NAME…]

Each runs in a process of its own, prints its table and writes benchmarks/out/NAME.json. One that
cannot run here says why; the others go on.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

from benchmarks.report import end_tidily, show

NAMES: Final = (
    "side_by_side",
    "families",
    "startup",
    "chain",
    "profile",
    "many",
    "lanes",
    "tcp_numbers",
    "questions",
    "qemu",
)
ENDS_FOR: Final = 30.0  # seconds for a benchmark to end what it has started
# Those that know --quick.
QUICK: Final = ("side_by_side", "families", "startup", "chain", "profile", "many", "questions")


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks", description="Run the benchmarks.")
    parser.add_argument("--quick", action="store_true", help="short runs, for a first look")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all")
    args = parser.parse_args()
    end_tidily()
    unknown = set(args.names) - set(NAMES)
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    failed = []
    for name in args.names or NAMES:
        if importlib.util.find_spec(f"benchmarks.{name}") is None:
            continue
        show(f"\n== {name}")
        options = ["--quick"] if args.quick and name in QUICK else []
        if run([sys.executable, "-m", f"benchmarks.{name}", *options]):
            failed.append(name)
    if failed:
        show(f"\nfailed: {', '.join(failed)}")
    return bool(failed)


def run(argv: Sequence[str]) -> int:
    """The exit status. Ctrl-C is the benchmark's too: it gets the time that it needs to end."""
    with subprocess.Popen(argv) as process:
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            process.wait(ENDS_FOR)
            raise


if __name__ == "__main__":
    sys.exit(main())
