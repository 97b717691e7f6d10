"""The DHCP server of the virtual network: RFC 2131, options of RFC 2132, BOOTP of RFC 951.

One message in, at most one out: `handle_message(payload, now)` gives the reply's bytes and where
they go, decided by RFC 2131 §4.1 (relay, then ciaddr, then the broadcast flag, then yiaddr). The
server knows neither sockets nor frames, and reads no clock.

A *binding* ties an address to a client and has an instant at which it ends. An offer is a binding
that ends after seconds, so that a flood of DISCOVERs from random addresses fills the pool only for
as long as the flood lasts; then the server is silent, as RFC 2131 §4.3.1 has it, and counts. There
is at most one binding per address and the pool is bounded, so memory is too. A binding that has
ended is kept until its address is needed: the client that comes back gets the same one.

Requests from invented clients hold addresses for as long as a lease lasts. So when the pool is used
up, the port with the most leases gives one up to a client at another port: the oldest of those that
`holder` sees nobody use.

A client is known by option 61, or by its hardware address where it sends none (RFC 2131 §4.2). In
one point we are kinder than the RFC: a client that is known by hardware address alone and one with
the same hardware address and an option 61 are the same machine. A boot loader and the system it
boots so get one address, and a forward to it holds.

This server is the only one on its wire, so it never has to be silent for the sake of another: a
client without a binding that asks for an address that is free gets it (the guest outlived us), for
one that is not gets NAK at once (RFC 2131 §4.3.2 would have silence, to spare other servers).

What a client that boots is told is slirp.services.boot's to say.

Does not do: DNS updates (81), leasequery (RFC 4388), FORCERENEW, authentication, other
subnets behind a relay; it does not probe an address before it offers it, but asks `holder`, who may
have seen it in use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from math import inf
from types import MappingProxyType
from typing import Final, NamedTuple

from slirp.address import Prefix, addr_to_text
from slirp.config import Config
from slirp.errors import MalformedPacket
from slirp.services.boot import Boot, BootConfig
from slirp.wire import dhcp as wire
from slirp.wire.dhcp import LAYER, NO_ADDR, DhcpMessage
from slirp.wire.dns import emit_names, labels_of

POOL_MAX: Final = 1024  # addresses; a DISCOVER beyond them is not answered
OFFER_FOR: Final = 10.0  # seconds that an offer stands
DECLINE_FOR: Final = 300.0  # seconds that an address found in use is left alone
LEASE_TIME: Final = 86400  # seconds
LEASE_TIME_MIN: Final = 60  # seconds; a client that asks for less gets this
FOREVER: Final = 0xFFFFFFFF  # as a lease time: infinity, RFC 2131 §3.3
MTU_MIN: Final = 68  # bytes, RFC 2132 §5.1
CLIENT_ID_MAX: Final = 255  # bytes
HOSTNAME_MAX: Final = 255  # bytes that are remembered of what a client calls itself
UDP_IP_LEN: Final = 28  # bytes in front of the message, which option 57 counts in
MESSAGE_SIZE_MIN: Final = 576  # bytes that every client takes, RFC 2131 §2
BOOTP_VENDOR_LEN: Final = 64  # bytes, RFC 951

NO_BOOT: Final = Boot()
BROADCAST_ADDR: Final = b"\xff\xff\xff\xff"
BROADCAST_MAC: Final = b"\xff\xff\xff\xff\xff\xff"

FREE: Final = "free"  # states of a binding: remembered, not held
OFFERED: Final = "offered"
BOUND: Final = "bound"
DECLINED: Final = "declined"


class DhcpConfig(NamedTuple):
    """What the network's guests are told. Addresses are 4 bytes, hardware addresses 6.

    Nothing is checked here: slirp.Config refuses what cannot work.
    """

    network: Prefix
    gateway: bytes  # the router, and the address that the server speaks from
    dns: tuple[bytes, ...] = ()
    first_lease: bytes | None = None  # where the pool begins; None: at the first host
    pool_size: int = POOL_MAX
    mtu: int = 0  # bytes; 0: not told
    hostname: str = ""
    domain: str = ""
    search: tuple[str, ...] = ()
    lease_time: int = LEASE_TIME  # seconds, or FOREVER
    static_leases: Mapping[bytes, bytes] = MappingProxyType({})  # hardware address → address
    classless_routes: tuple[tuple[bytes, int, bytes], ...] = ()  # (network, prefix length, router)
    reserved: tuple[bytes, ...] = ()  # further addresses of the network's own
    omit_router: bool = False  # a restricted network: options 3, 6 and default routes are not told
    rapid_commit: bool = True
    ntp: tuple[bytes, ...] = ()
    boot: BootConfig = BootConfig()

    @classmethod
    def of(cls, config: Config) -> DhcpConfig:
        """The part of a network's configuration that concerns its guests."""
        dns = config.dns_addr
        return cls(
            network=config.prefix,
            gateway=config.gateway_addr,
            dns=(dns,) if config.dns_enabled else (),
            first_lease=config.first_lease_addr,
            mtu=config.mtu,
            hostname=config.hostname,
            domain=config.domain,
            search=config.search,
            static_leases=config.leases,
            omit_router=config.restrict,
            reserved=(dns, *config.guest_forward_addrs(4)),
            ntp=(config.gateway_addr,) if config.ntp else (),
            boot=BootConfig(
                config.boot_server,
                f"http://{addr_to_text(config.gateway_addr)}/" if config.http is not None else "",
                config.bootfiles,
            ),
        )

    def own_addrs(self) -> frozenset[bytes]:
        """Addresses that no guest may have."""
        return frozenset((self.gateway, *self.dns, *self.reserved))

    def pool(self) -> tuple[bytes, ...]:
        """The addresses of the dynamic pool, in the order in which they are given out."""
        taken = self.own_addrs() | frozenset(self.static_leases.values())
        hosts = _Addresses(self.network)
        first = int.from_bytes(self.first_lease) if self.first_lease else hosts.base + 1
        found: list[bytes] = []
        for number in range(first, hosts.base + hosts.count - 1):
            if len(found) == self.pool_size:
                break
            addr = number.to_bytes(4)
            if addr not in taken:
                found.append(addr)
        return tuple(found)


