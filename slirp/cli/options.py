"""The options of every command that runs a network for machines, and what is made of them.

Does not do: options about how guests come to it; each command has its own.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from ipaddress import IPv4Network
from typing import TYPE_CHECKING, Final

from slirp.cli import capture_file
from slirp.cli.failure import USAGE, Failure
from slirp.cli.forwards import ForwardSpec, parse_forward
from slirp.errors import ConfigError

if TYPE_CHECKING:
    from nic.port import Port
    from slirp.network import Network

NETWORK: Final = "10.0.2.0/24"
FIRST_LEASE: Final = 15  # offsets from the network's address
FIRST_LEASE_OF_FEW: Final = 4  # behind gateway and DNS, in a network that has no .15
NO_DNS: Final = ["none"]


def add_options(parser: ArgumentParser) -> None:
    """--network, --mtu, --dns, --forward and so on."""
    add = parser.add_argument
    add("--network", default=NETWORK, metavar="CIDR", help="the virtual one (%(default)s)")
    add("--mtu", type=int, default=1500, metavar="N", help="68 to 65521 octets (%(default)s)")
    add(
        "--dns",
        action="append",
        metavar="ADDR",
        help="resolver to ask instead of the host's; may be repeated; none: no DNS at all",
    )
    add("--no-host-loopback", action="store_true", help="the gateway is not the host's 127.0.0.1")
    add("--restrict", action="store_true", help="nothing but the network's own services")
    add("--outbound-addr", metavar="ADDR", help="the host's address that connections come from")
    add("--forward", action="append", default=[], metavar="SPEC", help="lead a host port inside")
    add(
        "--lease", action="append", default=[], metavar="MAC=ADDR",
        help="always the same address for this machine",
    )  # fmt: skip
    add("--isolate", action="store_true", help="machines do not reach each other")
    capture_file.add_options(parser)
    add("--stats", action="store_true", help="print statistics at the end, as JSON, to stderr")


def open_network(args: Namespace, stack: ExitStack) -> Network:
    """The network that the options ask for, its forwards open; closed with `stack`."""
    from slirp.network import Network

    forwards = [spec for text in args.forward for spec in parse_forward(text)]
    first = first_lease(args.network)
    network = stack.enter_context(
        Network(
            args.network,
            first_lease=first,
            mtu=args.mtu,
            host_loopback=not args.no_host_loopback,
            restrict=args.restrict,
            dns_enabled=args.dns != NO_DNS,
            resolvers=None if args.dns in (None, NO_DNS) else args.dns,
            static_leases=dict(map(_lease, args.lease)),
            outbound_addr=args.outbound_addr,
            isolate=args.isolate,
        )
    )
    _add_forwards(network, forwards, first)
    return network


def first_lease(network: str) -> str:
    """The address that the first machine gets, which is the one that forwards lead to."""
    try:
        prefix = IPv4Network(network)
    except ValueError as error:
        raise ConfigError(f"network: {error}") from None
    few = prefix.num_addresses <= FIRST_LEASE + 1
    return str(prefix.network_address + (FIRST_LEASE_OF_FEW if few else FIRST_LEASE))


def capture_of(args: Namespace, stack: ExitStack) -> Callable[[Port], Port]:
    """What puts --capture's tap around a port."""
    writer = capture_file.open_writer(args)
    if writer is None:
        return lambda port: port
    from slirp.capture import Capture

    stack.enter_context(writer)
    return Capture(writer).port


def _lease(text: str) -> tuple[str, str]:
    mac, equals, addr = text.partition("=")
    if not equals:
        raise Failure(f"--lease {text}: write MAC=ADDR, as 52:54:00:12:34:56=10.0.2.20", USAGE)
    return mac, addr


def _add_forwards(network: Network, specs: Sequence[ForwardSpec], guest: str) -> None:
    for proto, host, addr, port in specs:
        where = host if isinstance(host, str) else f"{host[0]}:{host[1]}"
        try:
            network.forward(proto, host=host, guest=(addr or guest, port))
        except OSError as error:
            raise Failure(f"--forward {proto}:{where}: {error.strerror or error}") from None


def print_stats(args: Namespace, network: Network) -> None:
    """What --stats asks for."""
    if args.stats:
        import json

        sys.stderr.write(json.dumps(network.stats()) + "\n")
