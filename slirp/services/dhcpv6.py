"""The DHCPv6 server of the virtual network: RFC 8415 §18.3, options of RFC 3646, 4704 and 5970.

One message in, at most one out: `handle_message(payload, mac, now, port)` gives the reply's bytes,
and the addresses that the client has from now on. The server knows neither sockets nor frames, and
reads no clock; where the reply goes is simple (to the address that asked, port 546) and its
caller's.

    SOLICIT              an offer, or with rapid commit the lease
    REQUEST              the lease
    RENEW, REBIND        the lease again; one that nobody here knows is given anew where its address
                         is free (the guest outlived us), else NoBinding
    CONFIRM              are these addresses of this link? Those that are free are leased again
    RELEASE, DECLINE     done for what the client has at this port (slirp.services.leases), and
                         NoBinding for all else
    INFORMATION-REQUEST  resolvers, search list, boot file: no address

Every identity association gets one address; of several in a message each gets its own. A static
lease is tied to a DUID or to a hardware address (a DUID says little about a machine before its
system runs) and comes before the pool.

This server is the only one on its link. So its preference is the highest, and a client need not
wait for others (§18.2.1); where another server would have to keep silent because it cannot know, it
answers.

Does not do: temporary addresses, prefix delegation, reconfiguration, authentication, unicast from
clients (they are told to use the group, §18.4), relay agents, lifetimes by a client's wish, names
into the DNS (the answer to option 39 says so).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from math import inf
from types import MappingProxyType
from typing import Final, NamedTuple, TypeAlias

from slirp.address import Prefix, addr_to_text
from slirp.config import Config
from slirp.errors import MalformedPacket
from slirp.services.leases import BOUND, OFFERED, Binding, Ledger
from slirp.services.leases import Client as Key
from slirp.wire import dhcpv6 as wire
from slirp.wire.dhcpv6 import FOREVER, LAYER, Dhcpv6Message, Fqdn, IaAddress, IaNa, Status
from slirp.wire.dns import Labels, labels_of

POOL_MAX: Final = 1024  # addresses; beyond them a client is told that there is none
FIRST_LEASE: Final = 0x15  # of the prefix: fd00::15, which reads as IPv4's 10.0.2.15
OFFER_FOR: Final = 10.0  # seconds that an offer stands
DECLINE_FOR: Final = 300.0  # seconds that an address found in use is left alone
LEASE_TIME: Final = 86400  # seconds
HOSTNAME_MAX: Final = 255  # bytes that are remembered of what a client calls itself
PREFERENCE: Final = 255  # RFC 8415 §18.2.1: at once, without waiting for others
DUID_LL: Final = b"\0\3\0\1"  # a DUID from a hardware address, RFC 8415 §11.4: then 6 bytes


class Dhcpv6Config(NamedTuple):
    """What the network's guests are told. Addresses are 16 bytes, hardware addresses 6.

    Nothing is checked here: slirp.Config refuses what cannot work.
    """

    prefix: Prefix
    mac: bytes  # the gateway's, which makes the server's DUID
    reserved: frozenset[bytes] = frozenset()  # the network's own addresses
    dns: tuple[bytes, ...] = ()
    search: tuple[str, ...] = ()
    domain: str = ""  # what completes a client's name
    boot_url: str = ""
    first_lease: bytes | None = None  # where the pool begins; None: at FIRST_LEASE
    pool_size: int = POOL_MAX
    lease_time: int = LEASE_TIME  # seconds, or FOREVER
    static_leases: Mapping[bytes, bytes] = MappingProxyType({})  # hardware address or DUID → addr
    rapid_commit: bool = True

    @classmethod
    def of(cls, config: Config) -> Dhcpv6Config:
        """The part of a network's configuration that concerns its guests."""
        return cls(
            prefix=config.prefix6,
            mac=config.mac_addr,
            reserved=frozenset(config.own_addrs),
            dns=(config.dns6_addr,) if config.dns_enabled and not config.restrict else (),
            search=config.search,
            domain=config.domain,
            boot_url=_boot_url(config),
            first_lease=config.first_guest6_addr,
            static_leases=config.leases6,
        )

    def pool(self) -> Iterator[bytes]:
        """The addresses of the dynamic pool, in the order in which they are given out."""
        base, taken = int.from_bytes(self.prefix.addr), frozenset(self.static_leases.values())
        first = base + FIRST_LEASE if self.first_lease is None else int.from_bytes(self.first_lease)
        end, left = base + self.prefix.size, self.pool_size
        for number in range(max(first, base + 1), end):
            addr = number.to_bytes(16)
            if not left:
                return
            if addr not in taken and addr not in self.reserved:
                left -= 1
                yield addr


