"""Around a running network: `--control`, `--metrics`, `--restore`, `-v`, `--ready-fd` and the like.

    add_options(parser)
    …
    open_control(args, network, stack, on_stop=…)      the sockets, and lines on standard error
    tell_ready(args.ready_fd)                          when everything is set up

Does not do: what is said on the sockets (slirp.control).
"""

from __future__ import annotations

import os
import sys

from slirp.cli import log
from slirp.cli.failure import USAGE, Failure
from slirp.errors import ConfigError

TYPE_CHECKING = False  # as typing has it; this is imported before there is time for `typing`
if TYPE_CHECKING:
    import socket
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable
    from contextlib import ExitStack
    from typing import Final, Protocol

    from slirp.control.metrics_port import MetricsPort
    from slirp.control.server import ControlSocket
    from slirp.control.verbs import Verbs, Will
    from slirp.network import Network

    class Wishes(Protocol):
        """What the options come to, for those who have no parser's Namespace."""

        @property
        def control(self) -> str | None: ...
        @property
        def metrics(self) -> str | None: ...
        @property
        def restore(self) -> str | None: ...
        @property
        def verbose(self) -> int: ...


COMMAND_MAX: Final = 200  # letters of a command line in listings
READY: Final = b"1"  # as slirp4netns has it


def add_options(parser: ArgumentParser, *, ready_fd: bool = True) -> None:
    add = parser.add_argument
    add("--control", metavar="PATH", help="a socket for `slirp ctl`: look at the network, steer it")
    add("--metrics", metavar="[ADDR:]PORT", help="answer Prometheus there (127.0.0.1)")
    add("--restore", metavar="FILE", help="restore what `slirp ctl SOCKET save FILE` wrote")
    if ready_fd:  # attach has slirp4netns's
        add("--ready-fd", type=int, metavar="FD", help='write "1" to it when everything is set up')
    log.add_options(parser)


def open_control(
    wishes: Namespace | Wishes,
    network: Network,
    stack: ExitStack,
    *,
    on_stop: Callable[[], None] | None = None,
    default_guest: str | None = None,
    namespace_pid: Callable[[], int | None] = lambda: None,
    heritage: Callable[[], Will] | None = None,
    on_successor: Callable[[], None] | None = None,
    listener: socket.socket | None = None,
    metrics_listener: socket.socket | None = None,
    name: str | None = None,
) -> None:
    """What the options ask for, closed with `stack`. Raises Failure.

    The listeners are those of a process before this one, and `name` is what it was called.
    """
    name = called() if name is None else name
    log.follow(network, wishes.verbose)
    if wishes.restore is not None:
        _restore(wishes.restore, network)
    if wishes.control is None and wishes.metrics is None:
        return
    from slirp.control.verbs import Verbs

    verbs = Verbs(network, name=name, namespace_pid=namespace_pid)
    verbs.heritage = heritage
    fd: int | None = None
    if wishes.metrics is not None:
        port = _open_metrics(wishes.metrics, verbs, stack, metrics_listener)
        fd = port.fileno()
    if wishes.control is None:
        return
    from slirp.control.server import ControlSocket

    path = os.path.abspath(wishes.control)  # found again by `slirp ps`, from wherever
    try:
        control = ControlSocket(
            path,
            verbs,
            default_guest=default_guest,
            on_stop=on_stop,
            guests_namespace=_namespace_of(namespace_pid()),
            listener=listener,
        )
    except OSError as error:
        raise Failure(f"--control {path}: {error.strerror or error}") from None
    stack.callback(control.close)
    if on_successor is not None:
        control.on_successor = on_successor
    if heritage is not None:
        verbs.heritage = lambda: _with_control(heritage(), control, fd)


def _with_control(will: Will, control: ControlSocket, metrics: int | None) -> Will:
    """The control socket goes with the rest, and the port for metrics: whoever connects meanwhile
    meets the successor."""
    values, fds = will
    place = {
        "name": control.verbs.name,
        "path": control.path,
        "fd": len(fds),
        "metrics": None if metrics is None else len(fds) + 1,
    }
    more = [control.lines.fileno(), *([] if metrics is None else [metrics])]
    return {**values, "control": place}, [*fds, *more]


def _restore(path: str, network: Network) -> None:
    try:
        report = network.restore(path)
    except ConfigError as error:
        raise Failure(f"--restore {str(error).removeprefix('state ')}") from None
    except OSError as error:
        raise Failure(f"--restore {path}: {error.strerror or error}") from None
    for line in report["failed"]:
        log.say(f"warning: --restore: {line}")


def _open_metrics(
    where: str, verbs: Verbs, stack: ExitStack, listener: socket.socket | None
) -> MetricsPort:
    from slirp.control.metrics_port import MetricsPort

    try:
        port = MetricsPort(where, verbs.network, verbs.metrics, listener)
    except ConfigError as error:
        raise Failure(f"--{error}", USAGE) from None
    except OSError as error:
        raise Failure(f"--metrics {where}: {error.strerror or error}") from None
    stack.callback(port.close)
    return port


def tell_ready(fd: int | None) -> None:
    """Everything is set up: tell whoever waits, by descriptor and as a service. Raises Failure."""
    if fd is not None:
        try:
            os.write(fd, READY)
            os.close(fd)
        except OSError as error:
            raise Failure(f"--ready-fd {fd}: {error.strerror}") from None
    if "NOTIFY_SOCKET" in os.environ:
        from slirp.linux.sd_notify import notify

        notify(f"READY=1\nMAINPID={os.getpid()}\nSTATUS={called()}")


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
