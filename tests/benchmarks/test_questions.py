"""Each question answers, with figures of the right shape; the document has a section for each.

No time is looked at: sizes are the smallest and the largest, each way runs once or twice. What the
ways leave behind is compared by the questions themselves.
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

import pytest

from benchmarks.questions.answer import Answer, Plot, Table, markdown, put
from benchmarks.questions.catalogue import QUESTIONS
from benchmarks.questions.measure import TINY, crossing, slope, turn_about
from benchmarks.questions.plot import draw, size
from tests.kit.need import missing

ROOT: Final = Path(__file__).parent.parent.parent
SVG: Final = "{http://www.w3.org/2000/svg}"
PLOT_MAX: Final = 60_000  # bytes of a file

_ANSWERS: dict[str, Answer] = {}


def answer_of(name: str) -> Answer:
    if name not in _ANSWERS:
        _ANSWERS[name] = QUESTIONS[name].measure(TINY)
    return _ANSWERS[name]


@pytest.mark.parametrize("name", QUESTIONS)
def test_each_question_has_figures(name: str) -> None:
    answer = answer_of(name)
    assert answer.tables
    for table in answer.tables:
        assert table.rows
        for row in table.rows:
            assert len(row) == len(table.head)
            figures = [cell for cell in row if isinstance(cell, float | int)]
            assert all(math.isfinite(figure) for figure in figures)


@pytest.mark.parametrize("name", QUESTIONS)
def test_each_plot_has_curves(name: str) -> None:
    for plot in answer_of(name).plots:
        assert plot.curves
        assert plot.title
        assert plot.x_label
        assert plot.y_label
        for points in plot.curves.values():
            assert len(points) >= 2
            assert all(math.isfinite(x) and math.isfinite(y) for x, y in points)


def test_plots_have_names_of_their_own() -> None:
    names = [plot.name for name in QUESTIONS for plot in answer_of(name).plots]
    assert len(names) == len(set(names))


@pytest.fixture
def plot() -> Plot:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        missing("matplotlib is not installed")
    curves = {"one": [(1.0, 2.0), (1024.0, 30.5)], "other": [(1.0, 3.0), (2048.0, 4.0)]}
    return Plot("name", "A title", "bytes", "µs", curves)


def test_a_plot_is_an_svg_with_its_words(plot: Plot, tmp_path: Path) -> None:
    path = draw(plot, tmp_path / "plots")
    root = ElementTree.parse(path).getroot()
    assert root.tag == f"{SVG}svg"
    words = {text.text for text in root.iter(f"{SVG}text")}
    assert words >= {"A title", "bytes", "µs", "one", "other", "2 Ki"}
    assert path.stat().st_size < PLOT_MAX


def test_the_same_figures_are_the_same_file(plot: Plot, tmp_path: Path) -> None:
    first, second = (draw(plot, tmp_path / folder).read_bytes() for folder in "ab")
    assert first == second
    assert b"<dc:date>" not in first


def test_sizes_are_said_as_one_says_them() -> None:
    assert [size(x) for x in (1, 1514, 4096, 1 << 20)] == ["1", "1514", "4 Ki", "1 Mi"]


def test_tables_are_markdown() -> None:
    table = Table(("bytes", "µs", "ratio"), [(1460, 1.234, None), (65536, "none", 0.5)], "Caption")
    assert markdown(Answer((table,))).splitlines() == [
        "Caption:",
        "",
        "| bytes | µs | ratio |",
        "|---:|---:|---:|",
        "| 1,460 | 1.23 | – |",
        "| 65,536 | none | 0.5 |",
    ]


def test_figures_go_to_their_place_and_nowhere_else() -> None:
    text = "a\n<!-- figures of x -->\nold\n<!-- end -->\nb\n<!-- figures of y -->\n<!-- end -->\n"
    table = Table(("n",), [(1,)])
    once = put(text, "x", Answer((table,)))
    assert "old" not in once
    assert once.startswith("a\n<!-- figures of x -->\n")
    assert once.endswith("\n<!-- end -->\nb\n<!-- figures of y -->\n<!-- end -->\n")
    assert put(once, "x", Answer((table,))) == once
    with pytest.raises(ValueError, match="0 places"):
        put(text, "z", Answer((table,)))


def test_a_figure_that_is_none_is_no_figure() -> None:
    with pytest.raises(ValueError, match="nan"):
        markdown(Answer((Table(("n",), [(math.nan,)]),)))


def test_ways_run_in_turns() -> None:
    seen: list[str] = []
    ways = {name: lambda name=name: seen.append(name) for name in "ab"}  # type: ignore[misc]
    times = turn_about(ways, TINY)
    assert seen[-2:] == ["a", "b"]
    assert times.us("a") > 0
    assert times.ratio("a", "a") == 1


def test_slope_and_crossing() -> None:
    assert slope((1, 2, 3), (10, 12, 14)) == pytest.approx(2)
    assert crossing((1, 4, 16), (0.25, 0.5, 2)) == pytest.approx(8)
    assert crossing((1, 2), (2, 3)) is None


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.questions", *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_lists_the_questions() -> None:
    listed = run("--list").stdout.splitlines()
    assert [re.split(r"\s\s+", line) for line in listed] == [
        [name, question.asks] for name, question in QUESTIONS.items()
    ]


def test_the_command_s_help_has_an_example() -> None:
    assert "example: python -m benchmarks.questions" in run("--help").stdout


def test_a_question_that_is_none() -> None:
    refused = run("nothing")
    assert refused.returncode == 2
    assert "no such question: nothing" in refused.stderr
