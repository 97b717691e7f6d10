"""`slirp listen`: the network of virtual machines that connect to a socket.

Machines may come, go and come back while it runs; all are on one network. It runs until it is told
to stop (Ctrl-C, SIGTERM), which is its success: the exit status is 0. With nothing but connected
descriptors it ends when the last machine has left. What happens is told on standard error, a line
per event.

Does not do: start machines (`slirp qemu` does).
"""

from __future__ import annotations

import signal
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from slirp.cli import log, options
from slirp.cli.control import open_control, tell_ready
from slirp.cli.endpoint import Endpoint, Renewable, open_endpoint, open_shared
from slirp.cli.failure import USAGE, Failure

if TYPE_CHECKING:
    from slirp.control.verbs import Will
    from slirp.machines import Server
    from slirp.network import Network

DESCRIPTION: Final = """\
Serve virtual machines. Each one gets an address by DHCP; the gateway's address
(10.0.2.2) is the host itself, unless --no-host-loopback is given.

sockets:
  unix:PATH                    -netdev stream, libkrun's unixstream; any number of machines
  tcp:[HOST:]PORT              the same on a TCP port; without HOST 127.0.0.1
  fd:N                         a socket that was passed on, listening or connected
  dgram:PATH[,MACHINE]         -netdev dgram, one machine, whose own path may be given; or
                               libkrun's unixgram, any number
  udp:[HOST:]PORT,[HOST:]PORT  -netdev dgram over UDP; our address and the machine's
  --vhost-user PATH            -netdev vhost-user; any number of machines, and the fastest
  --vfio-user PATH             -device vfio-user-pci, which becomes a PCnet-PCI II (Am79C970A)
"""
EPILOG: Final = """\
example, in two terminals:
  slirp listen --forward 2222:22 unix:/tmp/net.sock
  qemu-system-x86_64 -m 1G -cdrom debian.iso -device virtio-net-pci,netdev=n0 \\
      -netdev stream,id=n0,addr.type=unix,addr.path=/tmp/net.sock

machines that boot from the network:
  slirp listen --tftp ./boot --bootfile bios=undionly.kpxe --bootfile efi-x64=ipxe.efi \\
      --bootfile ipxe=boot.ipxe unix:/tmp/net.sock
"""
ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def configure(parser: ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.usage = "slirp listen [OPTION…] SOCKET…"
    options.add_options(parser)
    parser.add_argument(
        "--allow-remote", action="store_true", help="let machines on other hosts connect (tcp, udp)"
    )
    parser.add_argument(
        "--vhost-user", action="append", default=[], metavar="PATH",
        help="a socket, or fd:N, for machines that share their memory; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--vfio-user", action="append", default=[], metavar="PATH",
        help="the same for machines that get a PCI card, an Am79C970A; may be repeated",
    )  # fmt: skip
    parser.add_argument("sockets", nargs="*", metavar="SOCKET", help="where machines connect")


def run(args: Namespace) -> int:
    from slirp.linux.signals import SignalFd
    from slirp.machines import Server

    log.use_json(on=args.log_json)
    names = [*args.sockets, *args.vhost_user, *args.vfio_user]
    if not names:
        raise Failure("no socket to listen on; try: slirp listen unix:/tmp/net.sock", USAGE)
    with ExitStack() as stack:
        signals = SignalFd(ENDING)
        stack.callback(signals.close)
        wrap, wrap_path = options.captures_of(args, stack)
        network = options.open_network(args, stack)
        server = Server(
            network, report=report, wrap=wrap, wrap_path=wrap_path, when_over=network.stop
        )
        stack.callback(server.close)
        places: dict[str, Renewable] = {}
        stack.callback(lambda: remove(network, places))
        for endpoint in open_all(args):
            place = None if endpoint.made is None else Renewable(endpoint.made)
            if place is not None:
                places[endpoint.name] = place
            serve(server, endpoint, place)
        open_control(
            args,
            network,
            stack,
            heritage=lambda: will(network, server, args, places),
            on_successor=lambda: step_back(network, server),
        )
        report("listening on " + ", ".join(names))

        def end() -> None:
            for _ in signals.read():  # taken: they would kill when they are no longer blocked
                network.stop()

        network.watch(signals.fileno(), end)
        tell_ready(args.ready_fd)
        tell_stats = options.stats_printer(args, network)
        network.run()
        tell_stats()
    return 0


def will(
    network: Network,
    server: Server,
    args: Namespace,
    places: Mapping[str, Renewable] = MappingProxyType({}),
    **fds: int,
) -> Will:
    """What another process needs to go on with all of it."""
    from slirp.cli.will import will_of_machines

    return will_of_machines(network, server, {**vars(args), "mtu": network.mtu}, places, **fds)


def step_back(network: Network, server: Server) -> None:
    """Another process goes on."""
    log.say("handed over to another process")
    network.abandon()
    server.abandon()
    network.stop()


def remove(network: Network, places: Mapping[str, Renewable]) -> None:
    """Remove the sockets' paths, unless they are another process's."""
    for place in places.values() if not network.abandoned else ():
        place.remove()


def open_all(args: Namespace) -> Iterator[Endpoint]:
    """Open what the command line names, one after the other. Raises Failure."""
    for text in args.sockets:
        yield open_endpoint(text, allow_remote=args.allow_remote)
    for text in args.vhost_user:
        yield open_shared(text, "vhost-user")
    for text in args.vfio_user:
        yield open_shared(text, "vfio-user")


def serve(server: Server, endpoint: Endpoint, place: Renewable | None = None) -> None:
    """Have the server take this socket. `place`: where its path is."""
    if endpoint.is_datagram and place is not None and not endpoint.peer:
        server.add_datagrams(endpoint.sock, endpoint.name, place.renew)
    elif endpoint.is_datagram:
        server.add_datagram(endpoint.sock, endpoint.name, endpoint.peer)
    elif endpoint.listens:
        server.listen(endpoint.sock, endpoint.name, endpoint.protocol)
    else:
        server.add(endpoint.sock, endpoint.name, endpoint.protocol)


def report(line: str) -> None:
    """Tell the person at the terminal."""
    log.say(line)
