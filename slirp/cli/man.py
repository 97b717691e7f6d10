"""`slirp man`: a man page for each command, from the parsers themselves (slirp.cli.definitions).

`slirp4netns-py` has no parser of that kind; its page comes from what its --help says.

    slirp man run | man -l -
    slirp man --dir ~/.local/share/man/man1

Does not do: docs/, which have the why; install anything elsewhere.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from typing import Final

from slirp import __version__
from slirp.cli.definitions import Command, Option, commands
from slirp.cli.failure import USAGE, Failure

DESCRIPTION: Final = "Print the man page of a command, or write the pages of all to a folder."
EPILOG: Final = """\
examples:
  slirp man run | man -l -
  slirp man --dir ~/.local/share/man/man1
"""
PORTRAYED: Final = "slirp4netns-py"
CONFIG_IN_ENVIRONMENT: Final = "a file as for slirp attach --config, with attach's table"
SUMMARY: Final = (
    "A user-mode network: bytes go from the host's sockets straight into a guest's memory."
)


def configure(parser: ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("command", nargs="?", metavar="COMMAND", help="run, attach …; else slirp")
    parser.add_argument("--dir", metavar="DIR", help="write slirp.1, slirp-run.1 … there")


def run(args: Namespace) -> int:
    found = commands()
    pages = {f"slirp-{command.path[1]}": page(command) for command in found}
    pages |= {"slirp": overview(found), PORTRAYED: portrait()}
    if args.dir is not None:
        _write(args.dir, pages)
        return 0
    name = args.command or "slirp"
    text = pages.get(f"slirp-{name}") or pages.get(name)
    if text is None:
        raise Failure(f"there is no command {args.command!r}; slirp --help lists them", USAGE)
    sys.stdout.write(text)
    return 0


def _write(folder: str, pages: dict[str, str]) -> None:
    import os

    try:
        os.makedirs(folder, exist_ok=True)
        for name, text in pages.items():
            with open(os.path.join(folder, f"{name}.1"), "w", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise Failure(f"--dir {folder}: {error.strerror}") from None


def overview(found: list[Command]) -> str:
    """The page of `slirp` itself."""
    lines = _head("slirp", "a user-mode network")
    lines += [".SH SYNOPSIS", r"\fBslirp\fR \fICOMMAND\fR [\fIOPTION\fR…]"]
    lines += [".SH DESCRIPTION", _text(SUMMARY), ".SH COMMANDS"]
    for command in found:
        lines += [".TP", rf"\fBslirp\-{command.path[1]}\fR(1)", _text(command.purpose)]
    lines += [".SH SEE ALSO"]
    lines += [", ".join(rf"\fBslirp\-{command.path[1]}\fR(1)" for command in found)]
    return "\n".join(lines) + "\n"


def portrait() -> str:
    """The page of slirp4netns-py."""
    from slirp.cli.slirp4netns import SECCOMP_USAGE
    from slirp.cli.slirp4netns import USAGE as HELP

    synopsis, purpose, *rest = HELP.format(seccomp=SECCOMP_USAGE).splitlines()
    words = synopsis.removeprefix("Usage: slirp4netns ")
    lines = _head(PORTRAYED, "slirp4netns's command line for this network")
    lines += [".SH SYNOPSIS", rf"{_bold(PORTRAYED)} {_text(words)}"]
    lines += [".SH DESCRIPTION", _text(purpose), ".SH OPTIONS"]
    for line in filter(None, rest):
        names, _, meaning = line.partition("  ")
        lines += [".TP", _bold(names), _text(meaning.strip())]
    lines += [".SH ENVIRONMENT", ".TP", _bold("SLIRP_CONFIG"), _text(CONFIG_IN_ENVIRONMENT)]
    lines += [".SH SEE ALSO", r"\fBslirp\-attach\fR(1)"]
    return "\n".join(lines) + "\n"


def page(command: Command) -> str:
    """The page of one command, with the words behind it."""
    lines = _head("-".join(command.path), command.purpose)
    lines += [".SH SYNOPSIS", _bold(command.usage)]
    lines += [".SH DESCRIPTION", *_paragraphs(command.description)]
    if command.words:
        lines += [".SH ARGUMENTS", *_list(command.words)]
    if command.options:
        lines += [".SH OPTIONS", *_list(command.options)]
    below = command.all()[1:]
    if below:
        lines.append(".SH VERBS" if command.path[1] == "ctl" else ".SH COMMANDS")
    for inner in below:
        if inner.commands:
            continue
        lines += [f".SS {_text(' '.join(inner.path[2:]))}", _text(inner.purpose)]
        lines += _list((*inner.words, *inner.options))
    if command.examples:
        lines += [".SH EXAMPLES", *_paragraphs(command.examples)]
    lines += [".SH SEE ALSO", r"\fBslirp\fR(1)"]
    return "\n".join(lines) + "\n"


def _head(name: str, purpose: str) -> list[str]:
    title = name.upper().replace("-", r"\-")
    return [
        f'.TH {title} 1 "" "slirp {__version__}" "slirp"',
        ".SH NAME",
        f"{_text(name)} \\- {_text(purpose)}",
    ]


def _list(options: tuple[Option, ...]) -> list[str]:
    lines = []
    for option in options:
        names = ", ".join(_bold(name) for name in option.names)
        value = rf"\fI{_text(option.value)}\fR" if option.value else ""
        lines += [".TP", f"{names} {value}".strip(), _text(option.meaning) or r"\&"]
    return lines


def _paragraphs(text: str) -> list[str]:
    """As it was set: lines that are indented stay as they are."""
    lines, verbatim = [], False
    for line in text.rstrip().splitlines():
        if line.startswith(" ") != verbatim and line:
            lines.append(".nf" if not verbatim else ".fi")
            verbatim = not verbatim
        lines.append(_text(line) if line else ".PP" if not verbatim else "")
    return [*lines, ".fi"] if verbatim else lines


def _bold(text: str) -> str:
    return rf"\fB{_text(text)}\fR"


def _text(text: str) -> str:
    """Nothing in it is a request or an escape."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq")
    escaped = escaped.replace("`", r"\(ga").replace("~", r"\(ti").replace("^", r"\(ha")
    return r"\&" + escaped if escaped.startswith((".", r"\(aq")) else escaped
