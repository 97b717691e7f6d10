"""What a question comes to: tables, and plots of them; as markdown, and put into a document.

A table in the document stands between two comments, `<!-- figures of NAME -->` and `<!-- end -->`;
`put` replaces what is between them by what was measured now.

Does not do: words. What the figures mean is written by hand.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

from benchmarks.report import number

Cell: TypeAlias = str | float | None  # None: not to be had here


class Table(NamedTuple):
    """The first column is what was varied; a heading ends with its unit."""

    head: tuple[str, ...]
    rows: list[tuple[Cell, ...]]
    caption: str = ""

    def points(self, name: str) -> list[tuple[float, float]]:
        """A column over the first one, where there are figures."""
        index = self.head.index(name)
        return [
            (x, y)
            for x, y in ((row[0], row[index]) for row in self.rows)
            if isinstance(x, float | int) and isinstance(y, float | int)
        ]


class Plot(NamedTuple):
    """Curves over one x; both axes logarithmic where `log` says so."""

    name: str  # of the file, without its ending
    title: str
    x_label: str
    y_label: str
    curves: dict[str, list[tuple[float, float]]]
    log: str = "xy"
    one: bool = False  # a line at 1, for ratios

    @classmethod
    def of(
        cls,
        table: Table,
        columns: Sequence[str],
        *,
        name: str,
        title: str,
        y_label: str,
        log: str = "xy",
    ) -> Plot:
        """Columns of a table over its first one."""
        curves = {column.removesuffix(", µs"): table.points(column) for column in columns}
        curves = {label: points for label, points in curves.items() if points}
        return cls(name, title, table.head[0], y_label, curves, log)


class Answer(NamedTuple):
    tables: tuple[Table, ...]
    plots: tuple[Plot, ...] = ()


def markdown(answer: Answer) -> str:
    """The tables, each under its caption."""
    return "\n\n".join("\n".join(_lines(table)) for table in answer.tables)


def _lines(table: Table) -> Iterator[str]:
    if table.caption:
        yield f"{table.caption}:"
        yield ""
    yield f"| {' | '.join(table.head)} |"
    yield f"|{'|'.join('---:' for _ in table.head)}|"
    for row in table.rows:
        yield f"| {' | '.join(map(_cell, row))} |"


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int):
        return f"{cell:,}"
    if cell is not None and not math.isfinite(cell):
        raise ValueError(f"a figure of {cell}")
    return number(cell)


def put(text: str, name: str, answer: Answer) -> str:
    """A document with this question's figures in their place."""
    place = re.compile(rf"(<!-- figures of {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    changed, count = place.subn(lambda m: f"{m[1]}\n{markdown(answer)}\n\n{m[2]}", text)
    if count != 1:
        raise ValueError(f"{count} places for the figures of {name}")
    return changed
