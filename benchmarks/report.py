"""What the benchmarks share: tables, the JSON in benchmarks/out/, and an end that leaves nothing.

Does not do: measuring.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

OUT: Final = Path(__file__).parent / "out"


def end_tidily() -> None:
    """Leave by the way of errors when told to end, so that what was started is ended first."""

    def end(number: int, _: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    # A shell has what it starts in the background ignore SIGINT, and Python leaves that so.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def show(line: str = "") -> None:
    """A line of the report."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns; the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, ["-" * width for width in widths], *rows):
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        show("  ".join([row[0].ljust(widths[0]), *cells]))


def number(value: float | None) -> str:
    """Three digits that matter."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def keep(name: str, results: dict[str, Any]) -> None:
    """Write benchmarks/out/NAME.json, and say on what machine it was measured."""
    machine = {
        "cpus": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
    OUT.mkdir(exist_ok=True)
    path = OUT / f"{name}.json"
    path.write_text(json.dumps({"machine": machine, **results}, indent=2) + "\n")
