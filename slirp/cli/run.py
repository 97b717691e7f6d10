"""`slirp run`: a command in a network namespace of its own, with this network in it.

The command is forked first; while its process makes the namespaces and the TAP device, this one
imports the network. It then serves the device until the command ends. Terminal, environment,
working directory and identity stay as they are; what is the command's own is its network, and
with it /etc/resolv.conf and /etc/hosts.

Signals that somebody sends to this process are passed on; those of a terminal (Ctrl-C) reach the
command by themselves, since it is in the same process group. The exit status is the command's, 128
plus the signal that ended it, 126 or 127 where it cannot be started.

What a command leaves behind when it ends (bytes that its kernel still has to send) is carried to
the host before the network goes away, for DRAIN_MAX at the longest.

Does not do: a terminal of its own, detaching, restarting.
"""

from __future__ import annotations

import signal
import time
from argparse import REMAINDER, ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

from slirp.cli import log, options, tap
from slirp.cli.control import open_control, tell_ready
from slirp.cli.failure import FAILED, USAGE, Failure
from slirp.linux import netns
from slirp.linux.command import Command
from slirp.linux.signals import SI_KERNEL, SignalFd

if TYPE_CHECKING:
    from nic.tap import TapPort
    from slirp.control.verbs import Will
    from slirp.network import Network

DESCRIPTION: Final = """\
Run a command in a network namespace of its own. It reaches the host's network through this one:
the gateway's address (10.0.2.2, fd00::2) is the host itself, unless --no-host-loopback is given.
As an ordinary user this needs user namespaces; as root nothing.
"""
EPILOG: Final = """\
examples:
  slirp run -- curl https://example.org/
  slirp run --forward 8080:80 -- python3 -m http.server 80
  slirp run --forward 'auto:!22' -- ./server
  slirp run --dns-record db.test=10.0.2.2 --guestfwd :5432=/run/postgresql/.s.PGSQL.5432 -- ./app
  slirp run --capture curl.pcapng --stats -- curl http://10.0.2.2:8000/

forwards: [HOST:]PORT[:[GUEST:]PORT][/udp], FIRST-LAST for ranges, 0:PORT for a port that is free,
  /PATH:PORT for a Unix socket, auto[:RULES] for whatever listens; behind them ,proxy=1|2 and
  ,source=gateway
resolvers: ADDR, ADDR:PORT, [ADDR]:PORT or ADDR#PORT; for one domain DOMAIN=ADDR
"""
DEVICE: Final = "tap0"
UNCONFINED: Final = {"sandbox": False, "seccomp": False}  # as attach has them
RESOLV_CONF: Final = "/etc/resolv.conf"
LOCALHOST: Final = "127.0.0.1 localhost\n::1 localhost ip6-localhost\n"
FORWARDED: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
DRAIN_QUIET: Final = 0.05  # seconds without a frame after which nothing more is expected
DRAIN_MAX: Final = 5.0  # seconds that what the command left behind may take
END_FOR: Final = 2.0  # seconds that the command has to end when its device is gone


