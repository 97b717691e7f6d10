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

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Unpack, overload

from dma.closing import Closing
from slirp.address import Prefix, addr_from_text, addr_to_text, mac_to_text
from slirp.config import Config, Fields
from slirp.config_fields import Resolver
from slirp.errors import ConfigError
from slirp.events import Listener
from slirp.forward import ForwardSpec, HostAddress, host_text, is_name, parse_forward
from slirp.host import endpoints
from slirp.host.attachment import Attachment
from slirp.host.dispatch import Dispatcher
from slirp.host.forward import Forward, Forwards
from slirp.host.ipv6 import has_route
from slirp.host.loop import READABLE, WRITABLE, Loop, Timed
from slirp.host.naming import Naming
from slirp.host.observer import Observer
from slirp.host.own import OwnServices
from slirp.ip.nat64 import Nat64
from slirp.services.dhcp import DhcpConfig, DhcpServer
from slirp.services.dhcpv6 import Dhcpv6Config, Dhcpv6Server
from slirp.services.dns import DnsService
from slirp.services.dns64 import IPV4ONLY, IPV4ONLY_ADDRS, Dns64
from slirp.services.dns_cache import DnsCache
from slirp.services.ra import Advertiser, RaConfig
from slirp.services.resolv import ResolvConf
from slirp.services.zones import LeasedNames, Zones
from slirp.stack import Stack

if TYPE_CHECKING:
    import socket

    from nic.port import DeviceGone, Port
    from slirp.host.handover import Given

HOLDER_FOR: Final = 60.0  # seconds that an address counts as used after its guest was seen
HOST_NAMES: Final = (
    "gateway.slirp.internal", "host.slirp.internal", "_gateway",
    "gateway.internal", "host.internal",
)  # fmt: skip
DNS_NAMES: Final = ("dns.slirp.internal",)


