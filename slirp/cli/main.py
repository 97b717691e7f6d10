"""The `slirp` command: finds the subcommand, and turns its end into an exit status.

Each subcommand is a module with `configure(parser)` and `run(args) -> int`. Only the one that was
asked for is imported, and what is slow to import only where it is used, so that `slirp --help` is
as quick as Python itself. Results go to standard output, everything else to standard error.

Exit status: 0 for success and nothing else, 1 for a failure, 2 for a mistake in the command line,
130 after Ctrl-C. Every error is one line that begins with `slirp: `.

Does not do: anything that a subcommand does.
"""

from __future__ import annotations

import sys

from slirp import __version__
from slirp.cli.failure import FAILED, INTERRUPTED, USAGE, Failure
from slirp.errors import ConfigError

TYPE_CHECKING = False  # as typing has it; this is imported before there is time for `typing`
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Sequence
    from typing import Final, NoReturn

# name: (module, what it is for)
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "demo": ("slirp.cli.demo", "boot the embedded SPARC guest, fetch a file, show every stage"),
    "run": ("slirp.cli.run", "run a command in a network namespace of its own"),
    "attach": ("slirp.cli.attach", "give a network namespace that exists this network"),
    "listen": ("slirp.cli.listen", "be the network of QEMU machines that connect to a socket"),
    "qemu": ("slirp.cli.qemu", "start a QEMU machine with this network"),
    "ps": ("slirp.cli.ps", "find the networks that run"),
    "ctl": ("slirp.cli.ctl", "look at a running network, and steer it"),
    "layout": ("slirp.cli.layout", "show and check the header vectors of captured frames"),
}

COLUMNS: Final = 80  # where there is no terminal

HELP: Final = """\
usage: slirp COMMAND [OPTION…]

A user-mode network: bytes go from the host's sockets straight into a guest's memory.

{commands}

  slirp COMMAND --help   what the command takes, with an example
  slirp --version        the version

example: slirp demo --capture demo.pcapng
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except Failure as failure:
        return _complain(str(failure), failure.status)
    except ConfigError as error:
        return _complain(str(error), USAGE)
    except BrokenPipeError:
        _forget_stdout()
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:  # no descriptor, memory or disk left, where no command expects it
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror or error}", FAILED)


def _dispatch(arguments: Sequence[str]) -> int:
    if not arguments:
        sys.stderr.write(_help())
        return USAGE
    name, *rest = arguments
    if name in ("-h", "--help"):
        sys.stdout.write(_help())
        return 0
    if name in ("-V", "--version"):
        sys.stdout.write(f"slirp {__version__}\n")
        return 0
    if name not in COMMANDS:
        kind = "option" if name.startswith("-") else "command"
        raise Failure(f"there is no {kind} {name!r}; slirp --help lists the commands", USAGE)
    from importlib import import_module

    command = import_module(COMMANDS[name][0])
    parser = make_parser(f"slirp {name}")
    command.configure(parser)
    try:
        args = parser.parse_args(rest)
    except SystemExit as done:  # --help was printed, or the mistake was
        return done.code if isinstance(done.code, int) else USAGE
    status: int = command.run(args)
    return status


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


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  slirp {name:{width}}   {purpose}" for name, (_, purpose) in COMMANDS.items()]
    return HELP.format(commands="\n".join(lines))


def _complain(text: str, status: int) -> int:
    sys.stderr.write(f"slirp: {text}\n")
    return status


def _forget_stdout() -> None:
    """Whoever read our output is gone; Python shall not complain about it at exit."""
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
