"""The commands as data: what completions and man pages are made of.

Everything comes from the parsers that the commands themselves configure, so that a new option is
completed and documented by being there.

Does not do: slirp4netns-py, whose command line is slirp4netns's (and so are its completions).
"""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import NamedTuple

from slirp.cli.commands import COMMANDS, make_parser

FILES = ("FILE", "PATH", "DIR", "SOCKET", "IMAGE", "FILE.pcapng", "FILE.toml")  # metavars


class Option(NamedTuple):
    """An option, or a word that stands by its place (no names)."""

    names: tuple[str, ...]
    value: str  # its metavar; "" where it takes none
    meaning: str
    choices: tuple[str, ...]
    many: bool  # may be repeated

    @property
    def is_file(self) -> bool:
        """Is its value the name of a file?"""
        return any(self.value.startswith(name) for name in FILES)


class Command(NamedTuple):
    """A command, or a word behind one."""

    path: tuple[str, ...]  # ("slirp", "run"), ("slirp", "ctl", "forwards", "add")
    purpose: str
    usage: str
    description: str
    examples: str
    options: tuple[Option, ...]
    words: tuple[Option, ...]
    commands: tuple[Command, ...]

    @property
    def name(self) -> str:
        return " ".join(self.path)

    def all(self) -> list[Command]:
        """This one and all below it."""
        return [self, *(found for command in self.commands for found in command.all())]


def commands() -> list[Command]:
    """All of them, as `slirp --help` lists them."""
    found = []
    for name, (module, purpose) in COMMANDS.items():
        parser = make_parser(f"slirp {name}")
        import_module(module).configure(parser)
        found.append(_command(("slirp", name), purpose, parser))
    return found


def _command(path: tuple[str, ...], purpose: str, parser: argparse.ArgumentParser) -> Command:
    options, words, below = [], [], []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            meanings = {choice.dest: choice.help or "" for choice in action._choices_actions}
            below = [
                _command((*path, name), meanings.get(name, ""), inner)
                for name, inner in action.choices.items()
            ]
        elif action.option_strings:
            options.append(_option(action, parser))
        else:
            words.append(_option(action, parser))
    usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
    description, examples = parser.description or "", parser.epilog or ""
    return Command(
        path, purpose, usage, description, examples, tuple(options), tuple(words), tuple(below)
    )


def _option(action: argparse.Action, parser: argparse.ArgumentParser) -> Option:
    metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    return Option(
        tuple(action.option_strings),
        "" if action.nargs == 0 else metavar,
        _expanded(action, parser),
        tuple(map(str, action.choices or ())),
        type(action).__name__ == "_AppendAction",
    )


def _expanded(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    """The help text with its %(default)s."""
    values = {**vars(action), "prog": parser.prog}
    return " ".join((action.help or "").split()) % values if action.help else ""
