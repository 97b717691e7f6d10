"""The subcommands of `slirp`, and the parser that each is given.

Does not do: run them (slirp.cli.main does); know their options.
"""

from __future__ import annotations

import sys

from slirp.cli.failure import USAGE

TYPE_CHECKING = False  # as typing has it; this is imported before there is time for `typing`
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from typing import Final, NoReturn

# name: (module, what it is for)
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "demo": ("slirp.cli.demo", "boot the embedded SPARC guest, fetch a file, show every stage"),
    "run": ("slirp.cli.run", "run a command in a network namespace of its own"),
    "attach": ("slirp.cli.attach", "connect an existing network namespace"),
    "listen": ("slirp.cli.listen", "serve virtual machines that connect to a socket"),
    "qemu": ("slirp.cli.qemu", "start a QEMU machine with this network"),
    "ps": ("slirp.cli.ps", "list running networks"),
    "ctl": ("slirp.cli.ctl", "look at a running network, and steer it"),
    "top": ("slirp.cli.top", "watch a running network, full screen"),
    "config": ("slirp.cli.config", "print the effective configuration"),
    "completion": ("slirp.cli.completion", "print a completion script for bash, zsh or fish"),
    "man": ("slirp.cli.man", "print or write man pages"),
    "layout": ("slirp.cli.layout", "show and check the header vectors of captured frames"),
}

COLUMNS: Final = 80  # where there is no terminal


def make_parser(prog: str) -> ArgumentParser:
    """A parser whose complaints are one line."""
    import argparse

    class Formatter(argparse.RawDescriptionHelpFormatter):
        def __init__(self, prog: str) -> None:
            super().__init__(prog, width=_columns())

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            self.exit(USAGE, f"slirp: {message}; see {self.prog} --help\n")

    return Parser(prog=prog, formatter_class=Formatter, allow_abbrev=False)


def _columns() -> int:
    """Of the terminal, as argparse takes them from `shutil`, whose import is slow."""
    import os

    try:
        columns = int(os.environ.get("COLUMNS", "")) or COLUMNS
    except ValueError:
        try:
            columns = os.get_terminal_size(sys.stdout.fileno()).columns or COLUMNS
        except (OSError, ValueError):  # no terminal, no descriptor
            columns = COLUMNS
    return columns - 2