def _boot_url(config: Config) -> str:
    """Of the bootfile for everybody, RFC 5970 §3.1: a name is had at the gateway."""
    name = config.bootfiles.get("", "")
    if not name or "://" in name:
        return name
    scheme = "http" if config.http is not None else "tftp"
    served = config.http is not None or config.tftp is not None
    return f"{scheme}://[{addr_to_text(config.gateway6_addr)}]/{name}" if served else ""


class Dhcpv6Reply(NamedTuple):
    payload: bytes  # to port 546 of who asked
    leases: tuple[bytes, ...] = ()  # addresses that the client has from now on; none in an offer


class Lease(NamedTuple):
    addr: bytes
    mac: bytes
    duid: bytes
    iaid: int
    hostname: bytes  # as the client calls itself: not to be trusted
    expires_at: float


class _Client(NamedTuple):
    """Who asks, and when."""

    message: Dhcpv6Message
    duid: bytes
    mac: bytes
    port: Hashable
    now: float

    @property
    def hostname(self) -> bytes:
        fqdn = self.message.fqdn
        return b".".join(fqdn.labels)[:HOSTNAME_MAX] if fqdn else b""


class Dhcpv6Server:
    """Bindings of one network. `holder(addr)` is the hardware address seen using it, or None."""

    def __init__(
        self, config: Dhcpv6Config, holder: Callable[[bytes], bytes | None] = lambda addr: None
    ) -> None:
        self.config = config
        self.stats: Counter[str] = Counter()
        self.changes = 0  # messages that may have changed a lease
        self.on_lease: Callable[[str, Lease], None] | None = None  # while somebody listens
        self.duid = DUID_LL + config.mac
        self._ledger = Ledger(config.pool(), holder)
        self._search = tuple(map(labels_of, config.search))
        self._domain = labels_of(config.domain) if config.domain else ()
        self._fixed = frozenset(config.static_leases.values())

    def handle_message(
        self, payload: memoryview | bytes, mac: bytes, now: float, port: Hashable = None,
        *, to_group: bool = True,
    ) -> Dhcpv6Reply | None:  # fmt: skip
        """The reply to what a guest sent to port 547, or None. Raises MalformedPacket.

        `mac` is the sender's, `port` where it is on the network; `to_group`: the message went to
        ff02::1:2 rather than to an address of ours.
        """
        message = Dhcpv6Message.parse(payload)
        rule = _RULES.get(message.kind)
        if rule is None:  # what servers say
            raise MalformedPacket(LAYER, "message type")
        self.stats[rule.name] += 1
        if not self._is_valid(message, rule):
            return None
        if not to_group and message.kind != wire.INFORMATION_REQUEST:
            return self._refuse_unicast(message, rule)
        self.changes += 1
        client = _Client(message, message.client_id or b"", mac, port, now)
        return rule.handler(self, client)

    def leases(self, now: float) -> list[Lease]:
        """What is leased at this instant, by address."""
        return [_lease_of(b, *b.client) for b in self._ledger.bound(now) if b.client is not None]

    def restore(self, lease: Lease, now: float) -> bool:
        """Take over a lease that an earlier server gave, for whoever says its client's name at
        whatever port; False: not in this configuration."""
        leases = self.config.static_leases
        static = leases.get(lease.duid) or leases.get(lease.mac)
        fits = (
            lease.addr == static if lease.addr in self._fixed else lease.addr in self._ledger.pool
        )
        if not fits or lease.expires_at <= now or self._ledger.get(lease.addr) is not None:
            return False
        key = (lease.duid, lease.iaid)
        self._ledger.bind(lease.addr, key, lease.mac, None, BOUND, lease.expires_at, lease.hostname)
        self.changes += 1
        return True

    def forget_port(self, port: Hashable) -> None:
        """The port was taken off the network."""
        self._ledger.forget_port(port)

    # RFC 8415 §16: what a server must not answer

    def _is_valid(self, message: Dhcpv6Message, rule: _Rule) -> bool:
        if rule.needs_client and message.client_id is None:
            raise MalformedPacket(LAYER, "no client identifier")
        if rule.server is False and message.server_id is not None:
            raise MalformedPacket(LAYER, "server identifier")
        if rule.server and message.server_id is None:
            raise MalformedPacket(LAYER, "no server identifier")
        if message.kind == wire.INFORMATION_REQUEST and message.ias:
            raise MalformedPacket(LAYER, "information about an address")
        if message.server_id not in (None, self.duid):
            self.stats["other_server"] += 1
            return False
        return True

    def _refuse_unicast(self, message: Dhcpv6Message, rule: _Rule) -> Dhcpv6Reply | None:
        """RFC 8415 §18.4."""
        self.stats["unicast"] += 1
        if not rule.server:
            return None
        return self._reply(message, status=Status(wire.USE_MULTICAST, b"send to ff02::1:2"))

    # RFC 8415 §18.3.1
    def _handle_solicit(self, client: _Client) -> Dhcpv6Reply:
        message = client.message
        if message.rapid_commit and self.config.rapid_commit:
            ias = self._assign(client, BOUND)
            return self._lease(client, ias, rapid_commit=True)
        ias = self._assign(client, OFFERED)
        return self._reply(message, wire.ADVERTISE, ias, preference=PREFERENCE)

    # RFC 8415 §18.3.2
    def _handle_request(self, client: _Client) -> Dhcpv6Reply:
        return self._lease(client, self._assign(client, BOUND))

    # RFC 8415 §18.3.3
    def _handle_confirm(self, client: _Client) -> Dhcpv6Reply | None:
        addrs = [given.addr for ia in client.message.ias for given in ia.addrs]
        if not addrs:
            return None
        if not all(map(self._is_on_link, addrs)):
            return self._reply(client.message, status=Status(wire.NOT_ON_LINK, b"not of this link"))
        # Who outlived us goes on using his address until he renews it: let nobody else have it.
        for ia in client.message.ias:
            wanted = [given.addr for given in ia.addrs]
            known = self._ledger.find((client.duid, ia.iaid), client.port)
            addr = next((a for a in wanted if self._is_free(client, ia, a)), None)
            if addr is not None and (known is None or not known.is_live(client.now)):
                self._bind(client, ia, addr, BOUND)
        return self._reply(client.message, status=Status(wire.SUCCESS, b"all on this link"))

    # RFC 8415 §18.3.4 and §18.3.5
    def _handle_renew(self, client: _Client) -> Dhcpv6Reply:
        return self._lease(client, tuple(self._renew(client, ia) for ia in client.message.ias))

    def _renew(self, client: _Client, ia: IaNa) -> IaNa:
        wanted = [given.addr for given in ia.addrs]
        binding = self._ledger.find((client.duid, ia.iaid), client.port)
        addr = None
        if binding is not None and binding.state == BOUND and self._may_have(client, ia, binding):
            addr = binding.addr
        elif (static := self._static(client)) is None or static in wanted:
            addr = next((a for a in wanted if self._is_free(client, ia, a)), None)
        off_link = tuple(IaAddress(a) for a in wanted if a != addr and not self._is_on_link(a))
        if addr is None:
            status = None if off_link else Status(wire.NO_BINDING, b"no such lease")
            return IaNa(ia.iaid, addrs=off_link, status=status)
        self._bind(client, ia, addr, BOUND)
        given = self._given(ia, addr)
        gone = tuple(IaAddress(other) for other in wanted if other != addr)  # lifetimes of 0
        return given._replace(addrs=given.addrs + gone)

    def _may_have(self, client: _Client, ia: IaNa, binding: Binding) -> bool:
        """Still: a lease may have ended, and the configuration may tie the client elsewhere."""
        static = self._static(client)
        if binding.addr in self._fixed:
            return binding.addr == static
        return self._ledger.is_free(
            binding.addr, (client.duid, ia.iaid), client.mac, client.port, client.now
        )

    # RFC 8415 §18.3.7
    def _handle_release(self, client: _Client) -> Dhcpv6Reply:
        return self._give_back(client, lambda binding: self._ledger.free(binding, client.now))

    # RFC 8415 §18.3.8
    def _handle_decline(self, client: _Client) -> Dhcpv6Reply:
        def decline(binding: Binding) -> None:
            if binding.addr in self._fixed:  # it stays where the configuration put it
                self._ledger.free(binding, client.now)
            else:
                self._ledger.decline(binding, client.now + DECLINE_FOR)

        return self._give_back(client, decline)

    def _give_back(self, client: _Client, end: Callable[[Binding], None]) -> Dhcpv6Reply:
        """Only what the client has, and only from where it has it."""
        unknown = []
        for ia in client.message.ias:
            binding = self._ledger.find((client.duid, ia.iaid), client.port)
            held = binding is not None and binding.is_live(client.now)
            if binding is None or not held or binding.addr not in [g.addr for g in ia.addrs]:
                self.stats["not_held"] += 1
                unknown.append(IaNa(ia.iaid, status=Status(wire.NO_BINDING, b"no such lease")))
            else:
                if binding.state == BOUND:
                    self._tell("lease-ended", binding)
                end(binding)
        return self._reply(client.message, ias=tuple(unknown), status=Status(wire.SUCCESS))

    # RFC 8415 §18.3.6
    def _handle_information(self, client: _Client) -> Dhcpv6Reply:
        return self._reply(client.message)

    # Addresses

    def _assign(self, client: _Client, state: str) -> tuple[IaNa, ...]:
        return tuple(self._assign_one(client, ia, state) for ia in client.message.ias)

    def _assign_one(self, client: _Client, ia: IaNa, state: str) -> IaNa:
        wanted = [given.addr for given in ia.addrs]
        if state == BOUND and not all(map(self._is_on_link, wanted)):  # §18.3.2
            return IaNa(ia.iaid, status=Status(wire.NOT_ON_LINK, b"not of this link"))
        key = (client.duid, ia.iaid)
        static = self._static(client)
        if static is not None and self._is_free(client, ia, static):
            addr: bytes | None = static
        else:
            addr = self._ledger.choose(key, client.mac, client.port, wanted, client.now)
        if self._ledger.reclaimed:
            self.stats["reclaimed"] = self._ledger.reclaimed
        if addr is None:
            self.stats["pool_exhausted"] += 1
            return IaNa(ia.iaid, status=Status(wire.NO_ADDRS_AVAILABLE, b"no address is left"))
        current = self._ledger.get(addr)
        if state == BOUND or current is None or not current.is_live(client.now):
            self._bind(client, ia, addr, state)
        return self._given(ia, addr)

    def _static(self, client: _Client) -> bytes | None:
        """The address that the configuration ties to this client."""
        leases = self.config.static_leases
        return leases.get(client.duid) or leases.get(client.mac)

    def _is_free(self, client: _Client, ia: IaNa, addr: bytes) -> bool:
        key = (client.duid, ia.iaid)
        if addr in self._fixed:
            return addr == self._static(client) and not self._is_anothers(client, key, addr)
        if addr not in self._ledger.pool:
            return False
        return self._ledger.is_free(addr, key, client.mac, client.port, client.now)

    def _is_anothers(self, client: _Client, key: Key, addr: bytes) -> bool:
        """Does another association of this client have the static address, or, alive at another
        port, somebody of the same name? Against all others stands the configuration's word."""
        current = self._ledger.get(addr)
        if current is None or not current.is_live(client.now):
            return False
        if current.port in (client.port, None):
            found = current.client
            return found is not None and found[0] == client.duid and found != key
        return self._ledger.is_used(addr)

    def _bind(self, client: _Client, ia: IaNa, addr: bytes, state: str) -> None:
        seconds = OFFER_FOR if state == OFFERED else float(self.config.lease_time)
        ends = inf if state == BOUND and self.config.lease_time == FOREVER else client.now + seconds
        key = (client.duid, ia.iaid)
        self._ledger.bind(addr, key, client.mac, client.port, state, ends, client.hostname)
        bound = self._ledger.get(addr)
        if state == BOUND and bound is not None:
            self._tell("lease", bound)

    def _tell(self, what: str, binding: Binding) -> None:
        if self.on_lease is not None and binding.client is not None:
            self.on_lease(what, _lease_of(binding, *binding.client))

    def _given(self, ia: IaNa, addr: bytes) -> IaNa:
        """T1 and T2 at 0.5 and 0.8 of the lifetime, RFC 8415 §21.4."""
        seconds = self.config.lease_time
        forever = seconds == FOREVER
        t1, t2 = (seconds, seconds) if forever else (seconds // 2, seconds * 4 // 5)
        return IaNa(ia.iaid, t1, t2, (IaAddress(addr, seconds, seconds),))

    def _is_on_link(self, addr: bytes) -> bool:
        return self.config.prefix.covers(addr)

    # Replies

    def _lease(
        self, client: _Client, ias: tuple[IaNa, ...], *, rapid_commit: bool = False
    ) -> Dhcpv6Reply:
        leases = tuple(given.addr for ia in ias for given in ia.addrs if given.valid)
        reply = self._reply(client.message, ias=ias, rapid_commit=rapid_commit)
        return reply._replace(leases=leases)

    def _reply(
        self,
        request: Dhcpv6Message,
        kind: int = wire.REPLY,
        ias: tuple[IaNa, ...] = (),
        *,
        preference: int | None = None,
        status: Status | None = None,
        rapid_commit: bool = False,
    ) -> Dhcpv6Reply:
        """Our answer: what the client listed of what there is to tell, or all of it where it listed
        nothing. What only ends something tells no more than its status."""
        told = Dhcpv6Message(
            kind, request.transaction, request.client_id, self.duid, ias, None, preference, status,
            rapid_commit,
        )  # fmt: skip
        self.stats["advertise" if kind == wire.ADVERTISE else "reply"] += 1
        if status is not None:
            return Dhcpv6Reply(told.emit())
        listed = request.wanted

        def wants(code: int) -> bool:
            return listed is None or code in listed

        config = self.config
        if wants(wire.DNS_SERVERS):
            told = told._replace(dns=config.dns)
        if wants(wire.DOMAIN_LIST):
            told = told._replace(search=self._search)
        if wants(wire.BOOT_URL) and config.boot_url:
            told = told._replace(boot_url=config.boot_url.encode())
        if request.fqdn is not None:
            told = told._replace(fqdn=self._name(request.fqdn))
        return Dhcpv6Reply(told.emit())

    def _name(self, asked: Fqdn) -> Fqdn:
        """RFC 4704 §6: nobody here puts names into the DNS; a name's end is ours to give."""
        flags = wire.FQDN_N | (wire.FQDN_O if asked.flags & wire.FQDN_S else 0)
        whole: Labels = asked.labels
        if asked.partial and asked.labels and self._domain:
            whole = asked.labels + self._domain
        return Fqdn(flags, whole, asked.partial and not self._domain)


def _lease_of(binding: Binding, duid: bytes, iaid: int) -> Lease:
    return Lease(binding.addr, binding.mac, duid, iaid, binding.hostname, binding.expires_at)


_Handler: TypeAlias = Callable[[Dhcpv6Server, _Client], Dhcpv6Reply | None]


class _Rule(NamedTuple):
    """RFC 8415 §16: what a message must have; §18.3: who handles it."""

    name: str
    handler: _Handler
    needs_client: bool
    server: bool | None  # a server identifier must be there, must not, may


_RULES: Final[Mapping[int, _Rule]] = {
    wire.SOLICIT: _Rule("solicit", Dhcpv6Server._handle_solicit, True, False),
    wire.REQUEST: _Rule("request", Dhcpv6Server._handle_request, True, True),
    wire.CONFIRM: _Rule("confirm", Dhcpv6Server._handle_confirm, True, False),
    wire.RENEW: _Rule("renew", Dhcpv6Server._handle_renew, True, True),
    wire.REBIND: _Rule("rebind", Dhcpv6Server._handle_renew, True, False),
    wire.RELEASE: _Rule("release", Dhcpv6Server._handle_release, True, True),
    wire.DECLINE: _Rule("decline", Dhcpv6Server._handle_decline, True, True),
    wire.INFORMATION_REQUEST: _Rule("information", Dhcpv6Server._handle_information, False, None),
}
