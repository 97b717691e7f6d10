"""What a virtual network is to be: one frozen value, checked once, that everything is built from.

    Config("10.0.5.0/24", mtu=9000)
    Config(restrict=True).replace(dns_enabled=False)

A field holds what was given; None leaves the choice to us, and `gateway_addr`, `dns_addr` and
`first_lease_addr` say what became of it. Library, commands and control sockets build the same
object, so that one place knows the defaults and one place refuses what cannot work: a ConfigError
whose text begins with the field's name.

Addresses are text in the fields, as people write them, and bytes in what is derived. Resolvers and
forwards are text or the values that the text stands for; `plain()` has text again. A new field
takes a line in `Fields` (for whoever passes keywords on), one in `_Values` with its default, and
one in CONVERSIONS (slirp.config_fields); tests/slirp/test_config.py keeps the three in step, and
docs/library.md with them.

Does not do: read files or command lines, look anything up on the host.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Self, TypedDict, Unpack

from slirp.address import (
    Prefix,
    addr_from_text,
    addr_to_text,
    is_link_local,
    is_loopback,
    is_multicast,
    is_reserved,
    mac_from_text,
)
from slirp.config_fields import (
    CONVERSIONS,
    DNS_PORT,
    ENDPOINTS,
    NAT64_AUTO,
    Resolver,
    client_from_text,
    literal,
    refuse,
)
from slirp.errors import ConfigError
from slirp.forward import ForwardSpec, is_name
from slirp.guestforward import GuestForward

NETWORK: Final = "10.0.2.0/24"
NETWORK6: Final = "fd00::/64"
ROUTER6: Final = "fe80::2"  # the gateway's link-local address, as guests know their router by
NAT64: Final = "64:ff9b::/96"  # RFC 6052 §2.1
NAT64_LENGTHS: Final = (32, 40, 48, 56, 64, 96)  # bits, RFC 6052 §2.2
MTU: Final = 1500  # bytes of an IP packet
MTU_MIN: Final = 68  # bytes, RFC 791 §3.2
MTU_MIN6: Final = 1280  # bytes, RFC 8200 §5: on a smaller one Linux has no IPv6 either
MTU_MAX: Final = 65521  # bytes: 65,535 with the Ethernet header
LENGTH_MAX: Final = 30  # bits of the prefix: the gateway and one guest
LENGTH6_MAX: Final = 112  # bits of the IPv6 prefix
GATEWAY_HOST: Final = 2  # offsets from the network's address, as users of slirp know them
DNS_HOST: Final = 3
FIRST_LEASE: Final = 15
FIRST_GUEST6: Final = 0x100
HTTP_PORT: Final = 80
DNS_CACHE: Final = 1024  # answers
DNS_CACHE_MAX: Final = 65536  # answers, of 4 KiB at the most
PORT_SHARE: Final = 0.5
RESOLV_CONF: Final = "/etc/resolv.conf"

_UNUSABLE: Final = (  # networks that no host's kernel routes to
    (Prefix(bytes(4), 8), "is “this network” (RFC 1122 §3.2.1.3)"),
    (Prefix(bytes((127, 0, 0, 0)), 8), "is every host's own loopback"),
    (Prefix(bytes((224, 0, 0, 0)), 4), "is multicast"),
    (Prefix(bytes((240, 0, 0, 0)), 4), "is reserved"),
    (Prefix(bytes(16), 8), "is no network (RFC 4291 §2.4)"),
    (Prefix.from_text("64:ff9b::/96"), "stands for IPv4 addresses (RFC 6052 §2.1)"),
    (Prefix.from_text("fe80::/10"), "is every link's own"),
    (Prefix.from_text("ff00::/8"), "is multicast"),
)
_UNUSABLE_NAT64: Final = (
    (Prefix.from_text("::/64"), "is no network (RFC 4291 §2.5.5)"),
    (Prefix.from_text("fe80::/10"), "is every link's own"),
    (Prefix.from_text("ff00::/8"), "is multicast"),
)


class Fields(TypedDict, total=False):
    """The fields of a Config as keywords."""

    network: str
    network6: str
    ipv4_only: bool
    ipv6_only: bool
    gateway: str | None
    gateway6: str | None
    dns: str | None
    dns6: str | None
    first_lease: str | None
    mtu: int
    mac: str | None
    host_loopback: bool
    restrict: bool
    isolate: bool
    either_loopback: bool
    nat64: str
    outbound_addr: str | None
    outbound_addr6: str | None
    dns_enabled: bool
    dhcp_enabled: bool
    ra_enabled: bool
    resolv_conf: str | os.PathLike[str]
    resolvers: Sequence[str | Resolver] | None
    names: Mapping[str, Sequence[str]]
    hostname: str
    domain: str
    search: Iterable[str]
    static_leases: Mapping[str, str]
    static_leases6: Mapping[str, str]
    port_share: float
    endpoint: str
    forwards: Iterable[str | ForwardSpec]
    tftp: str | os.PathLike[str] | None
    http: str | os.PathLike[str] | None
    bootfiles: str | Mapping[str, str]
    next_server: str | None
    ntp: bool
    hosts: Iterable[str | os.PathLike[str]]
    domain_resolvers: Mapping[str, Sequence[str | Resolver]]
    dns_cache: int
    guest_forwards: Iterable[str | GuestForward]
    auto_forward: str | None


class _Values(NamedTuple):
    network: str = NETWORK  # IPv4 prefix
    network6: str = NETWORK6  # IPv6 prefix
    ipv4_only: bool = False
    ipv6_only: bool = False
    gateway: str | None = None  # .2 of it
    gateway6: str | None = None  # ::2 of it, and fe80::2
    dns: str | None = None  # .3 of it; the gateway's in a /30, which has no more addresses
    dns6: str | None = None  # ::3 of it
    first_lease: str | None = None  # .15, or the first behind the two in a network without it
    mtu: int = MTU  # bytes of an IP packet; told to guests
    mac: str | None = None  # the gateway's; 52:55 and its address
    host_loopback: bool = True  # the gateway's address leads to the host's 127.0.0.1
    restrict: bool = False  # guests reach the network's own services and each other only
    isolate: bool = False  # guests do not reach each other
    either_loopback: bool = True  # what listens on one of 127.0.0.1 and ::1 is found by both
    nat64: str = NAT64_AUTO  # "on", "off", or a prefix: guests reach IPv4 hosts by IPv6
    outbound_addr: str | None = None  # the host's IPv4 address that connections come from
    outbound_addr6: str | None = None  # the same of IPv6
    dns_enabled: bool = True
    dhcp_enabled: bool = True  # DHCPv6 as well
    ra_enabled: bool = True  # router advertisements
    resolv_conf: str = RESOLV_CONF  # where the host's resolvers are named
    resolvers: tuple[Resolver, ...] | None = None  # asked instead of those; empty: nobody
    names: Mapping[str, tuple[str, ...]] = MappingProxyType({})  # further DNS names
    hostname: str = ""  # told to guests by DHCP
    domain: str = ""
    search: tuple[str, ...] = ()
    static_leases: Mapping[str, str] = MappingProxyType({})  # MAC → address
    static_leases6: Mapping[str, str] = MappingProxyType({})  # MAC or DUID → IPv6 address
    port_share: float = PORT_SHARE  # of descriptors, flows and memory, for one port among others
    endpoint: str = ENDPOINTS[0]  # one of ENDPOINTS; the network looks whether the host has it
    forwards: tuple[ForwardSpec, ...] = ()  # opened with the network
    tftp: str | None = None  # folder that the gateway serves by TFTP
    http: str | None = None  # folder that the gateway serves by HTTP, at port 80
    bootfiles: Mapping[str, str] = MappingProxyType({})  # kind (BOOT_KINDS; "": any) → name or URL
    next_server: str | None = None  # who serves bootfiles by TFTP; the gateway, where it does
    ntp: bool = False  # the gateway tells the host's time
    hosts: tuple[str, ...] = ()  # further DNS names, from files in the form of hosts(5)
    domain_resolvers: Mapping[str, tuple[Resolver, ...]] = MappingProxyType({})  # by domain
    dns_cache: int = DNS_CACHE  # answers that are kept; 0: none
    guest_forwards: tuple[GuestForward, ...] = ()  # from the network to the host
    auto_forward: str | None = None  # rules by which whoever has a namespace forwards its ports


class Config(_Values):
    """The configuration of one network. Raises ConfigError for one that cannot work."""

    __slots__ = ()

    def __new__(cls, network: str | None = None, /, **fields: Unpack[Fields]) -> Self:
        """The network's prefix may stand first, without its name."""
        values: dict[str, Any] = {**fields}
        if network is not None:
            if "network" in values:
                refuse("network", values["network"], f"{network} is given as well")
            values["network"] = network
        for name in values:
            if name not in CONVERSIONS:
                raise ConfigError(f"{name}: there is no such field", name)
        converted = {name: CONVERSIONS[name](name, value) for name, value in values.items()}
        self = tuple.__new__(cls, _Values(**converted))
        self._check()
        return self

    # mypy types a NamedTuple's own methods in a way that no override can repeat.
    @classmethod
    def _make(cls, iterable: Iterable[Any]) -> Self:  # type: ignore[override]
        """A NamedTuple's way to a new value; with a check it is no way around the check."""
        values: Any = dict(zip(cls._fields, iterable, strict=True))
        return cls(**values)

    def replace(self, **changes: Unpack[Fields]) -> Self:
        """The same with these fields changed, checked anew."""
        values: Any = self._asdict() | changes
        return type(self)(**values)

    def plain(self) -> dict[str, Any]:
        """The fields that are not as by default, in text, numbers, lists and dicts."""
        default = _Values()
        return {
            name: _plain(value)
            for name, value in self._asdict().items()
            if value != getattr(default, name)
        }

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(tuple(frozenset(v.items()) if isinstance(v, Mapping) else v for v in self))

    def __reduce__(self) -> tuple[Any, ...]:
        """For copy and pickle."""
        return _restore, (type(self), self.plain())

    def __repr__(self) -> str:
        return f"Config({', '.join(f'{name}={value!r}' for name, value in self.plain().items())})"

    # What follows from the fields

    @property
    def prefix(self) -> Prefix:
        """The network's."""
        return Prefix.from_text(self.network)

    @property
    def gateway_addr(self) -> bytes:
        return self._own("gateway", GATEWAY_HOST)

    @property
    def dns_addr(self) -> bytes:
        if self.dns is None and self.prefix.length == LENGTH_MAX:
            return self.gateway_addr
        return self._own("dns", DNS_HOST)

    @property
    def has_ipv4(self) -> bool:
        """Do guests speak IPv4?"""
        return not self.ipv6_only

    @property
    def has_ipv6(self) -> bool:
        """Do guests speak IPv6? Not over a link that is too narrow for it."""
        return not self.ipv4_only and self.mtu >= MTU_MIN6

    @property
    def prefix6(self) -> Prefix:
        """The network's IPv6 prefix."""
        return Prefix.from_text(self.network6)

    @property
    def gateway6_addr(self) -> bytes:
        return self._own("gateway6", GATEWAY_HOST)

    @property
    def router6_addr(self) -> bytes:
        """The gateway's link-local address."""
        return addr_from_text(ROUTER6)

    @property
    def dns6_addr(self) -> bytes:
        return self._own("dns6", DNS_HOST)

    @property
    def nat64_prefix(self) -> Prefix | None:
        """Where guests find IPv4 hosts in IPv6; None: nowhere."""
        wanted = self.nat64
        if wanted == NAT64_AUTO:
            wanted = "on" if self.ipv6_only else "off"
        if wanted == "off" or not self.has_ipv6:
            return None
        return Prefix.from_text(NAT64 if wanted == "on" else wanted)

    @property
    def first_guest6_addr(self) -> bytes:
        """The IPv6 address of the first guest, and of forwards to it."""
        return self.prefix6.host(FIRST_GUEST6)

    @property
    def gateway_addrs(self) -> tuple[bytes, ...]:
        """The gateway's in each family that guests have."""
        return self._each("gateway_addr", "gateway6_addr")

    @property
    def dns_addrs(self) -> tuple[bytes, ...]:
        """The DNS server's in each family that guests have."""
        return self._each("dns_addr", "dns6_addr")

    def _each(self, *names: str) -> tuple[bytes, ...]:
        spoken = zip(names, (self.has_ipv4, self.has_ipv6), strict=True)
        return tuple(getattr(self, name) for name, is_spoken in spoken if is_spoken)

    @property
    def _services(self) -> tuple[bytes, ...]:
        """The gateway's and the DNS server's addresses."""
        return (
            self.gateway_addr,
            self.dns_addr,
            self.gateway6_addr,
            self.router6_addr,
            self.dns6_addr,
        )

    @property
    def own_addrs(self) -> tuple[bytes, ...]:
        """The network's own addresses, of both families."""
        router = (self.router6_addr,) if self.has_ipv6 else ()
        own = self.gateway_addrs + router + self.dns_addrs
        return own + self.guest_forward_addrs(4) + self.guest_forward_addrs(16)

    @property
    def first_lease_addr(self) -> bytes:
        """Where the DHCP pool begins: the address of the first machine, and of forwards to it."""
        if self.first_lease is not None:
            return self._own("first_lease", 0)
        prefix, own = self.prefix, (self.gateway_addr, self.dns_addr)
        first = FIRST_LEASE
        if prefix.size - 1 <= first:
            first = int.from_bytes(max(own)) - int.from_bytes(prefix.addr) + 1
        last = min(prefix.size - 1, first + len(own) + 1)  # one of so many is free
        offsets = (*range(first, last), *range(1, min(first, prefix.size - 1)))
        free = next((addr for n in offsets if (addr := prefix.host(n)) not in own), None)
        if free is None:
            refuse("dns", self.dns, f"leaves no address of {prefix} for a guest")
        return free

    @property
    def mac_addr(self) -> bytes:
        return b"\x52\x55" + self.gateway_addr if self.mac is None else mac_from_text(self.mac)

    @property
    def outbound(self) -> bytes | None:
        """The host's IPv4 address that connections come from."""
        return None if self.outbound_addr is None else addr_from_text(self.outbound_addr)

    @property
    def outbound6(self) -> bytes | None:
        """The same of IPv6."""
        return None if self.outbound_addr6 is None else addr_from_text(self.outbound_addr6)

    @property
    def leases(self) -> dict[bytes, bytes]:
        """Static leases of IPv4: MAC → address."""
        found = {
            mac_from_text(mac): addr_from_text(addr) for mac, addr in self.static_leases.items()
        }
        return {mac: addr for mac, addr in found.items() if len(addr) == 4}

    def guest_forward_addrs(self, size: int) -> tuple[bytes, ...]:
        """Addresses in the network that are its own because a guest forward begins there, of the
        family whose addresses have this size."""
        prefix = self.prefix if size == 4 else self.prefix6
        found = (addr_from_text(spec.addr) for spec in self.guest_forwards if spec.addr)
        inside = (addr for addr in found if len(addr) == size and prefix.covers(addr))
        return tuple(dict.fromkeys(addr for addr in inside if addr not in self._services))

    @property
    def boot_server(self) -> bytes:
        """Where bootfiles are had by TFTP; 0.0.0.0: nowhere."""
        if self.next_server is not None:
            return addr_from_text(self.next_server)
        return self.gateway_addr if self.tftp is not None else bytes(4)

    @property
    def leases6(self) -> dict[bytes, bytes]:
        """Static leases of IPv6 addresses: MAC or DUID → address."""
        return {
            client_from_text(who): addr_from_text(addr) for who, addr in self.static_leases6.items()
        }

    def guest_addr(self, text: str, field: str = "guest") -> bytes:
        """The address of a guest; a ConfigError about `field` where no guest can have it."""
        addr = literal(field, text)
        spoken = self.has_ipv4 if len(addr) == 4 else self.has_ipv6
        if not spoken:
            refuse(field, text, f"the network has no IPv{4 if len(addr) == 4 else 6}")
        prefix = self.prefix if len(addr) == 4 else self.prefix6
        if not prefix.has_host(addr) and not (len(addr) == 16 and is_link_local(addr)):
            refuse(field, text, f"must be a host address in {prefix}")
        if addr in self.own_addrs:
            refuse(field, text, "is the network's own address, not a guest's")
        return addr

    # What can work

    def _own(self, field: str, offset: int) -> bytes:
        """The address that the field names, or else the one at this offset."""
        text: str | None = getattr(self, field)
        prefix = self.prefix6 if field.endswith("6") else self.prefix
        if text is None:
            return prefix.host(offset)
        addr = addr_from_text(text)
        if not prefix.has_host(addr):
            refuse(field, text, f"must be a host address in {prefix}")
        return addr

    def _check(self) -> None:
        _check_network("network", self.network, 4, LENGTH_MAX, NETWORK)
        _check_network("network6", self.network6, 16, LENGTH6_MAX, NETWORK6)
        if not MTU_MIN <= self.mtu <= MTU_MAX:
            refuse("mtu", self.mtu, f"must be {MTU_MIN} to {MTU_MAX}")
        if self.ipv6_only and self.ipv4_only:
            refuse("ipv6_only", True, "ipv4_only is given as well")
        if self.ipv6_only and not self.has_ipv6:
            refuse("mtu", self.mtu, f"must be {MTU_MIN6} at least for IPv6")
        if self.gateway6_addr == self.dns6_addr:
            refuse("dns6", self.dns6, "is the gateway's address")
        if self.first_lease_addr in (self.gateway_addr, self.dns_addr):
            refuse("first_lease", self.first_lease, "is the network's own address, not a guest's")
        _check_outbound("outbound_addr", self.outbound, 4)
        _check_outbound("outbound_addr6", self.outbound6, 16)
        for spec in self.forwards:
            if spec.guest_addr is not None and not is_name(spec.guest_addr):
                self.guest_addr(spec.guest_addr, "forwards")
        if not 0 <= self.dns_cache <= DNS_CACHE_MAX:
            refuse("dns_cache", self.dns_cache, f"must be 0 to {DNS_CACHE_MAX}")
        if len(self.boot_server) != 4:
            refuse("next_server", self.next_server, "must be IPv4")
        self._check_guest_forwards()
        self._check_nat64()
        self._check_leases("static_leases", self.static_leases, 4)
        self._check_leases("static_leases6", self.static_leases6, 16)

    def _check_guest_forwards(self) -> None:
        taken = {(addr, DNS_PORT) for addr in (self.dns_addr, self.dns6_addr) if self.dns_enabled}
        gateways = (self.gateway_addr, self.gateway6_addr)
        if self.http is not None:
            taken |= {(addr, HTTP_PORT) for addr in gateways}
        for spec in self.guest_forwards:
            for addr in gateways if spec.addr is None else (addr_from_text(spec.addr),):
                self._check_guest_forward(spec, addr)
                if (addr, spec.port) in taken:
                    refuse("guest_forwards", str(spec), "something is there already")
                taken.add((addr, spec.port))

    def _check_guest_forward(self, spec: GuestForward, addr: bytes) -> None:
        prefix = self.prefix if len(addr) == 4 else self.prefix6
        if is_multicast(addr) or is_reserved(addr) or is_loopback(addr) or not any(addr):
            refuse("guest_forwards", str(spec), "no connection can be to this address")
        if prefix.covers(addr) and not prefix.has_host(addr):
            refuse("guest_forwards", str(spec), f"must be a host address in {prefix}")
        if addr in (self.first_lease_addr, self.first_guest6_addr):
            refuse("guest_forwards", str(spec), "is the first guest's address")

    def _check_nat64(self) -> None:
        prefix = self.nat64_prefix
        if prefix is None:
            return
        if prefix.length not in NAT64_LENGTHS or prefix.addr[8]:
            lengths = ", ".join(map(str, NAT64_LENGTHS))
            refuse("nat64", self.nat64, f"must be /{lengths}, its bits 64 to 71 zero (RFC 6052)")
        for block, why in (*_UNUSABLE_NAT64, (self.prefix6, "is the network's own")):
            if prefix.overlaps(block):
                refuse("nat64", self.nat64, f"{block} {why}")

    def _check_leases(self, field: str, leases: Mapping[str, str], size: int) -> None:
        clients, addrs = set(), set()
        for who, text in leases.items():
            addr, client = self.guest_addr(text, field), client_from_text(who)
            if len(addr) != size or is_link_local(addr):
                refuse(field, text, "is no address of this network")
            if client in clients or addr in addrs:
                refuse(field, f"{who}={text}", "one of the two has a lease already")
            clients.add(client)
            addrs.add(addr)


def _restore(kind: type[Config], fields: Fields) -> Config:
    return kind(**fields)


def _plain(value: Any) -> Any:
    if isinstance(value, Resolver | ForwardSpec | GuestForward):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _check_network(field: str, text: str, size: int, longest: int, usual: str) -> None:
    try:
        prefix = Prefix.from_text(text)
    except ValueError as error:
        raise ConfigError(f"{field}: {error}", field) from None
    if len(prefix.addr) != size:
        refuse(field, text, f"must be IPv{4 if size == 4 else 6}")
    if prefix.length > longest:
        refuse(field, text, f"must leave room for hosts, /{longest} at the longest")
    for block, why in _UNUSABLE:
        if prefix.overlaps(block):
            refuse(field, text, f"{block} {why}; take a private one, as {usual}")


def _check_outbound(field: str, addr: bytes | None, size: int) -> None:
    if addr is None:
        return
    text = addr_to_text(addr)
    if len(addr) != size:
        refuse(field, text, f"must be IPv{4 if size == 4 else 6}")
    if is_multicast(addr) or is_reserved(addr):
        refuse(field, text, "is no host's address")


# How what was given becomes what a field holds; a ConfigError where it cannot.
