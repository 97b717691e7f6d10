"""The options of every command that runs a network for machines, and what is made of them.

Does not do: options about how guests come to it; each command has its own.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

from slirp.address import addr_from_text, addr_to_text
from slirp.autoforward import is_auto
from slirp.cli import capture_file, control, log
from slirp.cli.failure import USAGE, Failure
from slirp.cli.service_options import add_dns_options, add_service_options
from slirp.config import DNS_CACHE, MTU, MTU_MAX, MTU_MIN, NETWORK, NETWORK6, PORT_SHARE, Config
from slirp.config_fields import BOOT_KINDS
from slirp.errors import ConfigError
from slirp.linux import syscalls

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from dma.transfer import DmaPath
    from nic.port import Port
    from slirp.network import Network

NO_DNS: Final = ["none"]
# The fields of a Config that have an option, and its name.
OPTIONS: Final = {
    "network": "--network",
    "network6": "--network6",
    "ipv4_only": "--ipv4-only",
    "ipv6_only": "--ipv6-only",
    "mtu": "--mtu",
    "resolvers": "--dns",
    "dns_enabled": "--dns",
    "domain_resolvers": "--dns",
    "names": "--dns-record",
    "hosts": "--dns-hosts",
    "dns_cache": "--dns-cache",
    "search": "--search",
    "domain": "--domain",
    "host_loopback": "--no-host-loopback",
    "restrict": "--restrict",
    "outbound_addr": "--outbound-addr",
    "outbound_addr6": "--outbound-addr6",
    "forwards": "--forward",
    "auto_forward": "--forward",
    "static_leases": "--lease",
    "static_leases6": "--lease",
    "ra_enabled": "--no-ra",
    "nat64": "--nat64",
    "isolate": "--isolate",
    "port_share": "--port-share",
    "tftp": "--tftp",
    "http": "--http",
    "bootfiles": "--bootfile",
    "next_server": "--next-server",
    "ntp": "--ntp",
    "guest_forwards": "--guestfwd",
}
DESCRIPTORS_WANTED: Final = 10_240  # 10,000 connections, and some for the rest
SIOCGIFADDR: Final = 0x8915  # linux/sockios.h
IF_INET6: Final = "/proc/net/if_inet6"  # address, index, prefix, scope, flags, name
SCOPES_NEAR: Final = 0x30  # net/ipv6.h: IPV6_ADDR_LOOPBACK, IPV6_ADDR_LINKLOCAL


def add_network_options(parser: ArgumentParser) -> None:
    """What the network is, for every kind of guest."""
    add = parser.add_argument
    add(
        "--config", metavar="FILE.toml",
        help="options from a file, and more: `slirp config` prints one",
    )  # fmt: skip
    add("--network", default=NETWORK, metavar="CIDR", help="the virtual one (%(default)s)")
    add_ipv6_options(parser)
    add(
        "--mtu", type=int, default=MTU, metavar="N",
        help=f"{MTU_MIN} to {MTU_MAX} bytes (%(default)s)",
    )  # fmt: skip
    add_dns_options(parser)
    add("--no-host-loopback", action="store_true", help="the gateway is not the host's 127.0.0.1")
    add("--restrict", action="store_true", help="only the network's own services")
    add("--outbound-addr", metavar="ADDR", help="the host's address that connections come from")
    add("--outbound-addr6", metavar="ADDR", help="the same for IPv6")
    add(
        "--forward", action="append", default=[], metavar="SPEC",
        help="forward a host port to a guest: 8080:80, 127.0.0.1:53:53/udp, /run/web.sock:80",
    )  # fmt: skip
    add_service_options(parser)


def add_boot_options(parser: ArgumentParser) -> None:
    """What machines that boot from the network are told."""
    add = parser.add_argument
    add(
        "--bootfile", action="append", default=[], metavar="[KIND=]NAME|URL",
        help="what to boot: a file of --tftp or --http, or a URL; "
        f"KIND is {', '.join(BOOT_KINDS)}; may be repeated",
    )  # fmt: skip
    add("--next-server", metavar="ADDR", help="TFTP server to boot from instead of the gateway")


def add_ipv6_options(parser: ArgumentParser) -> None:
    """--network6, --ipv4-only, --ipv6-only."""
    add = parser.add_argument
    add("--network6", default=NETWORK6, metavar="CIDR", help="its IPv6 prefix (%(default)s)")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--ipv4-only", action="store_true", help="guests have no IPv6")
    only.add_argument("--ipv6-only", action="store_true", help="guests have no IPv4")


def add_output_options(parser: ArgumentParser) -> None:
    """--capture, --stats, --control, -v and the like."""
    capture_file.add_output_options(parser)
    control.add_options(parser)


def add_options(parser: ArgumentParser) -> None:
    """All of them, for a network of machines."""
    add_machines_options(parser)
    add_output_options(parser)


def add_machines_options(parser: ArgumentParser) -> None:
    """What the network is, for machines that come and go."""
    add = parser.add_argument
    add_network_options(parser)
    add(
        "--lease", action="append", default=[], metavar="MAC=ADDR",
        help="always the same address for this machine; of IPv6 also DUID=ADDR",
    )  # fmt: skip
    add("--isolate", action="store_true", help="machines do not reach each other")
    add(
        "--port-share", type=float, default=PORT_SHARE, metavar="PART",
        help="of descriptors, flows and memory, for one machine among others (%(default)s)",
    )  # fmt: skip
    add_boot_options(parser)


def open_network(args: Namespace, stack: ExitStack) -> Network:
    """The network that the options ask for, its forwards open; closed with `stack`."""
    config = make_machines_config(args)
    if config.auto_forward is not None:
        why = "machines do not say on which ports they listen; name the ports"
        raise Failure(f"--forward {config.auto_forward}: {why}", USAGE)
    return stack.enter_context(make_network(config))


def make_machines_config(args: Namespace) -> Config:
    """What `add_options` asks for. Raises Failure."""
    leases = list(map(_lease, args.lease))
    with named(OPTIONS):
        return configured(
            args,
            static_leases={who: addr for who, addr in leases if ":" not in addr},
            static_leases6={who: addr for who, addr in leases if ":" in addr},
            isolate=args.isolate,
            port_share=args.port_share,
            bootfiles=dict(map(_bootfile, args.bootfile)),
            next_server=args.next_server,
            **_network_fields(args),
        )


def make_config(args: Namespace) -> Config:
    """What `add_network_options` asks for. Raises Failure."""
    with named(OPTIONS):
        return configured(args, **_network_fields(args))


def _network_fields(args: Namespace) -> dict[str, Any]:
    return {
        "network": args.network,
        "network6": args.network6,
        "ipv4_only": args.ipv4_only,
        "ipv6_only": args.ipv6_only,
        "mtu": args.mtu,
        "host_loopback": not args.no_host_loopback,
        "restrict": args.restrict,
        "dns_enabled": args.dns != NO_DNS,
        "outbound_addr": outbound(args.outbound_addr),
        "outbound_addr6": outbound6(args.outbound_addr6),
        **forward_fields(args.forward),
        **service_fields(args),
    }


def configured(args: Namespace, **fields: Any) -> Config:
    """The Config of these fields, and of the file where the command line says nothing.

    Raises ConfigError.
    """
    return Config(**fields | not_given(args, getattr(args, "config_fields", {})))


def not_given(args: Namespace | None, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a file's fields that the command line says nothing about."""
    given = getattr(args, "config_given", ())
    return {
        name: value
        for name, value in fields.items()
        if OPTIONS.get(name, "").lstrip("-").replace("-", "_") not in given
    }


