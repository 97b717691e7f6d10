"""A virtual network: the gateway, its services, its guests' ports, and the loop that drives them.

    net = Network(network="10.0.2.0/24")            # gateway .2, DNS .3, first lease .15
    net.attach(port)                                # any nic.port.Port
    net.forward("tcp", host=("127.0.0.1", 8080), guest=("10.0.2.15", 80))
    net.run()                                       # or net.poll(timeout); net.fileno()

`Network` checks the configuration, builds the stack and the relays from it and hands everything on.
Whoever has a loop of their own waits on `fileno()` and calls `poll(0)` when it is readable: it is
readable for deadlines too.

Does not do: anything to a packet.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from slirp.address import addr_from_text, addr_to_text, mac_from_text, mac_to_text
from slirp.errors import ConfigError
from slirp.flow import Nat
from slirp.host.attachment import Attachment
from slirp.host.dispatch import Dispatcher
from slirp.host.forward import Forward, Forwards, HostAddress
from slirp.host.loop import READABLE, WRITABLE, Loop, Timed
from slirp.services.dhcp import DhcpConfig, DhcpServer
from slirp.services.dns import DnsService
from slirp.services.resolv import ResolvConf
from slirp.stack import Stack

if TYPE_CHECKING:
    from nic.port import Port

MTU_MIN: Final = 68  # octets, RFC 791 §3.2
MTU_MAX: Final = 65521  # octets: 65,535 with the Ethernet header
HOLDER_FOR: Final = 60.0  # seconds that an address counts as used after its guest was seen
GATEWAY_HOST: Final = 2  # offsets from the network's address, as users of slirp know them
DNS_HOST: Final = 3
HOST_NAMES: Final = ("gateway.slirp.internal", "host.slirp.internal", "_gateway")
DNS_NAMES: Final = ("dns.slirp.internal",)


class Network:
    """One virtual network. Close it, or use it in a `with` statement.

    - `network`: its IPv4 prefix; `gateway`, `dns`, `first_lease`: addresses in it (.2, .3, .15).
    - `mtu`: octets of an IP packet, told to guests by DHCP; `mac`: the gateway's.
    - `host_loopback`: the gateway's address leads to the host's 127.0.0.1.
    - `restrict`: guests reach only the network's own services, each other and who comes to them.
    - `dns_enabled`: the DNS address answers; `resolvers`: ask these instead of `resolv_conf`'s.
    - `names`: further DNS names, each with its addresses.
    - `hostname`, `domain`, `search`, `static_leases` (MAC → address): for DHCP.
    - `outbound_addr`: the host's address that connections come from.
    - `isolate`: guests do not reach each other; `clock`: monotonic seconds.

    Raises ConfigError for a configuration that cannot work.
    """

    def __init__(
        self,
        network: str = "10.0.2.0/24",
        *,
        gateway: str | None = None,
        dns: str | None = None,
        first_lease: str | None = None,
        mtu: int = 1500,
        mac: str | None = None,
        host_loopback: bool = True,
        restrict: bool = False,
        dns_enabled: bool = True,
        dhcp_enabled: bool = True,
        resolv_conf: str = "/etc/resolv.conf",
        resolvers: Sequence[str] | None = None,
        hostname: str = "",
        domain: str = "",
        search: Iterable[str] = (),
        static_leases: Mapping[str, str] | None = None,
        names: Mapping[str, Sequence[str]] | None = None,
        outbound_addr: str | None = None,
        isolate: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        prefix = _prefix(network)
        if outbound_addr is not None:
            _ipv4("outbound_addr", outbound_addr)
        if not MTU_MIN <= mtu <= MTU_MAX:
            raise ConfigError(f"mtu {mtu}: must be {MTU_MIN} to {MTU_MAX}")
        self.prefix = prefix
        self.mtu = mtu
        self.gateway = _host("gateway", gateway, prefix, GATEWAY_HOST)
        self.dns = _host("dns", dns, prefix, DNS_HOST)
        if self.gateway == self.dns:
            raise ConfigError("gateway and dns: must be two addresses")
        gateway_addr, dns_addr = addr_from_text(self.gateway), addr_from_text(self.dns)
        self.mac = mac or mac_to_text(b"\x52\x55" + gateway_addr)
        self._nat = Nat(
            prefix=prefix.network_address.packed,
            mask=prefix.netmask.packed,
            gateway=gateway_addr,
            dns=dns_addr,
            host_loopback=host_loopback,
            restrict=restrict,
        )
        config = DhcpConfig(
            network=prefix,
            gateway=gateway_addr,
            dns=(dns_addr,) if dns_enabled else (),
            first_lease=_ipv4("first_lease", first_lease) if first_lease else None,
            mtu=mtu,
            hostname=hostname,
            domain=domain,
            search=tuple(search),
            static_leases={
                _mac("static_leases", key): _ipv4("static_leases", value)
                for key, value in (static_leases or {}).items()
            },
            omit_router=restrict,
            reserved=(dns_addr,),
        )
        self._dhcp = DhcpServer(config, self._holder) if dhcp_enabled else None
        self._resolv = ResolvConf(resolv_conf)
        self._resolvers = _resolvers(resolvers)
        local = _names(gateway_addr, dns_addr, host_loopback, names or {})
        self._dns = _dns_service(local, self._servers)
        self._stack = Stack(
            nat=self._nat,
            mac=_station("mac", self.mac),
            mtu=mtu,
            dhcp=self._dhcp,
            dns_enabled=dns_enabled,
        )
        self._stack.isolated = isolate
        self._assemble(outbound_addr, clock)

    def _assemble(self, outbound_addr: str | None, clock: Callable[[], float]) -> None:
        """The loop, and what it drives, around the stack and its services."""
        self._loop = Loop(clock)
        self._dispatcher = Dispatcher(
            self._loop,
            self._stack,
            self._nat,
            mtu=self.mtu,
            dns=self._dns,
            outbound_addr=outbound_addr,
        )
        self._loop.add_settler(self._dispatcher.settle_ports)
        relays = self._dispatcher
        self._forwards = Forwards(
            self._loop, self._stack, relays.tcp, relays.udp, relays.attachments
        )
        self._stack.on_guest = self._forwards.guest_seen
        self._counters: dict[str, Mapping[str, int]] = {}  # of those who are around the network
        self._attached = 0
        self._stopping = False
        self._closed = False

    # Guests

    def attach(self, port: Port, name: str | None = None) -> Attachment:
        """Put a port on the network; what is returned is for `detach`.

        Raises ConfigError where the port cannot carry the network's MTU.
        """
        if port.max_frame < 14 + self.mtu:
            fits = port.max_frame - 14
            raise ConfigError(f"mtu {self.mtu}: this port carries {fits} octets at the most")
        self._attached += 1
        attachment = Attachment(port, name or f"port{self._attached}", self._attached)
        self._dispatcher.attachments.append(attachment)
        self._stack.ports += 1

        def ready(events: int, now: float) -> None:
            self._dispatcher.handle_port(attachment, now)

        self._loop.register(port.fileno(), READABLE, ready)
        return attachment

    def detach(self, attachment: Attachment) -> None:
        """Take a port off; its flows are reset."""
        if attachment in self._dispatcher.attachments:
            self._dispatcher.attachments.remove(attachment)
            self._loop.unregister(attachment.port.fileno())
            self._stack.forget_port(attachment)
            self._dispatcher.drop_port(attachment)

    def forward(self, proto: str, *, host: HostAddress, guest: tuple[str, int]) -> Forward:
        """Lead a host address (or the path of a Unix socket) to a guest; the address as bound.

        Raises ConfigError, or OSError where the host's address is not to be had.
        """
        _host("guest", guest[0], self.prefix, 0)
        return self._forwards.add(proto, host, guest)

    def remove_forward(self, number: int) -> bool:
        """Close a forward; connections that are open stay. False: no such forward."""
        return self._forwards.remove(number)

    def forwards(self) -> list[Forward]:
        """The forwards that are open."""
        return self._forwards.listing()

    def use_resolvers(self, resolvers: Sequence[str] | None) -> None:
        """Ask these from now on; None: the ones that resolv.conf names."""
        self._resolvers = _resolvers(resolvers)

    # The loop

    def fileno(self) -> int:
        """A descriptor that is readable when poll(0) has something to do."""
        return self._loop.fileno()

    def poll(self, timeout: float | None = 0.0) -> int:
        """One turn of the loop, waiting at most `timeout` seconds; the events handled."""
        return self._loop.turn(timeout)

    @property
    def now(self) -> float:
        """The instant of the loop's turn, on the network's clock."""
        return self._loop.now

    def watch(self, fd: int, ready: Callable[[], None], *, writing: bool = False) -> None:
        """Call `ready` from the loop whenever `fd` is readable; with `writing`, writable."""
        events = WRITABLE if writing else READABLE
        self._loop.register(fd, events, lambda events, now: ready())

    def visit_at(self, timed: Timed, at: float) -> None:
        """Call `timed.handle_timeout(now)` from the loop at `at`, or before."""
        self._loop.visit_at(timed, at)

    def rest(self, fd: int) -> None:
        """Leave a watched `fd` alone for a tenth of a second: it cannot be served now."""
        self._loop.rest(fd)

    def unwatch(self, fd: int) -> None:
        """Forget `fd`."""
        self._loop.unregister(fd)

    def run(self) -> None:
        """Turn until `stop()`, also one that came before."""
        turn = self._loop.turn
        while not self._stopping:
            turn(None)
        self._stopping = False

    def stop(self) -> None:
        """Have `run()` return after this turn; signal handlers and other threads may call it."""
        self._stopping = True
        self._loop.wake()

    # What is going on

    def stats(self) -> dict[str, Any]:
        """Counters, as JSON has them."""
        stack, relays = self._stack, self._dispatcher
        return {
            "ports": {
                a.name: {"frames_in": a.frames_in, "frames_out": a.frames_out, "lost": a.lost}
                for a in relays.attachments
            },
            "malformed": {f"{layer}: {why}": n for (layer, why), n in stack.malformed.items()},
            "refused": dict(stack.refused),
            "tcp": {
                "flows": len(relays.tcp.flows),
                "opened": relays.tcp.opened,
                "refused": relays.tcp.refused,
                "octets_to_guest": relays.tcp.feeder.to_guest,
                "octets_to_host": relays.tcp.to_host,
                "octets_copied": relays.tcp.copied,
            },
            "udp": {
                "mappings": len(relays.udp.mappings),
                "datagrams_to_guest": relays.udp.to_guest,
                "datagrams_to_host": relays.udp.to_host,
                "octets_copied": relays.udp.copied,
                "failed": relays.udp.failed,
            },
            "icmp": {
                "echoes": relays.ping.sent,
                "replies": relays.ping.answered,
                "prohibited": relays.ping.prohibited,
            },
            "dns": dict(self._dns.stats),
            "dhcp": dict(self._dhcp.stats) if self._dhcp else {},
            **{name: dict(counters) for name, counters in self._counters.items()},
        }

    def add_counters(self, name: str, counters: Mapping[str, int]) -> None:
        """Show these in `stats()` too, as they are then."""
        self._counters[name] = counters

    def flows(self) -> list[dict[str, Any]]:
        """TCP flows and UDP mappings."""
        relays = self._dispatcher
        out: list[dict[str, Any]] = [
            {
                "proto": "tcp",
                "state": flow.conn.state.value,
                "guest": _text(flow.key[:4], flow.key[8:10]),
                "remote": _text(flow.key[4:8], flow.key[10:12]),
            }
            for flow in relays.tcp.flows.values()
        ]
        out += [
            {"proto": "udp", "guest": f"{addr_to_text(addr)}:{port}"}
            for addr, port in relays.udp.mappings
        ]
        return out

    def leases(self) -> list[dict[str, Any]]:
        """DHCP leases: address, MAC, seconds left."""
        if self._dhcp is None:
            return []
        now = self._loop.now
        return [
            {
                "address": addr_to_text(lease.addr),
                "mac": mac_to_text(lease.mac),
                "hostname": lease.hostname.decode("ascii", "replace"),
                "expires_in": _seconds(lease.expires_at - now),
            }
            for lease in self._dhcp.leases(now)
        ]

    def close(self) -> None:
        """Close all sockets; ports stay their owners'."""
        if not self._closed:
            self._closed = True
            self._forwards.close()
            self._dispatcher.close()
            self._loop.close()

    def __enter__(self) -> Network:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _servers(self, now: float) -> Sequence[str]:
        return self._resolv.servers(now) if self._resolvers is None else self._resolvers

    def _holder(self, addr: bytes) -> bytes | None:
        guest = self._stack.guests.get(addr)
        if guest is None or self._loop.now - guest.seen_at > HOLDER_FOR:
            return None
        return guest.mac


