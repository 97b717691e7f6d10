"""The options of every command that runs a network for machines, and what is made of them.

Does not do: options about how guests come to it; each command has its own.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv4Network, ip_address
from typing import TYPE_CHECKING, Any, Final

from slirp.cli import capture_file
from slirp.cli.failure import USAGE, Failure
from slirp.cli.forwards import ForwardSpec, parse_forward
from slirp.errors import ConfigError
from slirp.linux import syscalls

if TYPE_CHECKING:
    from nic.port import Port
    from slirp.network import Network

NETWORK: Final = "10.0.2.0/24"
FIRST_LEASE: Final = 15  # offsets from the network's address
FIRST_LEASE_OF_FEW: Final = 4  # behind gateway and DNS, in a network that has no .15
NO_DNS: Final = ["none"]
DESCRIPTORS_WANTED: Final = 10_240  # 10,000 connections, and some for the rest
SIOCGIFADDR: Final = 0x8915  # linux/sockios.h


def add_network_options(parser: ArgumentParser) -> None:
    """What the network is, for every kind of guest."""
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


def add_output_options(parser: ArgumentParser) -> None:
    """--capture and --stats."""
    capture_file.add_options(parser)
    parser.add_argument(
        "--stats", action="store_true", help="print statistics at the end, as JSON, to stderr"
    )


def add_options(parser: ArgumentParser) -> None:
    """All of them, for a network of machines."""
    add = parser.add_argument
    add_network_options(parser)
    add(
        "--lease", action="append", default=[], metavar="MAC=ADDR",
        help="always the same address for this machine",
    )  # fmt: skip
    add("--isolate", action="store_true", help="machines do not reach each other")
    add_output_options(parser)


def open_network(args: Namespace, stack: ExitStack) -> Network:
    """The network that the options ask for, its forwards open; closed with `stack`."""
    forwards = [spec for text in args.forward for spec in parse_forward(text)]
    first = first_lease(args.network)
    leases = dict(map(_lease, args.lease))
    network = make_network(args, first_lease=first, static_leases=leases, isolate=args.isolate)
    stack.enter_context(network)
    add_forwards(network, forwards, first)
    return network


def make_network(args: Namespace, **more: Any) -> Network:
    """What `add_network_options` asks for, and more of Network's own parameters."""
    from slirp.network import Network

    raise_descriptor_limit()
    dns_enabled = args.dns != NO_DNS
    return Network(
        args.network,
        mtu=args.mtu,
        host_loopback=not args.no_host_loopback,
        restrict=args.restrict,
        dns_enabled=dns_enabled,
        resolvers=_resolvers(args.dns) if dns_enabled else None,
        outbound_addr=outbound(args.outbound_addr),
        **more,
    )


def raise_descriptor_limit() -> None:
    """A connection costs a descriptor; say so when there are few."""
    limit = syscalls.raise_descriptor_limit()
    if limit < DESCRIPTORS_WANTED:
        sys.stderr.write(
            f"slirp: warning: only {limit} descriptors are allowed, and each connection takes one; "
            f"ulimit -Hn {DESCRIPTORS_WANTED} allows more\n"
        )


def _resolvers(addrs: Sequence[str] | None) -> Sequence[str] | None:
    for addr in addrs or ():
        try:
            ip_address(addr)
        except ValueError:
            raise ConfigError(f"{addr}: a resolver is given by its address") from None
    return addrs


def outbound(text: str | None) -> str | None:
    """The host's address that connections come from: an address, or an interface that has one."""
    if text is None:
        return None
    try:
        return str(IPv4Address(text))
    except ValueError:
        pass
    request = struct.pack("16s24x", text.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            return socket.inet_ntoa(fcntl.ioctl(sock, SIOCGIFADDR, request)[20:24])
        except OSError:
            raise ConfigError(f"{text}: no IPv4 address, and no interface that has one") from None


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
    from slirp.sight.capture import Capture

    stack.enter_context(writer)
    return Capture(writer).port


def _lease(text: str) -> tuple[str, str]:
    mac, equals, addr = text.partition("=")
    if not equals:
        raise Failure(f"--lease {text}: write MAC=ADDR, as 52:54:00:12:34:56=10.0.2.20", USAGE)
    return mac, addr


def add_forwards(network: Network, specs: Sequence[ForwardSpec], guest: str) -> None:
    """Open them; `guest` is the address where a forward names none. Raises Failure."""
    for proto, host, addr, port in specs:
        where = host if isinstance(host, str) else f"{host[0]}:{host[1]}"
        try:
            network.forward(proto, host=host, guest=(addr or guest, port))
        except OSError as error:
            why = error.strerror or str(error)
            if error.errno == errno.EACCES and not isinstance(host, str):
                why += "; ports below 1024 are mostly root's, choose a higher one"
            raise Failure(f"--forward {proto}:{where}: {why}") from None


def print_stats(args: Namespace, network: Network) -> None:
    """What --stats asks for."""
    if args.stats:
        import json

        sys.stderr.write(json.dumps(network.stats()) + "\n")