def configure(parser: ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.usage = "slirp run [OPTION…] -- COMMAND [ARG…]"
    add = parser.add_argument
    options.add_network_options(parser)
    add("--map-root", action="store_true", help="be root in there (ordinary users)")
    options.add_output_options(parser)
    add("command", nargs=REMAINDER, metavar="COMMAND [ARG…]")


def run(args: Namespace) -> int:
    argv = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not argv:
        raise Failure("no command to run; try: slirp run -- curl https://example.org/", USAGE)
    log.use_json(on=args.log_json)
    config = options.make_config(args)
    where = tap.places(config)
    interface = where.interface(DEVICE, config.mtu)
    with ExitStack() as stack:
        signals = SignalFd(FORWARDED)
        stack.callback(signals.close)
        try:
            command = Command(
                argv,
                lambda: tap.make_tap(interface),
                files=lambda: files_for(where, dns=config.dns_enabled, search=config.search),
                map_root=args.map_root,
                before_exec=signals.restore_mask,
            )
            stack.callback(command.close)
            config = options.leading_to(config, where.guest)
            network = stack.enter_context(options.make_network(config))
            port = tap.tap_port(command.ready(), config.mtu, stack)
        except netns.NamespaceError as error:
            raise Failure(str(error)) from None
        network.attach(options.capture_of(args, stack)(port), DEVICE)
        open_control(
            args,
            network,
            stack,
            on_stop=lambda: command.signal(signal.SIGTERM),
            default_guest=where.guest,
            namespace_pid=lambda: command.pid,
            heritage=lambda: _will(
                network,
                port,
                {**vars(args), "tap_name": DEVICE, "mtu": config.mtu, **UNCONFINED},
                command,
            ),
            on_successor=lambda: _step_back(network),
        )
        options.forward_auto(config, network, where.guest, lambda: command.pid, stack)
        tell_ready(args.ready_fd)
        tell_stats = options.stats_printer(args, network)
        status = _serve(network, command, signals)
        tell_stats()
        return status


def files_for(where: tap.Places, dns: bool, search: Sequence[str] | None = None) -> dict[str, str]:
    """The command's own /etc/resolv.conf and /etc/hosts."""
    from slirp.services.resolv import read_file

    kept = [f"search {' '.join(search)}\n"] if search else []
    words = [["options"]] if search else [["search"], ["domain"], ["options"]]
    try:
        for line in read_file(RESOLV_CONF).decode("utf-8", "replace").splitlines():
            if line.split()[:1] in words:
                kept.append(line + "\n")
    except OSError:  # the host has none: nothing to keep
        pass
    if dns:  # one: it answers for both families, and musl asks all that are named at once
        kept.append(f"nameserver {where.each[0].dns}\n")
    return {"resolv.conf": "".join(kept), "hosts": LOCALHOST + "".join(_hosts(where))}


def _hosts(where: tap.Places) -> Iterator[str]:
    import os

    for at in where.each:
        yield f"{at.gateway} _gateway\n{at.guest} {os.uname().nodename}\n"


def _serve(network: Network, command: Command, signals: SignalFd) -> int:
    from nic.port import DeviceGone

    def pass_on() -> None:
        for number, code, sender in signals.read():
            if code != SI_KERNEL and sender != command.pid:
                command.signal(number)

    network.watch(signals.fileno(), pass_on)
    network.watch(command.pidfd, network.stop)
    command.start()
    try:
        network.run()
        if network.abandoned:
            return _wait(command, signals)
        network.unwatch(command.pidfd)
        status = command.wait()
        _drain(network)
    except DeviceGone as error:
        log.say(f"{DEVICE}: {error.strerror}; ending the command")
        _end(command)
        return FAILED
    return status


def _will(network: Network, port: TapPort, wishes: Mapping[str, Any], command: Command) -> Will:
    from slirp.cli.will import inode_of, will_of

    pid, child = command.pid, command.pidfd
    return will_of(network, port, wishes, follow=pid, child=child, inode=inode_of(pid))


def _step_back(network: Network) -> None:
    """Another process goes on with the network; the command is still ours to wait for."""
    log.say("handed over to another process")
    network.abandon()
    network.stop()


def _wait(command: Command, signals: SignalFd) -> int:
    """Pass signals on until the command has ended."""
    import select

    while True:
        ready, _, _ = select.select([command.pidfd, signals.fileno()], [], [])
        if command.pidfd in ready:
            return command.wait()
        for number, code, sender in signals.read():
            if code != SI_KERNEL and sender != command.pid:
                command.signal(number)


def _drain(network: Network) -> None:
    """Carry on until no flow is left or nothing moves: the command's kernel may still send."""
    until = time.monotonic() + DRAIN_MAX
    while network.stats()["tcp"]["flows"] and time.monotonic() < until:
        if not network.poll(DRAIN_QUIET):
            return


def _end(command: Command) -> None:
    import select

    command.signal(signal.SIGTERM)
    if not select.select([command.pidfd], [], [], END_FOR)[0]:
        command.signal(signal.SIGKILL)
    command.wait()
