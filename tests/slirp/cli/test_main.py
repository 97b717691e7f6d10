"""The command line: quick help, one-line errors, exit statuses."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

import slirp as slirp_package
from slirp.cli import main as cli
from slirp.cli.commands import COMMANDS
from slirp.cli.failure import Failure
from slirp.cli.main import main
from slirp.errors import ConfigError


def slirp(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "slirp", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr()
    assert all(f"slirp {name} " in shown.out for name in COMMANDS)
    assert "example: " in shown.out
    assert shown.err == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_has_an_example(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"usage: slirp {name} " in shown
    assert "example" in shown
    assert f"  slirp {name}" in shown


def test_help_is_quick() -> None:
    """Under 60 ms on an idle machine; here as a multiple of what Python itself takes."""

    def fastest(*command: str) -> float:
        taken = []
        for _ in range(5):
            start = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, capture_output=True)
            taken.append(time.perf_counter() - start)
        return min(taken)

    assert fastest("-m", "slirp", "--help") < 3 * fastest("-c", "pass") + 0.03


@pytest.mark.parametrize("arguments", [["--help"], ["layout", "--help"], ["demo", "--help"]])
def test_help_imports_nothing_slow(arguments: list[str]) -> None:
    program = (
        "import sys; from slirp.cli.main import main; main(sys.argv[1:]);"
        "slow = {'numpy', 'rich', 'unicorn', 'scapy', 'asyncio'} & sys.modules.keys();"
        "sys.exit(f'imported {slow}' if slow else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_version() -> None:
    done = slirp("--version")
    assert (done.returncode, done.stdout) == (0, f"slirp {slirp_package.__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["dmeo"], "slirp: there is no command 'dmeo'; slirp --help lists the commands"),
        (["--nope"], "slirp: there is no option '--nope'; slirp --help lists the commands"),
        (["layout"], "FILE.pcapng; see slirp layout --help"),
        (["layout", "--nope", "x"], "arguments: --nope; see slirp layout --help"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    (line,) = [line for line in shown.err.splitlines() if not line.startswith("usage:")]
    assert line.startswith("slirp: ")
    assert complaint in line
    assert shown.out == ""


def test_no_arguments_show_the_help_as_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("usage: slirp COMMAND")


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (Failure("it broke; mend it"), 1, "slirp: it broke; mend it\n"),
        (Failure("say it so", 2), 2, "slirp: say it so\n"),
        (ConfigError("mtu 3: at least 576"), 2, "slirp: mtu 3: at least 576\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_how_commands_end(
    error: BaseException,
    status: int,
    line: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ending(_arguments: object) -> int:
        raise error

    monkeypatch.setattr(cli, "_dispatch", ending)
    assert main(["any"]) == status
    assert capsys.readouterr().err == line


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    program = (
        "import sys; import slirp.cli.main as cli;"
        "cli.HELP = 'x' * (1 << 20); sys.exit(cli.main(['--help']))"
    )
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", program],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")
