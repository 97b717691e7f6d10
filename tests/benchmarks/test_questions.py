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
from benchmarks.questions.plot import NoMatplotlib, draw, size
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


def test_without_matplotlib_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(NoMatplotlib, match=r"pip install 'slirp\[bench\]'"):
        draw(Plot("name", "", "", "", {}), tmp_path / "plots")
    assert not list(tmp_path.iterdir())


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
    ends = "<!-- end -->\nb\n<!-- figures of y -->\n<!-- end -->\n"
    answer = Answer((Table(("n",), [(1,)]),))
    for old in ("", "old\n"):
        text = f"a\n<!-- figures of x -->\n{old}{ends}"
        once = put(text, "x", answer)
        assert once == f"a\n<!-- figures of x -->\n\n| n |\n|---:|\n| 1 |\n\n{ends}"
        assert put(once, "x", answer) == once
    with pytest.raises(ValueError, match="0 places"):
        put(text, "z", answer)


def test_a_figure_that_is_none_is_no_figure() -> None:
    with pytest.raises(ValueError, match="nan"):
        markdown(Answer((Table(("n",), [(math.nan,)]),)))


def test_ways_run_in_turns() -> None:
    seen: list[str] = []
    ways = {name: lambda name=name: seen.append(name) for name in "ab"}
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


# docs/questions.md


DOCUMENT: Final = (ROOT / "docs/questions.md").read_text(encoding="utf-8")
SECTIONS: Final = re.split(r"^## ", DOCUMENT, flags=re.MULTILINE)[1:]
ASKED: Final = [section for section in SECTIONS if "<!-- figures of" in section]


def anchor_of(section: str) -> str:
    """Of its heading, as GitHub makes it."""
    heading = section.partition("\n")[0].lower()
    return re.sub(r"[^\w\- ]", "", heading).replace(" ", "-")


def test_the_document_has_a_section_for_each_question_and_no_other() -> None:
    commands = [re.findall(r"^    python -m benchmarks.questions (\w+)$", s, re.M) for s in ASKED]
    assert commands == [[name] for name in QUESTIONS]
    assert re.findall(r"<!-- figures of (\w+) -->", DOCUMENT) == list(QUESTIONS)


@pytest.mark.parametrize(("name", "section"), list(zip(QUESTIONS, ASKED, strict=True)))
def test_a_section_has_the_tables_and_the_plots_of_its_question(name: str, section: str) -> None:
    answer = answer_of(name)
    heads = re.findall(r"^(\|.*)\n\|---:", section, re.M)
    assert heads == [f"| {' | '.join(table.head)} |" for table in answer.tables]
    plots = re.findall(r"!\[[\w-]+\]\(plots/([\w-]+)\.svg\)", section)
    assert plots == [plot.name for plot in answer.plots]


def test_every_plot_of_the_document_is_small_and_an_svg() -> None:
    paths = sorted((ROOT / "docs/plots").iterdir())
    assert {path.name for path in paths} == {
        f"{plot.name}.svg" for name in QUESTIONS for plot in answer_of(name).plots
    }
    for path in paths:
        assert ElementTree.parse(path).getroot().tag == f"{SVG}svg"
        assert path.stat().st_size < PLOT_MAX


def test_every_claim_leads_to_a_test_or_a_section() -> None:
    claims = [line for line in SECTIONS[-1].splitlines() if re.match(r"\| (?!what |slip )", line)]
    assert len(claims) > 50
    assert all("](" in claim.split("|")[2] for claim in claims)
    anchors = {anchor_of(section) for section in SECTIONS}
    assert set(re.findall(r"\]\(#([^)]+)\)", DOCUMENT)) <= anchors
