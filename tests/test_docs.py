"""The documents lead where they say: every link exists, every name in a link to code is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")


def links(document: Path) -> list[tuple[str, str]]:
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [(name, target) for name, target in LINK.findall(text) if "://" not in target]


def names_in(source: Path) -> set[str]:
    """Functions, classes, `Class.method`s and constants of a module."""
    found = set()
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        match node:
            case ast.FunctionDef(name=name):
                found.add(name)
            case ast.ClassDef(name=name, body=body):
                found.add(name)
                found |= {f"{name}.{f.name}" for f in body if isinstance(f, ast.FunctionDef)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(document: Path) -> None:
    for name, target in links(document):
        path = (document.parent / target.partition("#")[0]).resolve()
        assert path.exists(), f"{name} → {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_a_link_to_code_names_is_there(document: Path) -> None:
    for name, target in links(document):
        if target.endswith(".py") and re.fullmatch(r"`[\w.]+`", name):
            source = (document.parent / target).resolve()
            assert name.strip("`") in names_in(source), f"{name} is not in {target}"


def test_the_names_of_the_readme_s_path_are_checked() -> None:
    checked = [name for name, target in links(ROOT / "README.md") if target.endswith(".py")]
    assert "`Feeder._peek`" in checked
    assert "Feeder._peek" in names_in(ROOT / "slirp/host/tcp_feed.py")


def feature_rows() -> list[tuple[str, ...]]:
    """The rows of docs/features.md: the feature and a cell for each network."""
    text = (ROOT / "docs/features.md").read_text(encoding="utf-8")
    lines = [
        line for line in text.splitlines() if line.startswith("| ") and "slirp4netns |" not in line
    ]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]


@pytest.mark.parametrize("row", feature_rows(), ids=lambda row: row[0])
def test_each_feature_is_a_test(row: tuple[str, ...]) -> None:
    assert len(row) == 6
    own, *others = row[1:]
    if own.startswith("yes"):
        (_, target), *more = LINK.findall(own)
        assert not more
        assert target.startswith("../tests/")
        assert target.endswith(".py")
    else:
        assert own == "no"
    assert all(re.fullmatch(r"yes|no|part(: .+)?", cell) for cell in others)
