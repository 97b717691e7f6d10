"""Tables for people: columns side by side, as wide as what is in them.

On a terminal rich cuts them to its width; elsewhere every word is whole, so that grep and awk have
something to work on. What comes from guests is not trusted with a terminal: control characters are
shown as `.`.

Does not do: colours, borders.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

Row = Sequence[Any]


def table(headings: Sequence[str], rows: Sequence[Row]) -> None:
    """Print it. Numbers stand to the right."""
    words = [[cell(value) for value in row] for row in rows]
    right = [
        bool(rows) and all(isinstance(row[at], int | float) for row in rows)
        for at in range(len(headings))
    ]
    if sys.stdout.isatty():
        _on_a_terminal(headings, words, right)
        return
    widths = [max(map(len, column)) for column in zip(headings, *words, strict=True)]
    for line in (headings, *words):
        pairs = zip(line, widths, right, strict=True)
        text = "  ".join(w.rjust(n) if to_right else w.ljust(n) for w, n, to_right in pairs)
        sys.stdout.write(text.rstrip() + "\n")


def pairs(values: Sequence[tuple[str, Any]]) -> None:
    """Print names and values, one below the other."""
    width = max((len(name) for name, _ in values), default=0)
    for name, value in values:
        sys.stdout.write(f"{name:{width}}  {cell(value)}\n")


def cell(value: Any) -> str:
    """A value as a table shows it."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "".join(letter if letter.isprintable() else "." for letter in str(value))


def octets(count: float | None) -> str:
    """Bytes, in a unit that leaves three or four digits."""
    if count is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 9999.5:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.0f} TiB"


def seconds(count: float | None) -> str:
    """A time span, to two digits or so."""
    if count is None:
        return "-"
    if count < 1:
        return f"{count * 1e3:.3g} ms" if count >= 0.0001 else f"{count * 1e6:.0f} µs"
    if count < 120:
        return f"{count:.3g} s"
    minutes = count / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.0f} h"


def _on_a_terminal(
    headings: Sequence[str], words: Sequence[Sequence[str]], right: Sequence[bool]
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for heading, to_right in zip(headings, right, strict=True):
        shown.add_column(heading, justify="right" if to_right else "left", no_wrap=True)
    for row in words:
        shown.add_row(*map(Text, row))
    Console().print(shown)