class Network(Closing):
    """One virtual network. Close it, or use it in a `with` statement.

    It is what a slirp.Config says, which is given as it is or by its fields as keywords; a prefix
    may stand alone in its place. `clock` gives monotonic seconds. Raises ConfigError for a
    configuration that cannot work, or an endpoint that this host has not, and OSError for a forward
    whose host address is not to be had.
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
            DhcpServer(DhcpConfig.of(config), self._holder)
            if config.dhcp_enabled and config.has_ipv4
            else None
        )
        self._dhcpv6 = (
            Dhcpv6Server(Dhcpv6Config.of(config), self._holder)
            if config.dhcp_enabled and config.has_ipv6
            else None
        )
        self._router = (
            Advertiser(RaConfig.of(config)) if config.ra_enabled and config.has_ipv6 else None
        )
        self._lessors = [server for server in (self._dhcp, self._dhcpv6) if server is not None]
        self._leased = LeasedNames(self._lessors, config.domain)
        self._resolv = ResolvConf(config.resolv_conf)
        self._resolvers = config.resolvers
        nat64 = config.nat64_prefix
        zones = self._zones(config)
        self._dns = DnsService(
            zones, self._servers,
            domains=config.domain_resolvers,
            cache=DnsCache(config.dns_cache) if config.dns_cache else None,
            dns64=None if nat64 is None else Dns64(Nat64(nat64), reaches_ipv6=has_route),
        )  # fmt: skip
        self._stack = Stack(config, self._dhcp, self._dhcpv6, self._router)
        endpoint = endpoints.sockets(config.endpoint)
        self._loop = Loop(clock)
        relays = self._dispatcher = Dispatcher(self._loop, self._stack, self._dns, config, endpoint)
        self._loop.add_settler(relays.settle_ports)
        relays.serve_endpoint()
        self._forwards = Forwards(
            self._loop, self._stack, relays.tcp, relays.udp, relays.holding, relays.descriptors,
            self._find_guest,
        )  # fmt: skip
        relays.on_gone = self._port_gone
        naming = Naming(relays, zones, self._leased, config)
        self._observer = Observer(relays, self._lessors, naming)
        self._gone = 0  # ports whose device went away
        self._counters: dict[str, Mapping[str, int]] = {}
        self._attached = 0
        self._stopping = False
        self.abandoned = False  # another process goes on in our place
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
        attachment = Attachment(
            port, name or f"port{self._attached}", self._attached, self._dispatcher.endpoint
        )
        self._dispatcher.attachments.append(attachment)
        self._stack.add_port(attachment, self._loop.now)

        def ready(events: int, now: float) -> None:
            self._dispatcher.handle_port(attachment, now)

        self._loop.register(port.fileno(), READABLE, ready)
        self._observer.attached(attachment)
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
            self._observer.detached(attachment)

    @overload
    def forward(self, spec: str, /) -> list[Forward]: ...

    @overload
    def forward(
        self, proto: str, *, host: HostAddress, guest: tuple[str, int], proxy: int = 0,
        source: str = "peer", automatic: bool = False,
    ) -> Forward: ...  # fmt: skip

    def forward(
        self, proto: str, *, host: HostAddress | None = None, guest: tuple[str, int] | None = None,
        proxy: int = 0, source: str = "peer", automatic: bool = False,
    ) -> Forward | list[Forward]:  # fmt: skip
        """Lead a host address (or the path of a Unix socket) to a guest; the address as bound.

        Either as people write it, such as "8080:80" (slirp/forward.py), which may stand for
        several, or with `proto` "tcp" or "udp" and both ends by name. A guest's address that is
        left out is that of the first lease; in its place may be what the guest calls itself with
        DHCP. `proxy` is the version of the PROXY protocol's header (0: none), `source` as whom a
        peer appears to the guest, "peer" or "gateway". One that is `automatic` comes and goes by
        itself (slirp.control.auto), and is not saved. Raises ConfigError, or OSError where a
        host's address (its `filename`) is not to be had; then none of them is opened.
        """
        if host is None and guest is None:
            return self._open(parse_forward(proto))
        if host is None or guest is None:
            raise ConfigError(f"forward {proto}: takes host and guest, or neither", "forward")
        if not is_name(guest[0]):
            self.config.guest_addr(guest[0])
        added = self._forwards.add(
            proto, host, guest, proxy=proxy, source=source, automatic=automatic
        )
        self._tell_forward("forward-added", added)
        return added

    def _tell_forward(self, kind: str, forward: Forward) -> None:
        if self._observer.events:
            self._observer.events.tell(kind, describe_forward(forward))

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
        found = [forward for forward in self._forwards.listing() if forward.id == number]
        for forward in found:
            self._forwards.remove(number)
            self._tell_forward("forward-removed", forward)
        return bool(found)

    def forwards(self) -> list[Forward]:
        """The forwards that are open."""
        return self._forwards.listing()

    # State

    def save(self, path: str | os.PathLike[str]) -> dict[str, int]:
        """Write what a restart would lose to a file: how many of each kind.

        Leases, forwards, UDP mappings, the configuration, and which TCP connections there are, so
        that their guests can be told. Raises OSError, and then an older file is still there.
        """
        from slirp import statefile
        from slirp.host.state import saved

        forwards = [forward for forward in self.forwards() if not forward.automatic]
        body = saved(self._dispatcher, self._lessors, forwards, self.config)
        statefile.write(os.fspath(path), body)
        return {kind: len(body[kind]) for kind in ("leases", "forwards", "udp", "tcp")}

    def restore(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Take over what `save` wrote: how many of each kind, and what `failed`.

        Forwards that are open already stay. Guests' TCP connections are reset, as soon as a guest
        answers. Raises ConfigError for a file that is
        damaged, of another version or of another network, or OSError; then nothing has changed.
        """
        from slirp import statefile
        from slirp.host.state import Damaged, Restorer, Saved

        text = os.fspath(path)
        try:
            found = Saved(statefile.read(text))
        except Damaged as damage:
            raise statefile.StateError(text, str(damage)) from None
        if found.network != self.config.network:
            why = f"is of the network {found.network}, this one is {self.config.network}"
            raise statefile.StateError(text, why)
        taken = {forward.host for forward in self.forwards()}
        found.forwards = [spec for spec in found.forwards if spec.host not in taken]
        restorer = Restorer(
            self._dispatcher, self._lessors, found, lambda spec: self._open((spec,))
        )
        self._observer.restore(restorer)
        return restorer.report

    def hand_over(self) -> Given:
        """What another process needs to go on in this one's place (slirp/host/handover.py).

        Nothing changes by it. Whoever has taken it is followed by `abandon` here.
        """
        from slirp.host.handover import given

        relays = self._dispatcher
        relays.udp.outgoing.flush(self._loop.now)
        relays.tcp.settle(self._loop.now)
        return given(relays, self._lessors, self._forwards, self.config)

    def abandon(self) -> None:
        """Another process goes on: from here on nothing is sent, reset or removed."""
        self.abandoned = True
        self._loop.forget_all()
        self._dispatcher.tcp.abandon()
        self._forwards.abandon()

    def take_over(
        self, values: Mapping[str, Any], socks: Mapping[int, socket.socket]
    ) -> dict[str, int]:
        """Go on in another process's place: how many of each kind.

        Its ports are attached already, under the names that they had there. Nothing is read or sent
        before the first turn. Raises ConfigError for what is none of `hand_over`'s.
        """
        from slirp.host.handover import Taken
        from slirp.host.state import Damaged

        taken = Taken(values, socks)
        try:
            taken.enter(self._dispatcher, self._lessors, self._forwards)
        except Damaged as damage:
            raise ConfigError(f"handover: {damage}", "handover") from None
        return taken.report

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
            "dhcpv6": dict(self._dhcpv6.stats) if self._dhcpv6 else {},
            "ra": dict(self._router.stats) if self._router else {},
            **self._own.stats(),
            **{name: dict(counters) for name, counters in self._counters.items()},
        }

    def add_counters(self, name: str, counters: Mapping[str, int]) -> None:
        """Show these in `stats()` too, as they are then."""
        self._counters[name] = counters

    def flows(self) -> list[dict[str, Any]]:
        """TCP flows and UDP mappings (slirp/host/listing.py has the fields)."""
        return list(self._observer.flows())

    def each_flow(self) -> Iterator[dict[str, Any]]:
        """The same, one at a time."""
        return self._observer.flows()

    def kill_flow(self, name: str) -> bool:
        """End the flow of this id: both ends of a TCP connection are reset. False: no such flow."""
        return self._observer.kill(name)

    def guests(self) -> list[dict[str, Any]]:
        """Who was seen on the virtual wire: address, MAC, port, host name, seconds ago."""
        return self._observer.guests()

    def is_own_socket(self, addr: str, port: int) -> bool:
        """Does a guest's connection come from this address and port of the host's?"""
        return self._observer.is_own_socket(addr, port)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with each slirp.events.Event from now on; what is returned ends it.

        It is called from within `poll`, and must neither raise nor wait.
        """
        return self._observer.events.subscribe(listener)

    def tell_stopping(self) -> None:
        """Tell whoever listens that the network is about to end."""
        if self._observer.events:
            self._observer.events.tell("stopping", {})

    def start_capture(
        self,
        path: str | os.PathLike[str],
        *,
        filter: str = "",
        snaplen: int | None = None,
        files: int = 1,
        file_size: int | None = None,
    ) -> dict[str, Any]:
        """Write what passes the ports to a pcapng file, or to a ring of `files` files.

        `filter` is as slirp/sight/filter.py has it. Raises ConfigError, or OSError.
        """
        return self._observer.start_capture(
            path, filter=filter, snaplen=snaplen, files=files, file_size=file_size
        )

    def capture(self) -> dict[str, Any] | None:
        """The capture that was started and runs, its file up to date."""
        return self._observer.capture()

    def stop_capture(self) -> dict[str, Any] | None:
        """End it, and have its file whole; None: there was none."""
        return self._observer.stop_capture()

    def leases(self) -> list[dict[str, Any]]:
        """DHCP leases of both families: address, MAC, seconds left."""
        now = self._loop.now
        return [
            {
                "address": addr_to_text(lease.addr),
                "mac": mac_to_text(lease.mac),
                "hostname": lease.hostname.decode("ascii", "replace"),
                "expires_in": _seconds(lease.expires_at - now),
            }
            for server in self._lessors
            for lease in server.leases(now)
        ]

    def close(self) -> None:
        """Close all sockets; ports stay their owners'."""
        if not self._closed:
            self._closed = True
            self._observer.stop_capture()
            self._forwards.close()
            self._own.close()
            self._dispatcher.close()
            self._loop.close()

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
            closed=[IPV4ONLY] if config.nat64_prefix is not None else [],
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
    gateway, dns = config.gateway_addrs, config.dns_addrs
    found = {n: [*gateway] for n in HOST_NAMES if config.host_loopback or "host" not in n}
    found.update({name: [*dns] for name in DNS_NAMES})
    if config.nat64_prefix is not None:
        found[IPV4ONLY] = [*IPV4ONLY_ADDRS]
    found.update({n: [addr_from_text(a) for a in addrs] for n, addrs in config.names.items()})
    return found


def describe_forward(forward: Forward) -> dict[str, Any]:
    """As JSON has it."""
    return {
        "id": forward.id,
        "proto": forward.proto,
        "host": host_text(forward.host),
        "guest": host_text(forward.guest),
        "proxy": forward.proxy,
        "source": forward.source,
        "automatic": forward.automatic,
    }


def _seconds(left: float) -> float | None:
    """For JSON, which knows no infinity."""
    return round(left, 1) if left < float("inf") else None
