"""Completion scripts in the shells themselves, and man pages before their own judges."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from slirp.cli.commands import COMMANDS
from slirp.cli.definitions import commands
from slirp.cli.main import main
from slirp.cli.slirp4netns import USAGE
from tests.kit.need import need_tool


@pytest.fixture(params=["bash", "zsh", "fish"])
def shell(request: pytest.FixtureRequest) -> str:
    need_tool(request.param)
    return str(request.param)


def script(shell: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["completion", shell]) == 0
    path = folder / f"_slirp.{shell}"
    path.write_text(capsys.readouterr().out)
    return path


def run_shell(*command: str, cwd: Path) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
    )
    assert done.stderr == "", done.stderr
    return done.stdout


BASH = """
source "$1"
COMP_WORDS=({words} "{cur}")
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_slirp
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
ZSH = """
_describe() {{ print -l -- ${{found%%:*}} }}
_files() {{ print -l -- *(N) }}
compadd() {{ shift; print -l -- $@ }}
_message() {{ }}
compdef() {{ }}
source "$1"
words=({words} "{cur}")
CURRENT=$#words
_slirp
"""


def completed(shell: str, path: Path, line: str) -> set[str]:
    """What the shell offers behind this line, whose last word is begun."""
    *words, cur = line.split(" ")
    if shell == "fish":
        text = f"source {path}; complete -C '{line}'"
        out = run_shell("fish", "--no-config", "-c", text, cwd=path.parent)
        return {row.split("\t")[0] for row in out.splitlines()}
    text = (BASH if shell == "bash" else ZSH).format(words=" ".join(words), cur=cur)
    out = run_shell(
        *([shell, "-f"] if shell == "zsh" else [shell]),
        "-c",
        text,
        shell,
        str(path),
        cwd=path.parent,
    )
    return {row for row in out.splitlines() if row.startswith(cur) and row}


@pytest.mark.parametrize(
    ("line", "some", "none"),
    [
        ("slirp ", {"run", "attach", "ctl"}, {"--mtu"}),
        ("slirp run --m", {"--mtu", "--map-root"}, {"--network"}),
        ("slirp ctl x.sock ", {"status", "flows", "forwards"}, {"add"}),
        ("slirp ctl x.sock forwards ", {"add", "list", "remove"}, {"status"}),
        ("slirp ctl x.sock flows --proto ", {"tcp", "udp"}, {"--json"}),
        ("slirp ctl x.sock flows --", {"--owners", "--json"}, {"status"}),
        ("slirp run --capture ", {"a.pcapng"}, {"--mtu"}),
        ("slirp run --mtu ", set(), {"a.pcapng", "--mtu"}),
        ("slirp completion ", {"bash", "zsh", "fish"}, {"run"}),
    ],
)
def test_words_are_completed(
    shell: str, line: str, some: set[str], none: set[str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "a.pcapng").touch()
    found = completed(shell, script(shell, tmp_path, capsys), line)
    assert some <= found
    assert not none & found


def test_scripts_name_every_command_and_option(
    shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = script(shell, tmp_path, capsys).read_text()
    for command in commands():
        assert command.path[1] in text
        for option in command.options:
            for name in option.names:
                assert (name.lstrip("-") if shell == "fish" else name) in text


# --- man pages ------------------------------------------------------------------------------------


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    folder = tmp_path / "man1"
    assert main(["man", "--dir", str(folder)]) == 0
    return folder


def test_every_command_has_its_page(pages: Path) -> None:
    names = {path.name for path in pages.iterdir()}
    assert names == {"slirp.1", "slirp4netns-py.1", *(f"slirp-{name}.1" for name in COMMANDS)}


def test_page_of_slirp4netns_py_has_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["man", "slirp4netns-py"]) == 0
    text = capsys.readouterr().out.replace(r"\-", "-")
    said = set(re.findall(r"--?[a-z0-9-]+", USAGE))
    for option in {*said, "--enable-seccomp"}:
        assert option in text
    assert "SLIRP_CONFIG" in text
    assert "slirp-attach" in text


def test_mandoc_finds_nothing_wrong(pages: Path) -> None:
    mandoc = need_tool("mandoc")
    done = subprocess.run(
        [mandoc, "-T", "lint", "-W", "warning", *map(str, sorted(pages.iterdir()))],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    complaints = [line for line in done.stdout.splitlines() if "missing date" not in line]
    assert complaints == []


def test_page_says_what_the_help_says(pages: Path) -> None:
    groff = need_tool("groff")
    done = subprocess.run(
        [groff, "-Kutf8", "-man", "-Tutf8", "-ww", "-P-cbu", str(pages / "slirp-run.1")],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    text = " ".join(done.stdout.split())
    assert "slirp-run - run a command in a network namespace of its own" in text
    assert "--mtu N 68 to 65521 bytes (1500)" in text
    assert "slirp run --forward 8080:80 -- python3 -m http.server 80" in text


def test_no_such_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["man", "nonsense"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_page_of_one_command_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["man", "ctl"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(".TH SLIRP")
    assert r".SS forwards add" in text
