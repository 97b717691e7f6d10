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
from slirp.cli.commands import COMMANDS, make_parser
from slirp.cli.failure import FAILED, INTERRUPTED, USAGE, Failure
from slirp.errors import ConfigError

TYPE_CHECKING = False  # as typing has it; this is imported before there is time for `typing`
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

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
    files = None
    if any(word.startswith(("--config", "--restore")) for word in rest):
        from slirp.cli import config_file

        files = config_file.Files(rest, parser)
    try:
        if files:
            files.prepare(name, parser)
        args = parser.parse_args(rest)
    except SystemExit as done:  # --help was printed, or the mistake was
        return done.code if isinstance(done.code, int) else USAGE
    if files:
        second = make_parser(f"slirp {name}")
        command.configure(second)
        args.config_given = config_file.given_among(rest, second)
    status: int = command.run(args)
    return status


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
