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

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Unpack, overload

from slirp.address import Endpoint, Prefix, addr_from_text, addr_to_text, mac_to_text
from slirp.config import Config, Fields, Resolver
from slirp.errors import ConfigError
from slirp.flow import ends_of
from slirp.forward import ForwardSpec, HostAddress, is_name, parse_forward
from slirp.host.attachment import Attachment
from slirp.host.dispatch import Dispatcher
from slirp.host.forward import Forward, Forwards
from slirp.host.loop import READABLE, WRITABLE, Loop, Timed
from slirp.host.own import OwnServices
from slirp.services.dhcp import DhcpConfig, DhcpServer
from slirp.services.dns import DnsService
from slirp.services.dns_cache import DnsCache
from slirp.services.resolv import ResolvConf
from slirp.services.zones import LeasedNames, Zones
from slirp.stack import Stack

if TYPE_CHECKING:
    from nic.port import DeviceGone, Port

HOLDER_FOR: Final = 60.0  # seconds that an address counts as used after its guest was seen
HOST_NAMES: Final = (
    "gateway.slirp.internal", "host.slirp.internal", "_gateway",
    "gateway.internal", "host.internal",
)  # fmt: skip
DNS_NAMES: Final = ("dns.slirp.internal",)


class Network:
    """One virtual network. Close it, or use it in a `with` statement.

    It is what a slirp.Config says, which is given as it is or by its fields as keywords; a prefix
    may stand alone in its place. `clock` gives monotonic seconds. Raises ConfigError for a
    configuration that cannot work, and OSError for a forward whose host address is not to be had.
    """

    def __init__(
        self,
        config: Config | str | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        **fields: Unpack[Fields],
    ) -> None:
        if not isinstance(config, Config):
            config = Config(config, **fields)
        elif fields:
            config = config.replace(**fields)
        self.config = config
        self._dhcp = (
            DhcpServer(DhcpConfig.of(config), self._holder) if config.dhcp_enabled else None
        )
        sources = [self._dhcp] if self._dhcp is not None else []
        self._leased = LeasedNames(sources, config.domain)
        self._resolv = ResolvConf(config.resolv_conf)
        self._resolvers = config.resolvers
        self._dns = DnsService(
            self._zones(config), self._servers,
            domains=config.domain_resolvers,
            cache=DnsCache(config.dns_cache) if config.dns_cache else None,
        )  # fmt: skip
        self._stack = Stack(config, self._dhcp)
        self._loop = Loop(clock)
        relays = self._dispatcher = Dispatcher(self._loop, self._stack, self._dns, config)
        self._loop.add_settler(relays.settle_ports)
        self._forwards = Forwards(
            self._loop, self._stack, relays.tcp, relays.udp, relays.holding, relays.descriptors,
            self._find_guest,
        )  # fmt: skip
        relays.on_gone = self._port_gone
        self._gone = 0  # ports whose device went away
        self._counters: dict[str, Mapping[str, int]] = {}
        self._attached = 0
        self._stopping = False
        self._closed = False
        self._own = OwnServices(self._loop, self._stack, relays)
        try:
            self._own.open(config)
            self._open(config.forwards)
        except (ConfigError, OSError):
            self.close()
            raise

    @property
    def mtu(self) -> int:
        """Bytes of an IP packet."""
        return self.config.mtu

    @property
    def prefix(self) -> Prefix:
        """The network's."""
        return self.config.prefix

    @property
    def mac(self) -> str:
        """The gateway's."""
        return mac_to_text(self.config.mac_addr)

    @property
    def gateway(self) -> str:
        """The gateway's address."""
        return addr_to_text(self.config.gateway_addr)

    @property
    def dns(self) -> str:
        """The DNS server's address."""
        return addr_to_text(self.config.dns_addr)

    # Guests

    def attach(self, port: Port, name: str | None = None) -> Attachment:
        """Put a port on the network; what is returned is for `detach`.

        Raises ConfigError where the port cannot carry the network's MTU.
        """
        if port.max_frame < 14 + self.mtu:
            fits = port.max_frame - 14
            raise ConfigError(f"mtu {self.mtu}: this port carries {fits} bytes at the most", "mtu")
        self._attached += 1
        attachment = Attachment(port, name or f"port{self._attached}", self._attached)
        self._dispatcher.attachments.append(attachment)
        self._stack.ports += 1

        def ready(events: int, now: float) -> None:
            self._dispatcher.handle_port(attachment, now)

        self._loop.register(port.fileno(), READABLE, ready)
        return attachment

    def _port_gone(self, attachment: Attachment, gone: DeviceGone) -> None:
        """A device went away. Whoever serves one has nothing left to do, and is told by the
        exception; where there are others, they go on."""
        if len(self._dispatcher.attachments) == 1:
            raise gone
        self._gone += 1
        self.detach(attachment)

    def detach(self, attachment: Attachment) -> None:
        """Take a port off; its flows are reset."""
        if attachment in self._dispatcher.attachments:
            self._dispatcher.attachments.remove(attachment)
            self._loop.unregister(attachment.port.fileno())
            self._stack.forget_port(attachment)
            self._dispatcher.drop_port(attachment)
            self._own.drop_port(attachment)

    @overload
    def forward(self, spec: str, /) -> list[Forward]: ...

    @overload
    def forward(
        self, proto: str, *, host: HostAddress, guest: tuple[str, int], proxy: int = 0,
        source: str = "peer",
    ) -> Forward: ...  # fmt: skip

    def forward(
        self, proto: str, *, host: HostAddress | None = None, guest: tuple[str, int] | None = None,
        proxy: int = 0, source: str = "peer",
    ) -> Forward | list[Forward]:  # fmt: skip
        """Lead a host address (or the path of a Unix socket) to a guest; the address as bound.

        Either as people write it, such as "8080:80" (slirp/forward.py), which may stand for
        several, or with `proto` "tcp" or "udp" and both ends by name. A guest's address that is
        left out is that of the first lease; in its place may be what the guest calls itself with
        DHCP. `proxy` is the version of the PROXY protocol's header (0: none), `source` as whom a
        peer appears to the guest, "peer" or "gateway". Raises ConfigError, or OSError where a
        host's address (its `filename`) is not to be had; then none of them is opened.
        """
        if host is None and guest is None:
            return self._open(parse_forward(proto))
        if host is None or guest is None:
            raise ConfigError(f"forward {proto}: takes host and guest, or neither", "forward")
        if not is_name(guest[0]):
            self.config.guest_addr(guest[0])
        return self._forwards.add(proto, host, guest, proxy=proxy, source=source)

    def _open(self, specs: Sequence[ForwardSpec]) -> list[Forward]:
        """All of them or none."""
        first = addr_to_text(self.config.first_lease_addr)
        opened: list[Forward] = []
        try:
            for spec in specs:
                guest = spec.guest_addr or first, spec.guest_port
                found = self.forward(
                    spec.proto, host=spec.host, guest=guest, proxy=spec.proxy, source=spec.source
                )
                opened.append(found)
        except (ConfigError, OSError):
            for forward in opened:
                self.remove_forward(forward.id)
            raise
        return opened

    def remove_forward(self, number: int) -> bool:
        """Close a forward; connections that are open stay. False: no such forward."""
        return self._forwards.remove(number)

    def forwards(self) -> list[Forward]:
        """The forwards that are open."""
        return self._forwards.listing()

    def use_resolvers(self, resolvers: Sequence[str | Resolver] | None) -> None:
        """Ask these from now on; None: the ones that resolv.conf names."""
        self._resolvers = self.config.replace(resolvers=resolvers).resolvers

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
                a.name: {
                    "frames_in": a.frames_in,
                    "frames_out": a.frames_out,
                    "lost": a.lost,
                    "shortages": a.shortages,
                    "sockets": a.sockets,
                    "flows": a.flows,
                }
                for a in relays.attachments
            },
            "ports_gone": self._gone,
            "shortages": self._loop.shortages,
            "descriptors": {
                "displaced": relays.descriptors.displaced,
                "refused": relays.descriptors.refused,
            },
            "malformed": {f"{layer}: {why}": n for (layer, why), n in stack.malformed.items()},
            "refused": dict(stack.refused),
            "tcp": {
                "flows": len(relays.tcp.flows),
                "lingering": len(relays.tcp.farewells),
                "opened": relays.tcp.opened,
                "refused": relays.tcp.refused,
                "octets_to_guest": relays.tcp.feeder.to_guest,
                "octets_to_host": relays.tcp.deliverer.to_host,
                "octets_copied": relays.tcp.deliverer.copied,
                "shortages": relays.tcp.shortages,
            },
            "udp": {
                "mappings": len(relays.udp.mappings),
                "datagrams_to_guest": relays.udp.to_guest,
                "datagrams_to_host": relays.udp.to_host,
                "octets_copied": relays.udp.copied,
                "failed": relays.udp.failed,
                "dropped_by_host": relays.udp.dropped_by_host(),
                "senders_forgotten": relays.udp.senders_forgotten,
                "shortages": relays.udp.shortages,
            },
            "icmp": {
                "echoes": relays.ping.sent,
                "replies": relays.ping.answered,
                "prohibited": relays.ping.prohibited,
                "failed": relays.ping.failed,
                "shortages": relays.ping.shortages,
                "errors": stack.link.errors,
                "errors_withheld": stack.link.errors_withheld,
            },
            "resolution": relays.holding.stats(),
            "dns": {**self._dns.stats, "shortages": relays.dns.shortages},
            "dhcp": dict(self._dhcp.stats) if self._dhcp else {},
            **self._own.stats(),
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
                "guest": str(ends_of(flow.key)[0]),
                "remote": str(ends_of(flow.key)[1]),
            }
            for flow in relays.tcp.flows.values()
        ]
        out += [
            {"proto": "udp", "guest": str(Endpoint(addr, port))}
            for addr, port, _ in relays.udp.mappings
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
            self._own.close()
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

    def _find_guest(self, name: str) -> bytes | None:
        """The address of the guest that calls itself so."""
        return self._leased.address(name, self._loop.now)

    def _zones(self, config: Config) -> Zones:
        """What the network knows by name."""
        here: dict[int, bytes] = {}  # by the length of an address
        if config.host_loopback and config.has_ipv4:
            here[4] = config.gateway_addr
        if config.host_loopback and config.has_ipv6:
            here[16] = config.gateway6_addr
        return Zones(
            _names(config),
            hosts=config.hosts,
            here=lambda addr: here.get(len(addr)),
            leases=[self._leased],
        )

    def _servers(self, now: float) -> Sequence[Resolver]:
        if self._resolvers is not None:
            return self._resolvers
        return [Resolver(address) for address in self._resolv.servers(now)]

    def _holder(self, addr: bytes) -> bytes | None:
        guest = self._stack.guests.get(addr)
        if guest is None or self._loop.now - guest.seen_at > HOLDER_FOR:
            return None
        return guest.mac


def _names(config: Config) -> dict[str, list[bytes]]:
    """The network's own names and those of the configuration."""
    gateways, servers = [], []
    if config.has_ipv4:
        gateways, servers = [config.gateway_addr], [config.dns_addr]
    if config.has_ipv6:
        gateways.append(config.gateway6_addr)
        servers.append(config.dns6_addr)
    found = {n: gateways for n in HOST_NAMES if config.host_loopback or "host" not in n}
    found.update({name: servers for name in DNS_NAMES})
    found.update({n: [addr_from_text(a) for a in addrs] for n, addrs in config.names.items()})
    return found


def _seconds(left: float) -> float | None:
    """For JSON, which knows no infinity."""
    return round(left, 1) if left < float("inf") else None
