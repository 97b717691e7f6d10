"""The process that goes on in a running network's place: `slirp ctl SOCKET handover`.

It is started with everything imported and nothing decided, asks the old process for all that it
has, builds a network around it, says "ready", and turns when the old one has let go. What the old
one serves stands still for that long (tens of milliseconds); what comes meanwhile waits in the
device and in the hosts' sockets. Where anything goes wrong before "ready", the old one goes on.

A network of another user's is refused, to root as well: what it says is done with our rights.

    python -m slirp.cli.successor SOCKET      prints one line of JSON when it runs

A machine or a command that the old process started stays its child: that one waits for it, and has
its exit status.

Does not do: a capture that was begun by an option, which ends with the old process.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
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
from slirp.cli.endpoint import Path, Renewable
from slirp.cli.failure import Failure
from slirp.cli.listen import remove
from slirp.cli.netns_server import ENDING, Ending, open_api_socket, restrict
from slirp.cli.tap import places
from slirp.cli.will import Will, will_of, will_of_machines
from slirp.config import Config
from slirp.control import heritage
from slirp.control.client import Connection, ControlError, Unreachable
from slirp.control.lines import peer_of
from slirp.control.server import ControlSocket
from slirp.control.slirp4netns import ApiSocket
from slirp.control.verbs import Verbs
from slirp.errors import ConfigError
from slirp.linux.listening import Namespace
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
            _check_owner(connection)
            answer = connection.ask_alone("handover")
            values, fds = heritage.take(connection.sock, answer["fds"], answer["bytes"])
        except (Unreachable, ControlError, heritage.Broken) as error:
            raise Failure(f"handover: {error}; the network goes on as it was") from None
        return _go_on(_Inherited(values, fds, detached), connection.sock, stack, tell)


def _check_owner(connection: Connection) -> None:
    """What a network hands over is believed: files to serve, paths to remove, whom to end."""
    _, owner = peer_of(connection.sock)
    if owner != os.geteuid():
        raise Failure(f"handover: {connection.path} is of user {owner}, who has to ask for it")


class _Inherited:
    """Everything that came, by its meaning."""

    def __init__(self, values: Mapping[str, Any], fds: list[int], detached: bool) -> None:
        self.values = values
        self.run: Mapping[str, Any] = values["run"]
        self.control: Mapping[str, Any] = values["control"]
        self.options = Options(target="0", **self.run["options"])
        self.fds = fds
        self._detached = detached
        fields = {key: value for key, value in values["config"].items() if key != "forwards"}
        self.config = Config(**fields)

    def fd(self, name: str) -> int | None:
        """One of the run's, if it has it."""
        at = self.run[name]
        return None if at is None else self.fds[at]

    def listener(self, name: str) -> socket.socket | None:
        """One of the control's, if it has it."""
        at = self.control[name]
        return None if at is None else socket.socket(fileno=self.fds[at])

    def speak(self) -> None:
        """From here on, to whom the old process spoke, unless somebody started us to hear us."""
        fd = self.fds[self.run["stderr"]]
        if self._detached:
            sys.stderr.flush()
            os.dup2(fd, sys.stderr.fileno())
        os.close(fd)

    def socks(self) -> dict[int, socket.socket]:
        """The hosts' sockets, by their place."""
        found = enumerate(self.fds[: self.run["sockets"]])
        return {at: socket.socket(fileno=fd) for at, fd in found}


class _Device:
    """A namespace's network: its one port."""

    def __init__(self, found: _Inherited, network: Network, stack: ExitStack) -> None:
        self._found = found
        self._network = network
        self.default_guest = places(found.config).guest
        self.namespace_pid: int | None = found.run["follow"]
        self._port = self._open(stack)
        network.attach(self._port, found.options.tap_name)
        self._api = self._open_api(stack)

    def _open_api(self, stack: ExitStack) -> ApiSocket | None:
        """slirp4netns's control socket, if there is one."""
        if self._found.run["api"] is None:
            return None
        path, at = self._found.run["api"]
        listener = socket.socket(fileno=self._found.fds[at])
        return open_api_socket(path, self._network, self.default_guest, stack, listener)

    def _open(self, stack: ExitStack) -> TapPort | BessPort:
        run, mtu = self._found.run, self._found.options.mtu
        fd = self._found.fds[run["device"]]
        port: TapPort | BessPort
        if run["is_tap"]:
            port = TapPort(fd, mtu=mtu, vnet=run["vnet"])
        else:
            port = BessPort(socket.socket(fileno=fd), mtu)
        stack.callback(port.close)
        return port

    def will(self) -> Will:
        run = self._found.run
        return will_of(
            self._network,
            self._port,
            run["options"],
            follow=run["follow"],
            exit_fd=self._found.fd("exit"),
            child=self._found.fd("child"),
            inode=run["inode"],
            api=self._api,
        )

    def go_on(self, ending: Ending, stack: ExitStack) -> None:
        """It is ours now."""
        run, config = self._found.run, self._found.config
        if run["follow"] is not None:
            ending.follow(run["follow"])
        if config.auto_forward is not None and run["inode"] is not None:
            pid = Namespace(run["inode"]).pid
            guest = places(config).guest
            options.forward_auto(config, self._network, guest, pid, stack)

    def abandon(self) -> None:
        """Another process goes on, or the one before this one does."""


