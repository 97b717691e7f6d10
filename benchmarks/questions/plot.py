"""Plots as SVG, by matplotlib, which is imported when the first one is drawn.

The same figures give the same file: no date, fixed identifiers, and text as text, in whatever
sans-serif font the reader has.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from benchmarks.questions.answer import Plot

SIZE: Final = (7.0, 4.2)  # inches
TICKS_MAX: Final = 10
MARKERS: Final = "osD^vPX"
STYLE: Final[dict[str, Any]] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "slirp",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "sans-serif"],
    "font.size": 10,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


class NoMatplotlib(Exception):
    """It is in the extra `bench`."""


def draw(plot: Plot, folder: Path, kind: str = "svg") -> Path:
    """Write `folder/NAME.svg`; its path. Raises NoMatplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
        from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter
    except ImportError as error:
        raise NoMatplotlib("plots need matplotlib: pip install 'slirp[bench]'") from error
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{plot.name}.{kind}"
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot()
        if plot.one:
            axes.axhline(1.0, color="#888888", linewidth=1, linestyle="--")
        for marker, (label, points) in zip(MARKERS, plot.curves.items(), strict=False):
            xs, ys = zip(*points, strict=True)
            axes.plot(xs, ys, marker=marker, markersize=4, linewidth=1.5, label=label)
        axes.set_title(plot.title, fontsize=11)
        axes.set_xlabel(plot.x_label)
        axes.set_ylabel(plot.y_label)
        if "x" in plot.log:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_minor_formatter(NullFormatter())
        if "y" in plot.log:
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_locator(FixedLocator(ticks(plot)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _position: size(x)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _position: f"{y:,.6g}"))
        axes.legend(frameon=False, fontsize=9)
        if kind == "svg":
            figure.savefig(path, format=kind, metadata={"Date": None, "Creator": None})
        else:
            figure.savefig(path, format=kind, dpi=100)
    return path


def ticks(plot: Plot) -> list[float]:
    """Every x that was measured, or every second one."""
    xs = sorted({x for points in plot.curves.values() for x, _ in points})
    apart = [x for i, x in enumerate(xs) if not i or x > 1.6 * xs[i - 1]]
    return apart if len(apart) <= TICKS_MAX else apart[::2]


def size(value: float) -> str:
    """As one says it: 1514, 4 Ki, 1 Mi."""
    for unit, name in ((1 << 20, " Mi"), (1 << 10, " Ki")):
        if value >= unit and value % unit == 0:
            return f"{value / unit:g}{name}"
    return f"{value:g}"