def forward_fields(words: Sequence[str]) -> dict[str, Any]:
    """What --forward says: forwards, and `auto`."""
    wishes = [word for word in words if is_auto(word)]
    if len(wishes) > 1:
        raise Failure(f"--forward {wishes[1]}: auto is given twice; join the rules", USAGE)
    return {
        "forwards": [word for word in words if not is_auto(word)],
        "auto_forward": wishes[0] if wishes else None,
    }


def service_fields(args: Namespace) -> dict[str, Any]:
    """What slirp.cli.service_options asks for. Raises Failure."""
    return {
        "resolvers": resolvers_of(args.dns),
        "domain_resolvers": domain_resolvers_of(args.dns),
        "names": records_of(args.dns_record),
        "hosts": args.dns_hosts,
        "dns_cache": DNS_CACHE if args.dns_cache is None else args.dns_cache,
        "search": args.search or (),
        "domain": args.domain,
        "tftp": args.tftp,
        "http": args.http,
        "ntp": args.ntp,
        "ra_enabled": not args.no_ra,
        "nat64": args.nat64,
        "guest_forwards": args.guestfwd,
    }


def resolvers_of(words: Sequence[str] | None) -> list[str] | None:
    """The resolvers for everything that --dns names; None: the host's."""
    found = [word for word in words or () if "=" not in word]
    return found if found and found != NO_DNS else None


def domain_resolvers_of(words: Sequence[str] | None) -> dict[str, list[str]]:
    """Those for one domain."""
    found: dict[str, list[str]] = {}
    for word in words or ():
        domain, equals, resolver = word.partition("=")
        if equals:
            found.setdefault(domain, []).extend([] if resolver == "none" else [resolver])
    return found


def records_of(words: Sequence[str]) -> dict[str, list[str]]:
    """What --dns-record says. Raises Failure."""
    found: dict[str, list[str]] = {}
    for word in words:
        name, equals, addr = word.partition("=")
        if not equals:
            raise Failure(f"--dns-record {word}: write NAME=ADDR, as web.test=10.0.2.15", USAGE)
        found.setdefault(name, []).append(addr)
    return found


@contextlib.contextmanager
def named(options: Mapping[str, str]) -> Iterator[None]:
    """Have mistakes in a Config told by the options' names. Raises Failure."""
    try:
        yield
    except ConfigError as error:
        option = options.get(error.field, error.field)
        raise Failure(option + str(error).removeprefix(error.field), USAGE) from None