class _Machines:
    """A network of machines that connect, or of the one that the old process started."""

    default_guest: str | None = None
    namespace_pid: int | None = None

    def __init__(self, found: _Inherited, network: Network, stack: ExitStack) -> None:
        from slirp.machines import Server

        self._found = found
        self._network = network
        self._server = Server(network, report=log.say, when_over=network.stop)
        stack.callback(self._server.close)
        paths = found.run["paths"].items()
        self._places = {name: Renewable(Path(*made)) for name, made in paths}
        renew = {name: place.renew for name, place in self._places.items()}
        self._server.adopt(found.run["machines"], found.fds, renew)
        stack.callback(lambda: remove(network, self._places))

    def will(self) -> Will:
        return will_of_machines(
            self._network,
            self._server,
            self._found.run["options"],
            self._places,
            exit_fd=self._found.fd("exit"),
            child=self._found.fd("child"),
        )

    def go_on(self, ending: Ending, stack: ExitStack) -> None:
        """Nothing to begin with."""

    def abandon(self) -> None:
        """Another process goes on, or the one before this one does."""
        self._server.abandon()


def _go_on(
    found: _Inherited,
    sock: socket.socket,
    stack: ExitStack,
    tell: Callable[[Mapping[str, Any]], None],
) -> int:
    log.use_json(on=found.options.log_json)
    signals = SignalFd(ENDING)
    stack.callback(signals.close)
    network: Network | None = None
    served: _Device | _Machines | None = None
    try:
        network = stack.enter_context(options.make_network(found.config))
        kind = _Machines if "machines" in found.run else _Device
        served = kind(found, network, stack)
        report = network.take_over(found.values, found.socks())
        ending = _ending(found, network, served, signals, stack)
        heritage.wait_for_go(sock)
    except (
        *(ConfigError, Failure, OSError, LookupError, TypeError, ValueError),
        heritage.Broken,
    ) as error:
        if network is not None:
            network.abandon()
        if served is not None:
            served.abandon()
        certain = "" if isinstance(error, heritage.Broken) else "; the network goes on as it was"
        raise Failure(f"handover: {error}{certain}") from None
    served.go_on(ending, stack)
    return _serve(found, network, ending, stack, {"pid": os.getpid(), **report}, tell)


def _ending(
    found: _Inherited,
    network: Network,
    served: _Device | _Machines,
    signals: SignalFd,
    stack: ExitStack,
) -> Ending:
    """What may end it, the control socket among it."""
    ending = Ending(network, log.say)
    stack.callback(ending.close)
    child, exit_fd = found.fd("child"), found.fd("exit")

    def stop(number: int = signal.SIGTERM) -> None:
        if child is None:
            ending.stop()
            return
        with contextlib.suppress(ProcessLookupError):  # it ends by itself
            signal.pidfd_send_signal(child, number)

    def pass_on() -> None:
        for number, _, _ in signals.read():
            stop(number)

    if child is not None or isinstance(served, _Machines):
        network.watch(signals.fileno(), pass_on)
    else:
        ending.on_signal(signals)
    if exit_fd is not None:
        ending.on_exit_fd(exit_fd)

    def step_back() -> None:
        ending.succeeded()
        served.abandon()

    open_control(
        Options(target="0", control=found.control["path"], metrics=found.options.metrics),
        network,
        stack,
        on_stop=stop,
        heritage=served.will,
        on_successor=step_back,
        default_guest=served.default_guest,
        namespace_pid=lambda: served.namespace_pid,
        listener=found.listener("fd"),
        metrics_listener=found.listener("metrics"),
        name=found.control["name"],
    )
    return ending


def _serve(
    found: _Inherited,
    network: Network,
    ending: Ending,
    stack: ExitStack,
    report: Mapping[str, Any],
    tell: Callable[[Mapping[str, Any]], None],
) -> int:
    wishes = found.options
    log.follow(network, wishes.verbose)
    found.speak()
    tell(report)
    restrict(wishes, network, stack, log.say)
    tell_stats = options.stats_printer(wishes, network)
    status = ending.run(wishes.tap_name)
    tell_stats()
    return status


if __name__ == "__main__":
    sys.exit(main())