def _prefix(network: str) -> ipaddress.IPv4Network:
    try:
        prefix = ipaddress.IPv4Network(network)
    except ValueError as error:
        raise ConfigError(f"network: {error}") from None
    if prefix.prefixlen > 29:
        raise ConfigError(f"network {network}: must leave room for hosts, /29 at the longest")
    return prefix


def _host(what: str, given: str | None, prefix: ipaddress.IPv4Network, offset: int) -> str:
    if given is None:
        return str(prefix.network_address + offset)
    try:
        addr = ipaddress.IPv4Address(given)
    except ValueError as error:
        raise ConfigError(f"{what}: {error}") from None
    if addr not in prefix or addr in (prefix.network_address, prefix.broadcast_address):
        raise ConfigError(f"{what} {given}: must be a host address in {prefix}")
    return given


def _ipv4(what: str, text: str) -> bytes:
    try:
        return ipaddress.IPv4Address(text).packed
    except ValueError as error:
        raise ConfigError(f"{what}: {error}") from None


def _address(what: str, text: str) -> bytes:
    try:
        return addr_from_text(text)
    except ValueError as error:
        raise ConfigError(f"{what}: {error}") from None


def _dns_service(
    names: Mapping[str, Sequence[bytes]], servers: Callable[[float], Sequence[str]]
) -> DnsService:
    try:
        return DnsService(names, servers)
    except ValueError as error:
        raise ConfigError(f"names: {error}") from None