class _Addresses:
    """The host addresses of a network: neither its own number nor its broadcast address."""

    def __init__(self, network: Prefix) -> None:
        self.base = int.from_bytes(network.addr)
        self.count = network.size

    def __contains__(self, addr: bytes) -> bool:
        return len(addr) == 4 and 0 < int.from_bytes(addr) - self.base < self.count - 1


class DhcpReply(NamedTuple):
    payload: bytes  # from port 67 of the gateway's address
    dst_addr: bytes
    dst_port: int  # 68, or 67 where a relay agent takes the reply
    dst_mac: bytes | None  # None: to the sender of the frame that asked, which is a relay agent
    lease: bytes | None  # the address that the client has from now on; None in an offer


class Lease(NamedTuple):
    addr: bytes
    mac: bytes
    client_id: bytes  # option 61, or 1 and the hardware address
    hostname: bytes  # as the client calls itself: not to be trusted
    expires_at: float


class _Binding:
    __slots__ = ("addr", "client_id", "expires_at", "hostname", "mac", "port", "state")

    def __init__(
        self, addr: bytes, mac: bytes, client_id: bytes, state: str, expires_at: float,
        hostname: bytes, port: Hashable,
    ) -> None:  # fmt: skip
        self.addr = addr
        self.mac = mac
        self.client_id = client_id
        self.state = state
        self.expires_at = expires_at
        self.hostname = hostname
        self.port = port  # where its client was heard