def leading_to(config: Config, guest: str) -> Config:
    """The same with the forwards that name no guest leading to this one."""
    return config.replace(
        forwards=[
            spec if spec.guest_addr is not None else spec._replace(guest_addr=guest)
            for spec in config.forwards
        ]
    )


def forward_auto(
    config: Config, network: Network, guest: str, pid: Callable[[], int | None], stack: ExitStack
) -> None:
    """What `--forward auto` asks for; `pid`: a process in the namespace."""
    if config.auto_forward is None:
        return
    from slirp.autoforward import parse_auto
    from slirp.control.auto import AutoForward

    auto = AutoForward(network, guest, parse_auto(config.auto_forward), pid, log.say)
    stack.callback(auto.close)


def make_network(config: Config) -> Network:
    """A network, and as many descriptors as the process may have for it. Raises Failure."""
    from slirp.network import Network

    raise_descriptor_limit()
    try:
        network = Network(config)
        tell_chosen(config, network)
        return network
    except OSError as error:
        if error.filename is None:
            raise
        why = error.strerror or str(error)
        for option, folder in (("--tftp", config.tftp), ("--http", config.http)):
            if error.filename == folder:
                raise Failure(f"{option} {folder}: {why}") from None
        if not config.forwards:
            raise
        if error.errno == errno.EACCES and not error.filename.startswith("/"):
            why += "; ports below 1024 are mostly root's, choose a higher one"
        raise Failure(f"--forward {error.filename}: {why}") from None


def tell_chosen(config: Config, network: Network) -> None:
    """Say which ports were chosen where any would do."""
    for spec, forward in zip(config.forwards, network.forwards(), strict=True):
        if not isinstance(spec.host, str) and not spec.host[1]:
            sys.stderr.write(f"slirp: forward {forward}\n")


def raise_descriptor_limit() -> None:
    """A connection costs a descriptor; say so when there are few."""
    limit = syscalls.raise_descriptor_limit()
    if limit < DESCRIPTORS_WANTED:
        log.say(
            f"warning: only {limit} descriptors are allowed, and each connection takes one; "
            f"ulimit -Hn {DESCRIPTORS_WANTED} allows more"
        )


def outbound(text: str | None) -> str | None:
    """The host's address that connections come from: an address, or an interface that has one."""
    if text is None or _is_address(text, 4):
        return text
    request = struct.pack("16s24x", text.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            return socket.inet_ntoa(fcntl.ioctl(sock, SIOCGIFADDR, request)[20:24])
        except OSError:
            why = "no IPv4 address, and no interface that has one"
            raise ConfigError(f"outbound_addr {text}: {why}", "outbound_addr") from None


def outbound6(text: str | None) -> str | None:
    """The same of IPv6; of an interface's, the first that reaches further than the link."""
    if text is None or _is_address(text, 16):
        return text
    with contextlib.suppress(OSError), open(IF_INET6) as file:
        for line in file:
            addr, _, _, scope, _, name = line.split()
            if name == text and int(scope, 16) & SCOPES_NEAR == 0:
                return addr_to_text(bytes.fromhex(addr))
    why = "no IPv6 address, and no interface that has one"
    raise ConfigError(f"outbound_addr6 {text}: {why}", "outbound_addr6")


def _is_address(text: str, size: int) -> bool:
    try:
        return len(addr_from_text(text)) == size
    except ValueError:
        return False


def capture_of(args: Namespace | capture_file.Output, stack: ExitStack) -> Callable[[Port], Port]:
    """What puts --capture's tap around a port."""
    writer = capture_file.open_writer(args)
    if writer is None:
        return lambda port: port
    from slirp.sight.capture import Capture

    stack.enter_context(writer)
    return Capture(writer).port


def captures_of(
    args: Namespace | capture_file.Output, stack: ExitStack
) -> tuple[Callable[[Port], Port], Callable[[str, DmaPath], DmaPath]]:
    """The same, and what puts it into the way to a virtual machine's memory."""
    writer = capture_file.open_writer(args)
    if writer is None:
        return lambda port: port, lambda stage, path: path
    from slirp.sight.capture import Capture

    stack.enter_context(writer)
    capture = Capture(writer)
    return capture.port, capture.tap


def _lease(text: str) -> tuple[str, str]:
    mac, equals, addr = text.partition("=")
    if not equals:
        raise Failure(f"--lease {text}: write MAC=ADDR, as 52:54:00:12:34:56=10.0.2.20", USAGE)
    return mac, addr


def _bootfile(text: str) -> tuple[str, str]:
    """Kind and name; a name with an equals sign in it is one, as of a URL."""
    kind, equals, name = text.partition("=")
    return (kind, name) if equals and kind in BOOT_KINDS else ("", text)


def stats_printer(args: Namespace | capture_file.Output, network: Network) -> Callable[[], None]:
    """What prints what --stats asks for. Its module is imported here, while there are descriptors
    to import it with."""
    if not args.stats:
        return lambda: None
    import json

    def tell() -> None:
        sys.stderr.write(json.dumps(network.stats()) + "\n")

    return tell
