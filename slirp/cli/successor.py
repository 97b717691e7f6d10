"""The process that goes on in a running network's place: `slirp ctl SOCKET handover`.

It is started with everything imported and nothing decided, asks the old process for all that it
has, builds a network around it, says "ready", and turns when the old one has let go. What the old
one serves stands still for that long (tens of milliseconds); what comes meanwhile waits in the
device and in the hosts' sockets. Where anything goes wrong before "ready", the old one goes on.

    python -m slirp.cli.successor SOCKET      prints one line of JSON when it runs

Does not do: networks whose guests are machines that connect (listen, qemu); a capture that was
begun by an option, which ends with the old process.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, Final

from nic.bess import BessPort
from nic.tap import TapPort
from slirp.cli import log, options
from slirp.cli.control import open_control
from slirp.cli.early import Options
from slirp.cli.failure import Failure
from slirp.cli.netns_server import ENDING, Ending, restrict
from slirp.cli.tap import addresses
from slirp.cli.will import will_of
from slirp.config import Config
from slirp.control import heritage
from slirp.control.client import Connection, ControlError, Unreachable
from slirp.control.server import ControlSocket
from slirp.control.verbs import Verbs
from slirp.errors import ConfigError
from slirp.linux.signals import SignalFd
from slirp.network import Network

STANDS_STILL: Final = (ControlSocket, Verbs)  # imported before anything is asked for


def main(argv: list[str] | None = None) -> int:
    """Run as a program of its own, detached from whoever started it."""
    (path,) = sys.argv[1:] if argv is None else argv
    try:
        return succeed(path, _tell, detached=True)
    except Failure as failure:
        log.say(str(failure))
        return failure.status


def _tell(report: Mapping[str, Any]) -> None:
    """Whoever started us waits for a line, and then does not listen any more."""
    sys.stdout.write(json.dumps(report) + "\n")
    sys.stdout.flush()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def succeed(path: str, tell: Callable[[Mapping[str, Any]], None], *, detached: bool = False) -> int:
    """Go on as the network at this control socket; its exit status. Raises Failure.

    `detached`: what is said goes to where the old process said it.
    """
    options.raise_descriptor_limit()
    with ExitStack() as stack:
        try:
            connection = stack.enter_context(Connection(path))
            answer = connection.ask_alone("handover")
            values, fds = heritage.take(connection.sock, answer["fds"], answer["bytes"])
        except (Unreachable, ControlError, heritage.Broken) as error:
            raise Failure(f"handover: {error}; the network goes on as it was") from None
        return _go_on(_Inherited(values, fds, detached), connection.sock, stack, tell)


class _Inherited:
    """Everything that came, by its meaning."""

    def __init__(self, values: Mapping[str, Any], fds: list[int], detached: bool) -> None:
        self.values = values
        self.run: Mapping[str, Any] = values["run"]
        self.control: Mapping[str, Any] = values["control"]
        self.options = Options(target="0", **self.run["options"])
        self._fds = fds
        self._detached = detached
        fields = {key: value for key, value in values["config"].items() if key != "forwards"}
        self.config = Config(**fields)

    @property
    def exit_fd(self) -> int | None:
        """What ends the run when something happens on it."""
        at = self.run["exit"]
        return None if at is None else self._fds[at]

    def port(self, stack: ExitStack) -> TapPort | BessPort:
        """The device, closed with `stack`."""
        fd, mtu = self._fds[self.run["device"]], self.options.mtu
        port: TapPort | BessPort
        if self.run["is_tap"]:
            port = TapPort(fd, mtu=mtu, vnet=self.run["vnet"])
        else:
            port = BessPort(socket.socket(fileno=fd), mtu)
        stack.callback(port.close)
        return port

    def speak(self) -> None:
        """From here on, to whom the old process spoke, unless somebody started us to hear us."""
        fd = self._fds[self.run["stderr"]]
        if self._detached:
            sys.stderr.flush()
            os.dup2(fd, sys.stderr.fileno())
        os.close(fd)

    def listener(self) -> socket.socket:
        """The control socket."""
        return socket.socket(fileno=self._fds[self.control["fd"]])

    def socks(self) -> dict[int, socket.socket]:
        """The hosts' sockets, by their place."""
        others = (
            self.run["device"], self.run["stderr"], self.run["exit"], self.control["fd"],
        )  # fmt: skip
        return {at: socket.socket(fileno=fd) for at, fd in enumerate(self._fds) if at not in others}


def _go_on(
    found: _Inherited,
    sock: socket.socket,
    stack: ExitStack,
    tell: Callable[[Mapping[str, Any]], None],
) -> int:
    wishes, follow = found.options, found.run["follow"]
    log.use_json(on=wishes.log_json)
    signals = SignalFd(ENDING)
    stack.callback(signals.close)
    try:
        network = stack.enter_context(options.make_network(found.config))
        port = found.port(stack)
        attachment = network.attach(port, wishes.tap_name)
        report = network.take_over(found.values, found.socks(), attachment)
    except (ConfigError, OSError) as error:
        raise Failure(f"handover: {error}; the network goes on as it was") from None
    ending = Ending(network, log.say)
    stack.callback(ending.close)
    ending.on_signal(signals)
    if found.exit_fd is not None:
        ending.on_exit_fd(found.exit_fd)
    quiet = Options(target="0", control=found.control["path"])
    open_control(
        quiet,
        network,
        stack,
        on_stop=ending.stop,
        heritage=lambda: will_of(
            network, port, found.run["options"], follow=follow, exit_fd=found.exit_fd
        ),
        on_successor=ending.succeeded,
        default_guest=addresses(found.config).guest,
        namespace_pid=lambda: follow,
        listener=found.listener(),
    )
    try:
        heritage.wait_for_go(sock)
    except heritage.Broken as error:
        network.abandon()
        raise Failure(f"handover: {error}") from None
    return _serve(found, network, ending, stack, {"pid": os.getpid(), **report}, tell)


def _serve(
    found: _Inherited,
    network: Network,
    ending: Ending,
    stack: ExitStack,
    report: Mapping[str, Any],
    tell: Callable[[Mapping[str, Any]], None],
) -> int:
    wishes = found.options
    later = Options(target="0", metrics=wishes.metrics, verbose=wishes.verbose)
    try:
        open_control(later, network, stack)  # the old process had the port until now
    except Failure as failure:
        log.say(f"warning: {failure}")
    if found.run["follow"] is not None:
        ending.follow(found.run["follow"])
    found.speak()
    tell(report)
    restrict(wishes, network, stack, log.say)
    tell_stats = options.stats_printer(wishes, network)
    status = ending.run(wishes.tap_name)
    tell_stats()
    return status


if __name__ == "__main__":
    sys.exit(main())