class DhcpServer:
    """Bindings of one network. `holder(addr)` is the hardware address seen using it, or None."""

    def __init__(
        self, config: DhcpConfig, holder: Callable[[bytes], bytes | None] = lambda addr: None
    ) -> None:
        self.config = config
        self.stats: Counter[str] = Counter()
        self.changes = 0  # messages that may have changed a lease
        self._holder = holder
        self._hosts = _Addresses(config.network)
        self._pool = dict.fromkeys(config.pool())
        self._bindings: dict[bytes, _Binding] = {}  # by address: at most pool and static leases
        self._by_client: dict[bytes, bytes] = {}  # client identifier → address
        self._by_mac: dict[bytes, bytes] = {}  # hardware address → address, the latest
        self._told = dict(_configured_options(config))
        self.on_lease: Callable[[str, Lease], None] | None = None  # while somebody listens
        self._port: Hashable = None  # where the message came from that is being handled

    def handle_message(
        self, payload: memoryview | bytes, now: float, port: Hashable = None
    ) -> DhcpReply | None:
        """The reply to what a guest sent to port 67, or None. Raises MalformedPacket.

        `port` is where the guest is on the network, to share the pool fairly.
        """
        self._port = port
        self.changes += 1
        request = DhcpMessage.parse(payload)
        if request.op != wire.BOOTREQUEST:
            raise MalformedPacket(LAYER, "op")
        if (request.htype, request.hlen) != (wire.HTYPE_ETHERNET, 6):
            raise MalformedPacket(LAYER, "hardware type")
        if request.chaddr[0] & 1 or not any(request.mac):
            raise MalformedPacket(LAYER, "hardware address")
        if request.giaddr != NO_ADDR and request.giaddr not in self._hosts:
            self.stats["other_subnet"] += 1  # RFC 2131 §4.3.1: no address of ours would fit there
            return None
        kind = request.octet(wire.MESSAGE_TYPE)
        if kind is None:
            return self._handle_bootp(request, now)
        if kind in (0, wire.OFFER, wire.ACK, wire.NAK):
            raise MalformedPacket(LAYER, "message type")
        handler = _HANDLERS.get(kind)
        if handler is None:
            self.stats["ignored"] += 1
            return None
        return handler(self, request, now)

    def leases(self, now: float) -> list[Lease]:
        """What is leased at this instant, by address."""
        held = (b for b in self._bindings.values() if b.state == BOUND and b.expires_at > now)
        return sorted(map(_lease_of, held))

    def restore(self, lease: Lease, now: float) -> bool:
        """Take over a lease that an earlier server gave; False: not in this configuration."""
        static = self.config.static_leases.get(lease.mac)
        fits = lease.addr == static if static is not None else lease.addr in self._pool
        if not fits or lease.expires_at <= now or lease.addr in self._bindings:
            return False
        self._bindings[lease.addr] = _Binding(
            lease.addr, lease.mac, lease.client_id, BOUND, lease.expires_at, lease.hostname, None
        )
        self._by_client[lease.client_id] = self._by_mac[lease.mac] = lease.addr
        return True

    # RFC 2131 §4.3.1
    def _handle_discover(self, request: DhcpMessage, now: float) -> DhcpReply | None:
        self.stats["discover"] += 1
        addr = self._choose(request, request.address(wire.REQUESTED_ADDRESS), now)
        if addr is None:
            self.stats["pool_exhausted"] += 1
            return None
        if self.config.rapid_commit and wire.RAPID_COMMIT in request.options:  # RFC 4039 §3.1
            return self._acknowledge(request, addr, now)
        binding = self._bindings.get(addr)
        if binding is None or binding.state != BOUND or binding.expires_at <= now:
            self._bind(request, addr, OFFERED, now + OFFER_FOR)
        return self._reply(request, wire.OFFER, addr)

    # RFC 2131 §4.3.2
    def _handle_request(self, request: DhcpMessage, now: float) -> DhcpReply | None:
        self.stats["request"] += 1
        server = request.address(wire.SERVER_IDENTIFIER)
        wanted = request.address(wire.REQUESTED_ADDRESS)
        current = self._find(request)
        if server is not None and server != self.config.gateway:  # SELECTING, and not us
            self.stats["other_server"] += 1
            if current is not None and current.state == OFFERED:
                self._free(current, now)
            return None
        if wanted is None:  # RENEWING or REBINDING
            wanted = request.ciaddr
        if wanted == NO_ADDR:
            raise MalformedPacket(LAYER, "no address requested")
        if wanted not in self._hosts:
            return self._refuse(request, "address not on this network")
        if current is not None and current.addr != wanted and _is_live(current, now):
            return self._refuse(request, "another address is leased to this client")
        if not self._is_free(wanted, request, now):
            return self._refuse(request, "address not available")
        return self._acknowledge(request, wanted, now)

    # RFC 2131 §4.3.3
    def _handle_decline(self, request: DhcpMessage, now: float) -> None:
        self.stats["decline"] += 1
        current = self._find(request)
        addr = request.address(wire.REQUESTED_ADDRESS)
        if current is None or current.addr != addr or not self._is_holders(current, request):
            return  # only who was given an address may say that it is taken
        self._forget_client(current)
        if addr in self._pool:  # a static lease stays where the configuration put it
            current.state, current.expires_at = DECLINED, now + DECLINE_FOR
        else:
            self._free(current, now)

    # RFC 2131 §4.3.4
    def _handle_release(self, request: DhcpMessage, now: float) -> None:
        self.stats["release"] += 1
        current = self._find(request)
        if (
            current is not None
            and current.addr == request.ciaddr
            and self._is_holders(current, request)
        ):
            self._free(current, now)

    def _is_holders(self, binding: _Binding, request: DhcpMessage) -> bool:
        """Did this come from where the lease is held? A client identifier is anybody's to write."""
        if binding.port is not self._port:
            self.stats["elsewhere"] += 1
            return False
        return self._is_for_us(request)

    # RFC 2131 §4.3.5: parameters only, no address, no lease time
    def _handle_inform(self, request: DhcpMessage, now: float) -> DhcpReply | None:
        self.stats["inform"] += 1
        return self._reply(request, wire.ACK, NO_ADDR)

    def _handle_bootp(self, request: DhcpMessage, now: float) -> DhcpReply | None:
        """RFC 951 and 1534: an address for the configured time, which the client never renews."""
        self.stats["bootp"] += 1
        addr = self._choose(request, None, now)
        if addr is None:
            self.stats["pool_exhausted"] += 1
            return None
        self._bind(request, addr, BOUND, self._lease_end(self.config.lease_time, now))
        codes = (wire.SUBNET_MASK, wire.ROUTER, wire.DNS_SERVER, wire.HOST_NAME, wire.DOMAIN_NAME)
        room = BOOTP_VENDOR_LEN - len(wire.MAGIC_COOKIE) - 1  # END
        options = _fit(((c, self._told[c]) for c in codes if c in self._told), room)
        boot = self.config.boot.answer(request)
        if boot.siaddr == NO_ADDR:
            boot = boot._replace(siaddr=self.config.gateway)
        return self._deliver(request, _answer(request, addr, options, boot), addr)

    def _acknowledge(self, request: DhcpMessage, addr: bytes, now: float) -> DhcpReply:
        self.stats["ack"] += 1
        self._bind(request, addr, BOUND, self._lease_end(self._lease_time(request), now))
        if self.on_lease is not None:
            self.on_lease("lease", _lease_of(self._bindings[addr]))
        return self._reply(request, wire.ACK, addr)

    def _refuse(self, request: DhcpMessage, why: str) -> DhcpReply:
        """DHCPNAK, RFC 2131 §4.3.2 and table 3; to everyone on the wire, or through the relay."""
        self.stats["nak"] += 1
        options = {
            wire.MESSAGE_TYPE: bytes((wire.NAK,)),
            wire.SERVER_IDENTIFIER: self.config.gateway,
            wire.MESSAGE: why.encode(),
        }
        message = _answer(request, NO_ADDR, options | _echoed(request))
        message = message._replace(ciaddr=NO_ADDR, flags=message.flags | wire.FLAG_BROADCAST)
        if request.giaddr != NO_ADDR:
            return DhcpReply(message.emit(), request.giaddr, wire.SERVER_PORT, None, None)
        return DhcpReply(message.emit(), BROADCAST_ADDR, wire.CLIENT_PORT, BROADCAST_MAC, None)

    def _reply(self, request: DhcpMessage, kind: int, addr: bytes) -> DhcpReply:
        """OFFER or ACK with the parameters that the client asked for; type first, relay's last."""
        head = {
            wire.MESSAGE_TYPE: bytes((kind,)),
            wire.SERVER_IDENTIFIER: self.config.gateway,
        }
        if addr != NO_ADDR:
            head |= self._lease_options(request)
        if kind == wire.ACK and request.octet(wire.MESSAGE_TYPE) == wire.DISCOVER:
            head[wire.RAPID_COMMIT] = b""
        boot = self.config.boot.answer(request)
        head |= boot.always
        tail = _echoed(request)
        limit = max(request.short(wire.MAX_MESSAGE_SIZE) or 0, MESSAGE_SIZE_MIN)
        limit = min(limit, max(self.config.mtu or 1500, MESSAGE_SIZE_MIN)) - UDP_IP_LEN
        used = (
            wire.FIXED_LEN + len(wire.MAGIC_COOKIE) + len(wire.emit_options((head | tail).items()))
        )
        options = head | _fit(self._wanted(request, boot), limit - used) | tail
        if kind == wire.OFFER:
            self.stats["offer"] += 1
        lease = addr if kind == wire.ACK and addr != NO_ADDR else None
        return self._deliver(request, _answer(request, addr, options, boot), lease)

    def _wanted(self, request: DhcpMessage, boot: Boot) -> Iterator[tuple[int, bytes]]:
        """What to tell this client, most important first: the mask (RFC 2132 §3.3: before the
        router), then what it listed in its own order, or everything where it listed nothing."""
        listed = request.options.get(wire.PARAMETER_LIST)
        told = {**self._told, **boot.told} if boot.told else self._told
        codes = dict.fromkeys((wire.SUBNET_MASK, *(told if listed is None else listed)))
        return ((code, told[code]) for code in codes if code in told and code not in boot.always)

    def _lease_time(self, request: DhcpMessage) -> int:
        """Seconds: what the client asks for, within what the configuration gives."""
        asked = request.long(wire.LEASE_TIME)
        if asked is None:
            return self.config.lease_time
        return min(max(asked, LEASE_TIME_MIN), self.config.lease_time)

    def _lease_options(self, request: DhcpMessage) -> dict[int, bytes]:
        """The lease time and T1, T2 at 0.5 and 0.875 of it, RFC 2131 §4.4.5."""
        seconds = self._lease_time(request)
        forever = seconds == FOREVER
        return {
            wire.LEASE_TIME: seconds.to_bytes(4),
            wire.RENEWAL_TIME: (seconds if forever else seconds // 2).to_bytes(4),
            wire.REBINDING_TIME: (seconds if forever else seconds * 7 // 8).to_bytes(4),
        }

    def _lease_end(self, seconds: int, now: float) -> float:
        return inf if seconds == FOREVER else now + seconds

    def _deliver(
        self, request: DhcpMessage, message: DhcpMessage, lease: bytes | None
    ) -> DhcpReply:
        """RFC 2131 §4.1: to the relay, to an address the client has, to all, or to its new one."""
        payload, addr = message.emit(), message.yiaddr
        if request.giaddr != NO_ADDR:
            return DhcpReply(payload, request.giaddr, wire.SERVER_PORT, None, lease)
        if request.ciaddr != NO_ADDR:
            return DhcpReply(payload, request.ciaddr, wire.CLIENT_PORT, request.mac, lease)
        if request.flags & wire.FLAG_BROADCAST or addr == NO_ADDR:
            return DhcpReply(payload, BROADCAST_ADDR, wire.CLIENT_PORT, BROADCAST_MAC, lease)
        return DhcpReply(payload, addr, wire.CLIENT_PORT, request.mac, lease)

    def _is_for_us(self, request: DhcpMessage) -> bool:
        return request.address(wire.SERVER_IDENTIFIER) in (None, self.config.gateway)

    def _find(self, request: DhcpMessage) -> _Binding | None:
        """The client's binding, live or remembered; see the module's text on who a client is."""
        client_id, hardware_id = _client_id(request), _hardware_id(request)
        addr = self._by_client.get(client_id)
        if addr is not None:
            return self._bindings[addr]
        addr = self._by_mac.get(request.mac)
        if addr is None:
            return None
        binding = self._bindings[addr]
        return binding if hardware_id in (client_id, binding.client_id) else None

    def _choose(self, request: DhcpMessage, wanted: bytes | None, now: float) -> bytes | None:
        """An address for this client, RFC 2131 §4.3.1: its own, the one it asks for, any."""
        static = self.config.static_leases.get(request.mac)
        if static is not None:
            return static if self._is_free(static, request, now) else None
        current = self._find(request)
        for addr in (current.addr if current else None, wanted):
            if addr is not None and self._is_free(addr, request, now):
                return addr
        return self._oldest(request, now) or self._reclaim(now)

    def _oldest(self, request: DhcpMessage, now: float) -> bytes | None:
        """The first address that nobody ever had, else the one whose binding ended first."""
        ended: list[tuple[float, bytes]] = []
        for addr in self._pool:
            binding = self._bindings.get(addr)
            if binding is not None and binding.expires_at <= now:
                ended.append((binding.expires_at, addr))
            elif binding is None and self._is_free(addr, request, now):
                return addr
        return next((addr for _, addr in sorted(ended) if self._is_free(addr, request, now)), None)

    def _reclaim(self, now: float) -> bytes | None:
        """The oldest lease that nobody uses, of another port that has the most."""
        leased = [
            binding
            for addr, binding in self._bindings.items()
            if addr in self._pool and binding.state == BOUND and binding.expires_at > now
        ]
        if not leased:
            return None
        ((greediest, _),) = Counter(binding.port for binding in leased).most_common(1)
        if greediest is self._port:
            return None
        for binding in sorted(leased, key=lambda binding: binding.expires_at):
            if binding.port is greediest and self._holder(binding.addr) is None:
                self._forget_client(binding)
                del self._bindings[binding.addr]
                self.stats["reclaimed"] += 1
                return binding.addr
        return None

    def _is_free(self, addr: bytes, request: DhcpMessage, now: float) -> bool:
        """Whether this client may have this address now."""
        static = self.config.static_leases.get(request.mac)
        if addr != static if static is not None else addr not in self._pool:
            return False
        binding = self._bindings.get(addr)
        if binding is not None and binding.expires_at > now and static is None:
            return binding is self._find(request)
        # Who had it by us and let it go is no reason to keep it from others.
        earlier = binding.mac if binding is not None else None
        return self._holder(addr) in (None, request.mac, earlier)

    def _bind(self, request: DhcpMessage, addr: bytes, state: str, expires_at: float) -> None:
        """Tie the address to this client, which gives up any other."""
        for old in (self._find(request), self._bindings.get(addr)):
            if old is not None:
                self._forget_client(old)
                if old.addr != addr:
                    self._bindings.pop(old.addr, None)
        client_id = _client_id(request)
        hostname = request.options.get(wire.HOST_NAME, b"")[:HOSTNAME_MAX]
        self._bindings[addr] = _Binding(
            addr, request.mac, client_id, state, expires_at, hostname, self._port
        )
        self._by_client[client_id] = self._by_mac[request.mac] = addr

    def _free(self, binding: _Binding, now: float) -> None:
        """The address may go to others; it is remembered for the client that had it."""
        if self.on_lease is not None and binding.state == BOUND:
            self.on_lease("lease-ended", _lease_of(binding))
        binding.state, binding.expires_at = FREE, now

    def _forget_client(self, binding: _Binding) -> None:
        """Nobody finds this binding by who had it any more."""
        if self._by_client.get(binding.client_id) == binding.addr:
            del self._by_client[binding.client_id]
        if self._by_mac.get(binding.mac) == binding.addr:
            del self._by_mac[binding.mac]


_HANDLERS: Final[Mapping[int, Callable[[DhcpServer, DhcpMessage, float], DhcpReply | None]]] = {
    wire.DISCOVER: DhcpServer._handle_discover,
    wire.REQUEST: DhcpServer._handle_request,
    wire.DECLINE: DhcpServer._handle_decline,
    wire.RELEASE: DhcpServer._handle_release,
    wire.INFORM: DhcpServer._handle_inform,
}


def _lease_of(binding: _Binding) -> Lease:
    return Lease(binding.addr, binding.mac, binding.client_id, binding.hostname, binding.expires_at)


def _is_live(binding: _Binding, now: float) -> bool:
    return binding.state in (OFFERED, BOUND) and binding.expires_at > now


def _hardware_id(request: DhcpMessage) -> bytes:
    return bytes((request.htype,)) + request.mac


def _client_id(request: DhcpMessage) -> bytes:
    value = request.options.get(wire.CLIENT_IDENTIFIER) or _hardware_id(request)
    if len(value) > CLIENT_ID_MAX:
        raise MalformedPacket(LAYER, "client identifier")
    return value


def _answer(
    request: DhcpMessage, addr: bytes, options: dict[int, bytes], boot: Boot = NO_BOOT
) -> DhcpMessage:
    """RFC 2131 table 3: xid, flags, giaddr and chaddr are the request's."""
    return DhcpMessage(
        op=wire.BOOTREPLY,
        htype=request.htype,
        hlen=request.hlen,
        hops=0,
        xid=request.xid,
        secs=0,
        flags=request.flags & wire.FLAG_BROADCAST,
        ciaddr=request.ciaddr,
        yiaddr=addr,
        siaddr=boot.siaddr,
        giaddr=request.giaddr,
        chaddr=request.chaddr,
        sname=boot.sname,
        file=boot.file,
        options=options,
    )


def _echoed(request: DhcpMessage) -> dict[int, bytes]:
    """Options that go back as they came: 61 (RFC 6842 §3), and 82 as the last (RFC 3046 §2.2)."""
    codes = (wire.CLIENT_IDENTIFIER, wire.RELAY_INFORMATION)
    return {code: request.options[code] for code in codes if code in request.options}


def _fit(options: Iterator[tuple[int, bytes]], room: int) -> dict[int, bytes]:
    """As many of the options as go into `room` bytes; one that does not is left out."""
    found: dict[int, bytes] = {}
    for code, value in options:
        size = len(wire.emit_option(code, value))
        if size <= room:
            found[code] = value
            room -= size
    return found


def _configured_options(config: DhcpConfig) -> Iterator[tuple[int, bytes]]:
    """What the configuration has to tell, in the order for a client without a list of its own."""
    yield wire.SUBNET_MASK, config.network.mask
    if not config.omit_router:
        routes = _emit_routes(config)
        if routes:  # RFC 3442: comes before the router, which its reader then ignores
            yield wire.CLASSLESS_ROUTES, routes
        yield wire.ROUTER, config.gateway
        if config.dns:
            yield wire.DNS_SERVER, b"".join(config.dns)
    if config.hostname:
        yield wire.HOST_NAME, config.hostname.encode()
    if config.domain:
        yield wire.DOMAIN_NAME, config.domain.encode()
    if config.mtu:
        yield wire.INTERFACE_MTU, config.mtu.to_bytes(2)
    yield wire.BROADCAST_ADDRESS, config.network.last
    if config.ntp:
        yield wire.NTP_SERVER, b"".join(config.ntp)
    if config.search:
        yield wire.DOMAIN_SEARCH, emit_names(map(labels_of, config.search))


def _emit_routes(config: DhcpConfig) -> bytes:
    """Option 121, RFC 3442; with a default route, since its reader takes none from option 3."""
    routes = config.classless_routes
    if routes and not any(prefix == 0 for _, prefix, _ in routes):
        routes = (*routes, (NO_ADDR, 0, config.gateway))
    return b"".join(
        bytes((prefix,)) + network[: (prefix + 7) // 8] + router
        for network, prefix, router in routes
    )
