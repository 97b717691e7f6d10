"""What `slirp run` and `slirp attach` share: a namespace's TAP device put on a network.

Everything here is small and is imported before the namespace is made; the network itself, which
takes longer to import, comes after, while the other process sets the namespace up.

Does not do: options; each command has its own.
"""

from __future__ import annotations

import fcntl
import json
import socket
import struct
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv4Network, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from nic.tap import TapPort, open_tap
from slirp import netns
from slirp.cli.failure import Failure
from slirp.cli.forwards import ForwardSpec
from slirp.errors import ConfigError

if TYPE_CHECKING:
    from nic.port import Port
    from slirp.network import Network

GUEST_HOST: Final = 100  # the guest's address, as an offset; slirp4netns's "recommended IP"
SIOCGIFADDR: Final = 0x8915  # linux/sockios.h
TAP_NAME_MAX: Final = netns.IFNAMSIZ - 1  # octets


class Addresses(NamedTuple):
    """Where the parties of a virtual network are."""

    prefix_len: int
    gateway: str
    dns: str
    guest: str


def addresses(network: str) -> Addresses:
    """The usual ones: gateway .2, DNS .3, guest .100, or the last one of a smaller network."""
    try:
        prefix = IPv4Network(network)
    except ValueError as error:
        raise ConfigError(f"network: {error}") from None
    if prefix.prefixlen > 29:
        raise ConfigError(f"network {network}: must leave room for hosts, /29 at the longest")
    base = prefix.network_address
    guest = min(base + GUEST_HOST, prefix.broadcast_address - 1)
    return Addresses(prefix.prefixlen, str(base + 2), str(base + 3), str(guest))


def add_capture_options(parser: ArgumentParser) -> None:
    """As slirp.cli.capture_file has them, whose imports are for those who capture."""
    add = parser.add_argument
    add("--capture", type=Path, metavar="FILE.pcapng", help="keep every frame")
    add("--split", action="store_true", help="with --capture: a file for each interface")


def outbound(text: str | None) -> str | None:
    """The host's address that connections come from: an address, or an interface that has one."""
    if text is None:
        return None
    try:
        return str(IPv4Address(text))
    except ValueError:
        pass
    request = struct.pack("16s24x", text.encode()[:TAP_NAME_MAX])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            return socket.inet_ntoa(fcntl.ioctl(sock, SIOCGIFADDR, request)[20:24])
        except OSError:
            raise ConfigError(f"{text}: no IPv4 address, and no interface that has one") from None


def resolvers(addrs: Sequence[str] | None) -> Sequence[str] | None:
    """Resolvers by address, checked."""
    for addr in addrs or ():
        try:
            ip_address(addr)
        except ValueError:
            raise ConfigError(f"{addr}: a resolver is given by its address") from None
    return addrs


def make_tap(interface: netns.Interface, configure: bool = True) -> int:
    """To be run inside the namespace: open the device and configure it."""
    fd, _ = open_tap(interface.name)
    if configure:
        netns.configure(interface)
    return fd


def check_tap_name(name: str) -> str:
    if not 0 < len(name.encode()) <= TAP_NAME_MAX or "/" in name or name in (".", ".."):
        raise ConfigError(f"{name!r}: a device's name has 1 to {TAP_NAME_MAX} octets and no slash")
    return name


def captured(port: Port, args: Namespace, stack: ExitStack) -> Port:
    """The port, with what passes it kept where --capture says, if it does."""
    if args.capture is None and not args.split:
        return port
    from slirp.capture import Capture
    from slirp.cli.capture_file import open_writer

    writer = open_writer(args)
    if writer is None:
        return port
    stack.callback(writer.close)
    return Capture(writer).port(port)


def tap_port(fd: int, mtu: int, stack: ExitStack, vnet: bool = True) -> TapPort:
    """The device as a port, closed with `stack`."""
    port = TapPort(fd, mtu=mtu, vnet=vnet)
    stack.callback(port.close)
    return port


def add_forwards(network: Network, specs: list[ForwardSpec], guest: str) -> None:
    for proto, host, addr, port in specs:
        where = host if isinstance(host, str) else f"{host[0]}:{host[1]}"
        try:
            network.forward(proto, host=host, guest=(addr or guest, port))
        except OSError as error:
            raise Failure(f"--forward {proto}:{where}: {error.strerror or error}") from None


def stats_line(network: Network) -> str:
    """The statistics as one line of JSON."""
    stats: dict[str, Any] = network.stats()
    return json.dumps(stats, separators=(", ", ": "))