def _mac(what: str, text: str) -> bytes:
    try:
        return mac_from_text(text)
    except ValueError as error:
        raise ConfigError(f"{what}: {error}") from None


def _station(what: str, text: str) -> bytes:
    mac = _mac(what, text)
    if mac[0] & 1:
        raise ConfigError(f"{what} {text}: must not be a group address")
    return mac


def _resolvers(given: Sequence[str] | None) -> tuple[str, ...] | None:
    """Addresses of either family; a name could not be asked for before there is a resolver."""
    for text in given or ():
        try:
            ipaddress.ip_address(text)
        except ValueError as error:
            raise ConfigError(f"resolvers: {error}") from None
    return None if given is None else tuple(given)


def _names(
    gateway: bytes, dns: bytes, host_loopback: bool, names: Mapping[str, Sequence[str]]
) -> dict[str, list[bytes]]:
    found = {name: [gateway] for name in HOST_NAMES if host_loopback or "host" not in name}
    found.update({name: [dns] for name in DNS_NAMES})
    found.update({name: [_address(name, a) for a in addrs] for name, addrs in names.items()})
    return found


def _text(addr: bytes, port: bytes) -> str:
    return f"{addr_to_text(addr)}:{int.from_bytes(port, 'big')}"


def _seconds(left: float) -> float | None:
    """For JSON, which knows no infinity."""
    return round(left, 1) if left < float("inf") else None
