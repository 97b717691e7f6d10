"""The entries on the way to a file."""

from __future__ import annotations

import os
from pathlib import Path

from slirp.linux.lookup import LINKS_MAX, entries


def below(top: Path, path: Path) -> list[str]:
    """The entries below `top`, as the test names them."""
    return [os.path.relpath(e, top) for e in entries(str(path)) if e.startswith(f"{top}/")]


def test_plain_file(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    file = tmp_path / "etc" / "resolv.conf"
    file.write_text("")
    assert below(tmp_path, file) == ["etc", "etc/resolv.conf"]
    assert entries(str(file))[-1] == str(file)
    assert entries("/") == []


def test_links_of_files_and_folders(tmp_path: Path) -> None:
    """/etc/resolv.conf → ../var/run/a → b, and /var/run → ../run."""
    for folder in ("etc", "var", "run"):
        (tmp_path / folder).mkdir()
    (tmp_path / "etc" / "resolv.conf").symlink_to("../var/./run//a")
    (tmp_path / "var" / "run").symlink_to(tmp_path / "run")
    (tmp_path / "run" / "a").symlink_to("b")
    (tmp_path / "run" / "b").write_text("")
    found = below(tmp_path, tmp_path / "etc" / "resolv.conf")
    assert found == ["etc", "etc/resolv.conf", "var", "var/run", "run", "run/a", "run/b"]


def test_what_is_missing_is_named_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").symlink_to("gone/resolv.conf")
    found = below(tmp_path, tmp_path / "resolv.conf")
    assert found == ["resolv.conf", "gone", "gone/resolv.conf"]


def test_link_that_leads_to_itself_ends(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert len(below(tmp_path, tmp_path / "a")) == LINKS_MAX + 1
