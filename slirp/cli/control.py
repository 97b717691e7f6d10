"""`--control PATH`, for every command that runs a network.

Does not do: what is said on the socket (slirp.control).
"""

from __future__ import annotations

import os
import sys

from slirp.cli.failure import Failure

TYPE_CHECKING = False  # as typing has it; this is imported before there is time for `typing`
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Callable
    from contextlib import ExitStack
    from typing import Final

    from slirp.network import Network

COMMAND_MAX: Final = 200  # letters of a command line in listings


def add_option(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--control", metavar="PATH", help="a socket for `slirp ctl`: look at the network, steer it"
    )


def open_control(
    path: str | None,
    network: Network,
    stack: ExitStack,
    *,
    on_stop: Callable[[], None] | None = None,
    default_guest: str | None = None,
    namespace_pid: Callable[[], int | None] = lambda: None,
) -> None:
    """The socket that the option asks for, closed with `stack`. Raises Failure."""
    if path is None:
        return
    from slirp.control.server import ControlSocket
    from slirp.control.verbs import Verbs

    path = os.path.abspath(path)  # found again by `slirp ps`, from wherever
    verbs = Verbs(network, name=called(), namespace_pid=namespace_pid)
    try:
        control = ControlSocket(
            path,
            verbs,
            default_guest=default_guest,
            on_stop=on_stop,
            guests_namespace=_namespace_of(namespace_pid()),
        )
    except OSError as error:
        raise Failure(f"--control {path}: {error.strerror or error}") from None
    stack.callback(control.close)


def called() -> str:
    """The command line, for listings."""
    name = os.path.basename(sys.argv[0])
    return " ".join(["slirp" if name == "__main__.py" else name, *sys.argv[1:]])[:COMMAND_MAX]


def _namespace_of(pid: int | None) -> int | None:
    """The inode of a process's network namespace, if it is another than ours."""
    try:
        theirs = os.stat(f"/proc/{pid}/ns/net").st_ino if pid else 0
        return theirs if theirs != os.stat("/proc/self/ns/net").st_ino else None
    except OSError:
        return None
